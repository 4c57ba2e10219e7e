# SPDX-License-Identifier: MIT
"""A speculative fault takes the page-table lock as one under the mmap lock does.

Synthetic: the two ways through the gate are one, so that nothing asks whether the fault may still
commit.

A page is mapped where the program has unmapped memory.
"""

from spfemu.kernel import kernel
from spfemu.mm.memory import pte_map_lock_nonspec

PROTOCOL = "spf"
PROMISE = "COMMIT_RIGHTS"
SCHEDULE = "write_in_the_gate_beside_munmap"


@kernel
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Ask nothing."""
    return pte_map_lock_nonspec(cpu, vmf)
