# SPDX-License-Identifier: MIT
"""A thread that makes huge pages of the words of `fork_ops`, and takes parts of them away again."""

from fork_ops import AREA, PAGES, Scratch, fork_scratch

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT, PAGE_SIZE
from spfemu.mm.flags import Madv, Prot, Pte
from spfemu.mm.khugepaged import Scan, hpage_collapse
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_madvise, sys_mprotect
from spfemu.primitives import load, read_once, xchg

BEHIND = AREA + (PAGES << PAGE_SHIFT)
"""Pages of the same huge page that hold no words."""
TURNS = 12


@kernel
def huge_disturb(cpu: int, turn: int) -> int:
    """Split the huge page in one of two ways; 0 or a negative errno."""
    page = BEHIND + (turn % 64) * PAGE_SIZE
    if turn % 2 == 0:
        return sys_madvise(cpu, page, PAGE_SIZE, Madv.DONTNEED)
    # the VMA is one again at the end
    error = sys_mprotect(cpu, page, PAGE_SIZE, Prot.READ)
    return error if error != 0 else sys_mprotect(cpu, page, PAGE_SIZE, Prot.READ | Prot.WRITE)


@kernel
def huge_collapser(cpu: int) -> int:
    """Collapse and disturb until the forker ends, TURNS times at least; 0 or a negative errno."""
    mm = load(cpu + CPU.mm)
    turn = 0
    error = 0
    while error == 0 and (turn < TURNS or read_once(fork_scratch(cpu) + Scratch.STOP) == 0):
        # not again and again what is split already: VMAs would wait for grace periods faster than
        # these end
        if hpage_collapse(cpu, mm, AREA, 1) == Scan.SUCCEED or turn == 0:
            error = huge_disturb(cpu, turn)
            turn += 1
        cond_resched(cpu)
    return error


# Mutants


@kernel
def mutant_collapse_without_flush(cpu: int, mm: int, slot: int) -> int:
    """Let CPUs go on writing to the pages that are being copied."""
    return xchg(slot, 0)


@kernel
def mutant_split_all_clean(cpu: int, mm: int, slot: int) -> int:
    """Forget that the huge entry did not allow writing: what is shared becomes writable."""
    return xchg(slot, read_once(slot) & ~Pte.PRESENT) | Pte.RW
