# SPDX-License-Identifier: MIT
"""The words of an rw_semaphore that say who has it: `count` and `owner` (see rwsem.py).

The owner word is for spinners and for crash reports: a hint, except that a writer's entry is exact.
"""

from enum import IntEnum

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, RWSEM
from spfemu.mm.irq import CpuState
from spfemu.mm.osq import cpu_by_number
from spfemu.primitives import atomic_fetch_and, cmpxchg_relaxed, load, read_once, write_once

RWSEM_WRITER_LOCKED = 1 << 0
RWSEM_FLAG_WAITERS = 1 << 1
RWSEM_FLAG_HANDOFF = 1 << 2
RWSEM_READER_SHIFT = 8
RWSEM_READER_BIAS = 1 << RWSEM_READER_SHIFT
RWSEM_READER_MASK = -RWSEM_READER_BIAS
RWSEM_LOCK_MASK = RWSEM_WRITER_LOCKED | RWSEM_READER_MASK
RWSEM_READ_FAILED_MASK = RWSEM_WRITER_LOCKED | RWSEM_FLAG_WAITERS | RWSEM_FLAG_HANDOFF

RWSEM_OWNER_MASK = (1 << 32) - 1
"""Bits of RWSEM.owner that hold the CPU's index plus one."""
RWSEM_READER_OWNED = 1 << 32
"""RWSEM.owner: the CPU named is the last known of the readers."""
RWSEM_NONSPINNABLE = 1 << 33
"""RWSEM.owner: readers have held the lock for so long that spinning for it is a waste."""


class OwnerState(IntEnum):
    """What a spinner can tell about the owner (Linux: enum owner_state)."""

    NULL = 0
    WRITER = 1
    READER = 2
    NONSPINNABLE = 3


@kernel
def rwsem_set_owner(cpu: int, sem: int) -> None:
    """Name the writing owner."""
    write_once(sem + RWSEM.owner, load(cpu + CPU.id) + 1)


@kernel
def rwsem_set_reader_owned(sem: int, number: int) -> None:
    """Name a reading owner (CPU index plus one); says nothing about the other readers."""
    keep = read_once(sem + RWSEM.owner) & RWSEM_NONSPINNABLE
    write_once(sem + RWSEM.owner, number | RWSEM_READER_OWNED | keep)


@kernel
def rwsem_clear_nonspinnable(sem: int) -> None:
    """Allow spinning again: the phase of readers that forbade it is over."""
    if read_once(sem + RWSEM.owner) & RWSEM_NONSPINNABLE:
        atomic_fetch_and(sem + RWSEM.owner, ~RWSEM_NONSPINNABLE)


@slowpath
def rwsem_set_nonspinnable(sem: int) -> None:
    """Forbid spinning until these readers are gone; does nothing if they are gone already."""
    owner = read_once(sem + RWSEM.owner)
    while owner & RWSEM_READER_OWNED and owner & RWSEM_NONSPINNABLE == 0:
        found = cmpxchg_relaxed(sem + RWSEM.owner, owner, owner | RWSEM_NONSPINNABLE)
        if found == owner:
            return
        owner = found


@kernel
def rwsem_owner_state(owner: int) -> int:
    """Classify an owner word."""
    if owner & RWSEM_NONSPINNABLE:
        return OwnerState.NONSPINNABLE
    if owner & RWSEM_READER_OWNED:
        return OwnerState.READER
    return OwnerState.WRITER if owner else OwnerState.NULL


@kernel
def rwsem_owner_running(cpu: int, owner: int) -> int:
    """Tell whether the CPU that an owner word names is running (Linux: owner_on_cpu)."""
    holder = cpu_by_number(cpu, owner & RWSEM_OWNER_MASK)
    return read_once(holder + CPU.state) == CpuState.RUNNING
