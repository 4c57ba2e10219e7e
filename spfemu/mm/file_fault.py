# SPDX-License-Identifier: MIT
"""Faults in mappings of files (Linux 5.12, mm/memory.c: do_fault)."""

from spfemu.kernel import slowpath
from spfemu.mm.flags import VmFault


@slowpath
def do_fault(cpu: int, vmf: int) -> int:
    """Handle a fault on an empty pte of a file: nothing is in any file yet, so all is behind it."""
    return VmFault.SIGBUS
