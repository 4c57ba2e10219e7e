# SPDX-License-Identifier: MIT
"""A page fault of each protocol, alone on its machine: one CPU, no writer, every fault afresh."""

import pytest
from support import AREA, ROUNDS, WARMUP_ROUNDS, note_ratio, ratio_in_turns, seconds

from spfemu.events import ABORT_REASONS, Event
from spfemu.layout import PAGE_SIZE

PAGES = 4096
LENGTH = PAGES * PAGE_SIZE
FRAMES = 2 * PAGES + 128
"""The area twice, since its frames may still be on the way back, and page tables."""


def renew(machine):
    """Map the area afresh: the next round faults in every page."""
    machine.checked("map_afresh", AREA, LENGTH)


def round_seconds(machine, access):
    renew(machine)
    return seconds(machine.checked, f"loop_{access}_pages", AREA, AREA + LENGTH)


@pytest.mark.parametrize("protocol", ["bare", "classic", "spf"])
@pytest.mark.parametrize("access", ["read", "write"])
def test_bench_fault(benchmark, measure, machine, protocol, access):
    benchmark.group = f"fault-{access}"
    under_test = machine(protocol, frames=FRAMES)
    renew(under_test)

    median = measure(
        under_test.checked,
        f"loop_{access}_pages",
        AREA,
        AREA + LENGTH,
        setup=lambda: renew(under_test),
    )

    rounds = ROUNDS + WARMUP_ROUNDS if benchmark.enabled else 1
    assert under_test.event(Event.PGFAULT) == rounds * PAGES
    aborts = under_test.event(Event.SPF_ABORT)
    assert aborts == sum(under_test.event(reason) for reason in ABORT_REASONS)
    if median is not None:
        benchmark.extra_info["faults_per_round"] = PAGES
        benchmark.extra_info["faults_per_second"] = PAGES / median
        benchmark.extra_info["ns_per_fault"] = median / PAGES * 1e9
        benchmark.extra_info["aborts_per_round"] = aborts / rounds
        bare = machine("bare", frames=FRAMES)
        compared = ratio_in_turns(
            lambda: round_seconds(under_test, access), lambda: round_seconds(bare, access)
        )
        note_ratio(benchmark, "ratio_to_bare", compared)
