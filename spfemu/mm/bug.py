# SPDX-License-Identifier: MIT
"""Kernel assertions: what VM_BUG_ON checks in the kernel stops the CPU here."""

from enum import IntEnum

from spfemu.kernel import kernel, notrace
from spfemu.mm.config import CONFIG_DEBUG_VM
from spfemu.primitives import panic


class Bug(IntEnum):
    """What an assertion found; a native worker exits with this code."""

    SEQ_ODD_ON_ENTER = 65
    SEQ_ODD_ON_LEAVE = 66
    RWSEM_UNDERFLOW = 67
    RCU_UNBALANCED = 68
    IRQS_ALREADY_OFF = 69
    REFCOUNT_UNDERFLOW = 70
    RBTREE_CORRUPT = 71
    GATHER_NESTED = 72
    SLEEP_IN_ATOMIC = 73
    TABLE_MISSING = 74
    MM_IN_USE = 75
    OOPS = 76  # a script: memory outside the segment is about to be touched
    PERCPU_READ_NESTED = 79
    PERCPU_NOT_ANNOUNCED = 77
    PROMISE_BROKEN = 78  # an oracle of spfemu/stress has seen it: see STRESS
    VMA_NOT_LOCKED = 80


@notrace
@kernel
def vm_bug_on(condition: int, code: int) -> None:
    """Stop this CPU with `code` if `condition` holds (Linux: VM_BUG_ON_MM)."""
    if CONFIG_DEBUG_VM and condition != 0:
        panic(code)
