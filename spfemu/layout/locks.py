# SPDX-License-Identifier: MIT
"""Locks that sleep, and what a CPU waits in."""

from spfemu.layout.struct import Struct, word


class RWSEM(Struct):
    """rw_semaphore (Linux 5.12, include/linux/rwsem.h)."""

    count = word("reader count and flag bits, see mm/rwsem.py", lock="atomic")
    owner = word(
        "CPU of the owner plus one (a reader: the last known), RWSEM_* flags", lock="count"
    )
    osq = word("tail of the optimistic spin queue: CPU plus one, or 0", lock="atomic")
    wait_lock = word("spinlock over the waiter list", lock="atomic")
    wait_head = word("first waiter (address of an RWSEM_WAITER) or 0", lock="wait_lock")
    wait_tail = word("last waiter or 0", lock="wait_lock")


class RWSEM_WAITER(Struct):
    """A CPU queued on an rw_semaphore; lives in its CPU block."""

    next = word("next waiter or 0", lock="wait_lock")
    prev = word("previous waiter or 0", lock="wait_lock")
    type = word("0 waits for reading, 1 for writing, 2 was granted the lock", lock="wait_lock")
    task = word("futex word: bit 0 while waiting, bit 1 once signalled", lock="atomic")
    deadline = word("cycle count after which the waiter asks for handoff", lock="owner")
    cpu = word("address of the waiting CPU's block", lock="owner")


class PERCPU_RWSEM(Struct):
    """percpu_rw_semaphore (Linux 5.12, include/linux/percpu-rwsem.h); readers are in their CPUs."""

    rss = word("writers inside or coming: readers have to look at `block`", lock="atomic")
    block = word("1 while a writer has it or waits for the readers inside", lock="atomic")


class OSQ_NODE(Struct):
    """Node of the optimistic spin queue (Linux 5.12, kernel/locking/osq_lock.c)."""

    next = word("next node (address) or 0", lock="atomic")
    prev = word("previous node (address) or 0", lock="atomic")
    locked = word("1 when the queue's lock has been passed to this node", lock="atomic")
