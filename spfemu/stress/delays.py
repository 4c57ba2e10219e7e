# SPDX-License-Identifier: MIT
"""Parameters of the delays of a stress run (oracles/delays.py)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from spfemu.engines.source import Program
from spfemu.engines.steps import Site
from spfemu.layout import FOCUS_MAX
from spfemu.segment import Segment

EPOCH_SECONDS = 3e-3
SPIN_SECONDS = 200e-6
SLEEP_SECONDS = 400e-6
CALLERS = 2
"""How many calls above what is overridden are in the focus."""

RACED = (
    *("copy_pvma", "mmap_seq_read_check", "speculation_holds", "pte_map_lock_speculative"),
    *("vma_has_changed", "get_vma", "lock_vma_under_rcu", "vma_start_read", "__find_vma"),
    *("wp_page_copy", "do_anonymous_page", "do_swap_page", "filemap_fault", "anon_vma_prepare"),
    *("zap_ptes", "free_pgtables", "free_table_at", "tlb_finish_mmu", "flush_tlb_mm"),
    *("change_pte_range", "move_ptes", "copy_pte_range", "try_to_unmap_pte", "vma_set_start"),
    *("vma_shift_boundary", "__split_vma", "mmap_write_unlock", "mmap_write_downgrade"),
)
"""Functions in which races of faults and writers are decided."""


def focus_sites(program: Program, sites: Sequence[Site]) -> list[int]:
    """Return the sites of what overrides replace, of what that calls, and of its callers.

    What is wrong with a step shows beside it: before and behind the calls that it makes, and where
    its callers go on, as behind a check.  Without overrides, the sites at which races are decided
    anyway.  A quarter are those that copy VMAs, again and again: a hunt that sees no torn copy
    proves little.
    """
    functions = program.functions
    # by the names in the source: around what an oracle stands is there twice
    called = {f.tree.name: set[str]() for f in functions.values()}
    for function in functions.values():
        called[function.tree.name] |= {functions[c].tree.name for c in function.calls}
    names = set(RACED)
    if program.overridden:
        names = {functions[name].tree.name for name in program.overridden if name in functions}
        inside = {name for each in names for name in called[each]}
        for _ in range(CALLERS):
            names |= {name for name, calls in called.items() if names & calls}
        names |= inside
    found = _sites_in(names, program, sites)
    copies = _sites_in({"copy_pvma"}, program, sites)
    return found + copies * (1 + len(found) // 3 // len(copies)) if copies else found


def _sites_in(names: AbstractSet[str], program: Program, sites: Sequence[Site]) -> list[int]:
    """Return the sites in functions that have these names in the source."""
    return [
        index
        for index, site in enumerate(sites)
        if program.functions[site.function].tree.name in names
        and site.primitive not in ("enter", "return")
    ]


def set_delays(
    segment: Segment,
    seed: int,
    cycles_per_second: float,
    *,
    epoch: float = EPOCH_SECONDS,
    spin: float = SPIN_SECONDS,
    sleep: float = SLEEP_SECONDS,
    focus: Sequence[int] = (),
) -> None:
    """Let the CPUs of `segment` delay from now on; an `epoch` of 0 seconds turns it off.

    Each CPU draws from `seed`, but what it draws for depends on time.  `focus` are sites at which
    they shall delay more often than elsewhere, see `focus_sites`; of too many, some are drawn.
    """
    stress, cpus = segment.stress[0], segment.stress_cpus
    stress["delay_spin"] = round(spin * cycles_per_second)
    stress["delay_sleep"] = round(sleep * 1e9)
    drawn = random.Random(seed)
    cpus["random"] = [drawn.getrandbits(61) | 1 for _ in cpus]
    chosen = drawn.sample(list(focus), min(len(focus), FOCUS_MAX))
    stress["focus"][: len(chosen)] = chosen
    stress["nr_focus"] = len(chosen)
    stress["delay_epoch"] = round(epoch * cycles_per_second)
