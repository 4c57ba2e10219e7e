# SPDX-License-Identifier: MIT
"""A grace period ends without waiting for the CPUs that are running.

Synthetic: what RCU is for.

A VMA is freed and used again while a speculative fault copies it.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "grace_period_beside_a_lookup"


@kernel
def rcu_cpu_quiescent(target: int, gp: int) -> int:
    """Say that it was."""
    return 1
