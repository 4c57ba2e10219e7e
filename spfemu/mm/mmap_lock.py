# SPDX-License-Identifier: MIT
"""The mmap lock and, inside its interface, the mmap sequence count.

The interface is Linux's (5.12, include/linux/mmap_lock.h); the sequence count is that of the
speculative-page-fault series (v2, patch 10: "mm: add mmap_seq"), changed here and nowhere else:

    mmap_write_lock, mmap_write_lock_killable,     enter, after the lock was taken, only if it was
    mmap_write_trylock
    mmap_write_unlock, mmap_write_downgrade        leave, before the lock is released

The count is odd while a writer is inside.  A reader that found it even, and later unchanged, knows
that no writer overlapped; it says nothing about CPUs that hold the lock for reading.  Plain
increments do: their writer holds the lock exclusively.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, VMA, VMF
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.config import CONFIG_MMAP_SEQ_OWN_LINE
from spfemu.mm.flags import FaultFlag
from spfemu.mm.rwsem import (
    down_read,
    down_read_trylock,
    down_write,
    down_write_killable,
    down_write_trylock,
    downgrade_write,
    up_read,
    up_write,
)
from spfemu.mm.vma_write import vma_end_read, vma_end_write_all
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import load, read_once, smp_rmb, smp_wmb, store, write_once

HELD_READ = 1
"""CPU.mmap_lock_held: for reading."""
HELD_WRITE = 2
"""CPU.mmap_lock_held: for writing."""
HELD_OTHER = 4
"""Bit of CPU.mmap_lock_held: the lock is not that of the mm that the CPU runs."""


@kernel
def mmap_seq_addr(mm: int) -> int:
    """Return the address of the sequence count: beside the lock or on a line of its own."""
    if CONFIG_MMAP_SEQ_OWN_LINE:
        return mm + MM.mmap_seq_own
    return mm + MM.mmap_seq


@kernel
def mmap_seq_write_enter(mm: int) -> None:
    """Make the count odd; the caller has just taken the lock for writing.

    The barrier keeps the writer's changes behind the increment; it pairs with the read barrier in
    mmap_seq_read_check: who sees a change sees the odd count too.
    """
    seq = read_once(mmap_seq_addr(mm))
    vm_bug_on(seq & 1, Bug.SEQ_ODD_ON_ENTER)
    write_once(mmap_seq_addr(mm), seq + 1)
    smp_wmb()


@kernel
def mmap_seq_write_leave(mm: int) -> None:
    """Make the count even again; the caller is about to release the lock.

    The barrier keeps the increment behind the writer's changes; it pairs with the read barrier in
    mmap_seq_read_start: who sees the even count sees all changes.
    """
    smp_wmb()
    seq = read_once(mmap_seq_addr(mm)) + 1
    vm_bug_on(seq & 1, Bug.SEQ_ODD_ON_LEAVE)
    write_once(mmap_seq_addr(mm), seq)


@kernel
def mmap_seq_read_start(mm: int) -> int:
    """Return the count, which may be odd: then the caller must not go on.

    The barrier keeps the caller's reads behind that of the count; it pairs with the write barrier
    in mmap_seq_write_leave.
    """
    seq = read_once(mmap_seq_addr(mm))
    smp_rmb()
    return seq


@kernel
def mmap_seq_read_check(cpu: int, mm: int, seq: int, fail_event: int) -> int:
    """Return 1 if no writer entered since `seq` was read, else 0 and count `fail_event`.

    The barrier keeps the caller's reads before that of the count; it pairs with the write barrier
    in mmap_seq_write_enter.
    """
    smp_rmb()
    if read_once(mmap_seq_addr(mm)) == seq:
        return 1
    count_vm_event(cpu, fail_event)
    return 0


@kernel
def mmap_read_lock(cpu: int, mm: int) -> None:
    """Lock the mm's layout for reading."""
    down_read(cpu, mm + MM.mmap_lock)
    store(cpu + CPU.mmap_lock_held, HELD_READ)


@slowpath
def mmap_read_lock_other(cpu: int, mm: int) -> None:
    """Lock an mm for reading that may not be the one that this CPU runs, for longer work on it.

    The note keeps a reclaimer from taking the lock for that of its own mm.
    """
    mmap_read_lock(cpu, mm)
    if load(cpu + CPU.mm) != mm:
        store(cpu + CPU.mmap_lock_held, HELD_READ | HELD_OTHER)


@kernel
def mmap_read_trylock(cpu: int, mm: int) -> int:
    """Lock for reading if that needs no waiting; returns 1 if locked."""
    if not down_read_trylock(cpu, mm + MM.mmap_lock):
        return 0
    store(cpu + CPU.mmap_lock_held, HELD_READ)
    return 1


@kernel
def mmap_read_unlock(cpu: int, mm: int) -> None:
    """Release a lock held for reading."""
    store(cpu + CPU.mmap_lock_held, 0)
    up_read(cpu, mm + MM.mmap_lock)


@kernel
def mmap_write_lock(cpu: int, mm: int) -> None:
    """Lock the mm's layout for writing."""
    down_write(cpu, mm + MM.mmap_lock)
    store(cpu + CPU.mmap_lock_held, HELD_WRITE)
    mmap_seq_write_enter(mm)


@kernel
def mmap_write_lock_killable(cpu: int, mm: int) -> int:
    """Lock for writing; returns 0, or -EINTR on a fatal signal, the count unchanged."""
    error = down_write_killable(cpu, mm + MM.mmap_lock)
    if error:
        return error
    store(cpu + CPU.mmap_lock_held, HELD_WRITE)
    mmap_seq_write_enter(mm)
    return 0


@kernel
def mmap_write_trylock(cpu: int, mm: int) -> int:
    """Lock for writing if nobody holds or awaits the lock; returns 1 if locked."""
    if not down_write_trylock(cpu, mm + MM.mmap_lock):
        return 0
    store(cpu + CPU.mmap_lock_held, HELD_WRITE)
    mmap_seq_write_enter(mm)
    return 1


@kernel
def mmap_write_unlock(cpu: int, mm: int) -> None:
    """Release a lock held for writing."""
    vma_end_write_all(cpu, mm)
    mmap_seq_write_leave(mm)
    store(cpu + CPU.mmap_lock_held, 0)
    up_write(cpu, mm + MM.mmap_lock)


@kernel
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """Go on under the lock for reading: speculation is allowed again from here."""
    vma_end_write_all(cpu, mm)
    mmap_seq_write_leave(mm)
    store(cpu + CPU.mmap_lock_held, HELD_READ)
    downgrade_write(cpu, mm + MM.mmap_lock)


@kernel
def release_fault_lock(cpu: int, vmf: int) -> None:
    """Release the lock under which a fault found its VMA, before VM_FAULT_RETRY is returned.

    That is the mmap lock, or the VMA's own (Linux 6.6, include/linux/mm.h).
    """
    vma = load(vmf + VMF.vma)
    if load(vmf + VMF.flags) & FaultFlag.VMA_LOCK:
        vma_end_read(cpu, vma)
    else:
        mmap_read_unlock(cpu, load(vma + VMA.vm_mm))
