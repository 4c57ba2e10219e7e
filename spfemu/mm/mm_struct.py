# SPDX-License-Identifier: MIT
"""mm_structs and who keeps them: users of the mappings, and references to the struct alone.

Answers to kernel/fork.c and include/linux/sched/mm.h (Linux 5.12).  All users together hold one of
the references of `mm_count`; a userfaultfd context holds another, so it may outlive the process.
"""

from spfemu.kernel import kernel
from spfemu.layout import MM, SYSTEM
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.page_alloc import virt_to_page
from spfemu.mm.pgtable import free_table_now
from spfemu.mm.slab import slab_give, slab_take
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    cmpxchg,
    load,
    read_once,
    store,
)


@kernel
def mm_slot_alloc(cpu: int) -> int:
    """Take a free mm_struct; 0 if there is none."""
    return slab_take(cpu, SYSTEM.mm_slots_lock, SYSTEM.mm_free, MM.next_free)


@kernel
def mm_slot_free(cpu: int, mm: int) -> None:
    """Give back an mm_struct that nobody refers to."""
    store(mm + MM.in_use, 0)
    slab_give(cpu, SYSTEM.mm_slots_lock, SYSTEM.mm_free, MM.next_free, mm)


@kernel
def mmget(mm: int) -> None:
    """Count one user more; the caller knows that there is another."""
    atomic_fetch_add_relaxed(mm + MM.mm_users, 1)


@kernel
def mmget_not_zero(mm: int) -> int:
    """Count one user more if there is any; returns 1 if counted.

    The struct is the caller's by a reference, or one of the fixed array.  The full order pairs with
    the release with which mm_alloc hands the mm out.
    """
    users = read_once(mm + MM.mm_users)
    while users != 0:
        found = cmpxchg(mm + MM.mm_users, users, users + 1)
        if found == users:
            return 1
        users = found
    return 0


@kernel
def mmgrab(mm: int) -> None:
    """Take a reference to the struct, which keeps no mapping; the caller knows of another."""
    atomic_fetch_add_relaxed(mm + MM.mm_count, 1)


@kernel
def mmdrop(cpu: int, mm: int) -> None:
    """Drop a reference; with the last one the top-level table and the struct are free.

    The full order of the decrement puts what other holders did before that.
    """
    count = atomic_fetch_add(mm + MM.mm_count, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        free_table_now(cpu, virt_to_page(cpu, load(mm + MM.pgd)))
        mm_slot_free(cpu, mm)
