# SPDX-License-Identifier: MIT
"""Every fault holds the mmap lock for reading (Linux up to 6.3).

Two atomic updates of one cache line per fault, shared by all threads of the process.
"""

from spfemu.kernel import kernel
from spfemu.mm.fault import do_locked_fault
from spfemu.mm.memory import pte_map_lock_nonspec


@kernel
def do_user_addr_fault(cpu: int, address: int, flags: int) -> int:
    """Handle a fault of user code; returns VM_FAULT_* bits."""
    return do_locked_fault(cpu, address, flags)


@kernel
def pte_map_lock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before filling an empty pte; returns 1 (it cannot fail)."""
    return pte_map_lock_nonspec(cpu, vmf)


@kernel
def pte_spinlock(cpu: int, vmf: int) -> int:
    """Take the page-table lock before changing a present pte; returns 1 (it cannot fail)."""
    return pte_map_lock_nonspec(cpu, vmf)
