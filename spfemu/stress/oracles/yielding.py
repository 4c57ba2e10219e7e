# SPDX-License-Identifier: MIT
"""Waiting loops let others run, as a hypervisor's guests do: a hunt has more CPUs than cores.

It checks nothing.  Whoever is waited for may need the core on which a loop spins (Linux: paravirt
spinlocks and PLE).  A measured program does not yield: it has no more CPUs than cores.
"""

from spfemu.kernel import around, proceed
from spfemu.layout import CPU, STRESS_CPU
from spfemu.primitives import futex_wait, load, store

PATIENCE = 63
"""Rounds of a loop, less one, between two yields; a power of two less one."""
YIELD_NS = 1000
"""The real kernel makes 50 µs of it, its timer slack."""


@around
def cpu_relax_poll(cpu: int) -> None:
    """Wait a moment, every now and then a longer one that leaves the core to others."""
    proceed(cpu)
    own = load(cpu + CPU.stress)
    rounds = load(own + STRESS_CPU.relaxes) + 1
    store(own + STRESS_CPU.relaxes, rounds)
    if rounds & PATIENCE == 0:
        futex_wait(own + STRESS_CPU.timer, 0, YIELD_NS)
