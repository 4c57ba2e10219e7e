# SPDX-License-Identifier: MIT
"""How an oracle says that a promise is broken."""

from spfemu.kernel import slowpath
from spfemu.layout import CPU, STRESS, STRESS_CPU
from spfemu.mm.bug import Bug
from spfemu.primitives import (
    cmpxchg_acquire,
    load,
    panic,
    read_cycles,
    smp_store_release,
    store,
    this_cpu,
)


@slowpath
def stress_violation(kind: int, a: int, b: int) -> None:
    """Note that promise `kind` is broken, with two details, and stop this CPU.

    Only the first one of a segment is kept.  The segment must have been made with ``stress=1``.
    """
    cpu = this_cpu()
    stress = load(load(cpu + CPU.stress) + STRESS_CPU.stress)
    if cmpxchg_acquire(stress + STRESS.violation, 0, 1) == 0:
        store(stress + STRESS.kind, kind)
        store(stress + STRESS.cpu, cpu)
        store(stress + STRESS.a, a)
        store(stress + STRESS.b, b)
        store(stress + STRESS.time, read_cycles())
        # pairs with an acquire load by who reads the record
        smp_store_release(stress + STRESS.frozen, 1)
    panic(Bug.PROMISE_BROKEN)
