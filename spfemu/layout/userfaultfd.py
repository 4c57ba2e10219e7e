# SPDX-License-Identifier: MIT
"""Who serves faults in user space, and the faults that wait."""

from spfemu.layout.struct import Struct, word


class USERFAULTFD_CTX(Struct, pad_to_line=True):
    """userfaultfd_ctx: who serves faults of some VMAs (Linux 5.12, fs/userfaultfd.c)."""

    lock = word("spinlock over the list of faults", lock="atomic")
    head = word("first UFFD_WAIT or 0", lock="lock")
    tail = word("last UFFD_WAIT or 0", lock="lock")
    event = word("futex word: counted up when a fault begins to wait", lock="atomic")
    refcount = word("1 while open, plus faults inside; 0: free", lock="atomic")
    released = word("1: being closed, no fault shall wait any more", lock="owner")
    mm = word("the mm of its VMAs", lock="owner")
    next_free = word("next free slot", lock="uffd_lock")


class UFFD_WAIT(Struct):
    """userfaultfd_wait_queue: a fault that waits for a monitor, with its message; one per CPU."""

    state = word("UffdState: 0 not queued, 1 pending, 2 read by the monitor", lock="context's")
    next = word("next UFFD_WAIT of the context or 0", lock="context's")
    prev = word("previous UFFD_WAIT of the context or 0", lock="context's")
    cpu = word("address of the waiting CPU's block", lock="owner")
    address = word("page that is missing or write-protected [bytes]", lock="owner")
    flags = word("MSG_* bits", lock="owner")
