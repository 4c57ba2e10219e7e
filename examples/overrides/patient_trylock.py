# SPDX-License-Identifier: MIT
"""Try for a taken page-table lock a few times before the speculative fault gives up."""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.primitives import cmpxchg_acquire, cpu_relax, load

TRIES = 8


@kernel
def spin_trylock(cpu: int, lock: int) -> int:
    """Take `lock` if it comes free soon; returns 1 if taken."""
    for _ in range(TRIES):
        if cmpxchg_acquire(lock, 0, load(cpu + CPU.id) + 1) == 0:
            return 1
        cpu_relax()
    return 0
