# SPDX-License-Identifier: MIT
"""get_user_pages: references to the frames behind a range of user memory (Linux 5.12, mm/gup.c).

Who reads or writes user memory by its frames (direct I/O, RDMA, vmsplice) takes references first,
and *pins* the frames (FOLL_PIN) if it is going to access them.  The fast way takes no lock: it
walks the page tables with interrupts off, takes a reference to what it finds, and looks at the
entry once more.  What it cannot take so is left to the slow way, under the mmap lock.

Why a walk without a lock may touch a frame's count at all.  Everybody who takes a frame out of an
entry and means to drop the entry's reference flushes TLBs first, and a flush waits for the
interrupt to be served by every CPU that runs the mm: this one has interrupts off from before it
reads the entry until it has taken, or given back, its reference.  So a walk that has read an entry
is finished before the entry's reference is dropped:

* the count that it finds is at least 1, that of the entry.  The kernel still adds "unless zero",
  for architectures that flush without interrupts;
* `put_page` may go on treating a count of 1 as its own, without an atomic update: it comes after
  the flush (`tlb_batch_free`, `wp_page_copy`), or the frame was never in an entry (`put_new_page`);
* `tlb_remove_page` comes before the flush, and may see a count of 1 that a walk is about to raise.
  It may link the frame by its ``lru`` all the same: what it must exclude is a second unmapper,
  which needs a second entry, and with it a second reference;
* a reference given back with interrupts off is never the last.

Reuse of a frame in place (`wp_can_reuse`, `can_change_pte_writable`) goes by the count under the
page-table lock.  A walk that comes too late to be counted finds the entry of this mm, whose frame
stays the same; one in another mm finds an entry there, which is counted.

Fork is different: it counts nothing but makes entries read-only, after which the first write would
take the frame away from who has pinned it.  It copies pinned frames instead of sharing them
(`page_needs_cow_for_dma`), and raises ``write_protect_seq`` around that: a pin that might have come
after fork's look at the frame is given back.  As in Linux up to 5.18, that is all that keeps a pin
and the entry together: a pinned frame that is made read-only otherwise and then written to is
copied, because its count is not 1.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SHIFT, PAGE_SIZE, VMA, WORD
from spfemu.mm.flags import PTE_ADDR_MASK, Errno, FaultFlag, Foll, Pte, Vm, VmFault
from spfemu.mm.huge_memory import follow_trans_huge_pmd
from spfemu.mm.irq import irq_poll, local_irq_disable, local_irq_enable
from spfemu.mm.memory import handle_mm_fault
from spfemu.mm.mmap_lock import mmap_read_lock, mmap_read_unlock
from spfemu.mm.page_alloc import put_page, virt_to_page
from spfemu.mm.pgtable import (
    find_pmd,
    pgd_offset,
    pmd_bad,
    pmd_huge,
    pmd_offset,
    pte_lockptr,
    pte_offset,
    pud_offset,
)
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.vma import find_vma
from spfemu.mm.vmstat import count_vm_event, count_vm_events
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    cmpxchg,
    load,
    read_once,
    smp_load_acquire,
    store,
    write_once,
)

GUP_PIN_COUNTING_BIAS = 1024
"""References that a pin counts for, so that pinned frames can be told from others."""
FOLL_PIN = int(Foll.PIN)
FOLL_WRITE = int(Foll.WRITE)


@kernel
def gup_refs(gup_flags: int) -> int:
    """Return how many references one frame is taken with."""
    return GUP_PIN_COUNTING_BIAS if gup_flags & FOLL_PIN else 1


@kernel
def page_maybe_dma_pinned(page: int) -> int:
    """Tell whether the frame may be pinned; one with very many references seems so too."""
    return read_once(page + PAGE.refcount) >= GUP_PIN_COUNTING_BIAS


@kernel
def page_needs_cow_for_dma(mm: int, page: int) -> int:
    """Tell whether a fork of `mm` has to copy the frame at once (include/linux/mm.h)."""
    return read_once(mm + MM.has_pinned) and page_maybe_dma_pinned(page)


@kernel
def page_ref_add_unless_zero(page: int, refs: int) -> int:
    """Take references to a frame if it has any; returns 1 if so.

    Of full order: before the entry is read again, and before the sequence count of forks.
    """
    count = read_once(page + PAGE.refcount)
    while count != 0:
        found = cmpxchg(page + PAGE.refcount, count, count + refs)
        if found == count:
            return 1
        count = found
    return 0


@kernel
def put_page_refs(cpu: int, page: int, refs: int) -> None:
    """Drop references that were taken together; as `put_page` does for one."""
    if refs != 1:
        atomic_fetch_add(page + PAGE.refcount, 1 - refs)
    put_page(cpu, page)


@kernel
def unpin_user_page(cpu: int, page: int) -> None:
    """Give back what `pin_user_pages_fast` took."""
    count_vm_event(cpu, Event.GUP_PUT)
    put_page_refs(cpu, page, GUP_PIN_COUNTING_BIAS)


@kernel
def put_user_page(cpu: int, page: int) -> None:
    """Give back what `get_user_pages_fast` took."""
    count_vm_event(cpu, Event.GUP_PUT)
    put_page(cpu, page)


# The fast way


@kernel
def gup_pte(cpu: int, pte: int, gup_flags: int) -> int:
    """Take the frame of an entry with interrupts off; returns its PAGE, or 0.

    0 also for the zero page, and for an entry that changed (gup_pte_range).
    """
    need = Pte.PRESENT | Pte.RW if gup_flags & FOLL_WRITE else Pte.PRESENT
    entry = read_once(pte)
    if entry & (need | Pte.SPECIAL) != need:
        return 0
    page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
    if page_ref_add_unless_zero(page, gup_refs(gup_flags)) == 0:
        return 0
    if read_once(pte) != entry:
        count_vm_event(cpu, Event.GUP_RETREAT_PTE)
        put_page_refs(cpu, page, gup_refs(gup_flags))
        return 0
    return page


@kernel
def gup_address(cpu: int, mm: int, address: int, gup_flags: int) -> int:
    """Walk to `address` with interrupts off, reading each level once; its PAGE with a reference.

    Returns 0 if anything is missing (gup_pgd_range).
    """
    pgd = read_once(pgd_offset(mm, address))
    if pmd_bad(pgd):
        return 0
    pud = read_once(pud_offset(pgd, address))
    if pmd_bad(pud):
        return 0
    pmd = read_once(pmd_offset(pud, address))
    if pmd_bad(pmd):
        return 0
    return gup_pte(cpu, pte_offset(pmd, address), gup_flags)


@kernel
def lockless_pages_from_mm(
    cpu: int, mm: int, start: int, nr_pages: int, gup_flags: int, pages: int
) -> int:
    """Take frames from `start` on, up to the first that cannot be had; returns their number.

    The acquire and the second look at the count pair with the barriers in
    `write_protect_seqcount_begin` and `_end`.
    """
    seq = 0
    if gup_flags & FOLL_PIN:
        seq = smp_load_acquire(mm + MM.write_protect_seq)
        if seq & 1:
            return 0
    nr_pinned = 0
    local_irq_disable(cpu)
    while nr_pinned < nr_pages:
        page = gup_address(cpu, mm, start + (nr_pinned << PAGE_SHIFT), gup_flags)
        if page == 0:
            break
        store(pages + nr_pinned * WORD, page)
        nr_pinned += 1
    local_irq_enable(cpu)
    if gup_flags & FOLL_PIN and read_once(mm + MM.write_protect_seq) != seq:
        count_vm_event(cpu, Event.GUP_RETREAT_FORK)
        for i in range(nr_pinned):
            put_page_refs(cpu, load(pages + i * WORD), GUP_PIN_COUNTING_BIAS)
        return 0
    count_vm_events(cpu, Event.GUP_FAST, nr_pinned)
    return nr_pinned


@kernel
def internal_get_user_pages_fast(
    cpu: int, start: int, nr_pages: int, gup_flags: int, pages: int
) -> int:
    """Take frames without a lock, the rest under the mmap lock; their number or a negative errno.

    `pages` is room for their PAGEs.  An error after some have been taken shows as a smaller number.
    """
    mm = load(cpu + CPU.mm)
    limit = load(mm + MM.task_size)
    start = start & -PAGE_SIZE
    if start < 0 or start + (nr_pages << PAGE_SHIFT) > limit:
        return -Errno.EFAULT
    if gup_flags & FOLL_PIN and read_once(mm + MM.has_pinned) == 0:
        # before the pins: see write_protect_seqcount_begin
        write_once(mm + MM.has_pinned, 1)
    nr_pinned = lockless_pages_from_mm(cpu, mm, start, nr_pages, gup_flags, pages)
    if nr_pinned == nr_pages or gup_flags & Foll.FAST_ONLY:
        return nr_pinned
    rest = nr_pages - nr_pinned
    start += nr_pinned << PAGE_SHIFT
    more = get_user_pages_unlocked(cpu, mm, start, rest, gup_flags, pages + nr_pinned * WORD)
    if more < 0:
        return nr_pinned if nr_pinned != 0 else more
    return nr_pinned + more


@kernel
def get_user_pages_fast(cpu: int, start: int, nr_pages: int, gup_flags: int, pages: int) -> int:
    """Take references to frames; their number or a negative errno.  `put_user_page` drops one."""
    if gup_flags & (Foll.PIN | Foll.LONGTERM):
        return -Errno.EINVAL
    return internal_get_user_pages_fast(cpu, start, nr_pages, gup_flags | Foll.GET, pages)


@kernel
def pin_user_pages_fast(cpu: int, start: int, nr_pages: int, gup_flags: int, pages: int) -> int:
    """Pin frames; their number or a negative errno.  `unpin_user_page` ends that of one.

    FOLL_LONGTERM is taken: frames of anonymous memory may be kept for as long as one likes.
    """
    if gup_flags & Foll.GET:
        return -Errno.EINVAL
    return internal_get_user_pages_fast(cpu, start, nr_pages, gup_flags | Foll.PIN, pages)


# The slow way


@kernel
def check_vma_flags(vma: int, gup_flags: int) -> int:
    """Return 0 if the VMA allows the access, else -EFAULT."""
    need = Vm.WRITE if gup_flags & FOLL_WRITE else Vm.READ
    return 0 if load(vma + VMA.vm_flags) & need else -Errno.EFAULT


@kernel
def follow_page_pte(cpu: int, mm: int, address: int, gup_flags: int) -> int:
    """Take the frame behind `address` under the page-table lock; its PAGE, or 0.

    The entry has a reference, so another may be added without looking (try_grab_page).
    """
    slot = find_pmd(mm, address)
    pmd = read_once(slot) if slot != 0 else 0
    need = Pte.PRESENT | Pte.RW if gup_flags & FOLL_WRITE else Pte.PRESENT
    if pmd_huge(pmd):
        return follow_trans_huge_pmd(cpu, mm, slot, address, need, gup_refs(gup_flags))
    if pmd_bad(pmd):
        return 0
    page = 0
    ptl = pte_lockptr(cpu, pmd)
    spin_lock(cpu, ptl)
    entry = read_once(pte_offset(pmd, address))
    if entry & need == need:
        page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
        atomic_fetch_add_relaxed(page + PAGE.refcount, gup_refs(gup_flags))
    spin_unlock(ptl)
    return page


@kernel
def faultin_page(cpu: int, mm: int, vma: int, address: int, flags: int) -> int:
    """Let a fault bring what is missing; 0 or a negative errno.  Needs the mmap lock for reading.

    -EBUSY: the fault had to wait, and has released the lock.  `flags` are FAULT_FLAG_* bits; only
    with ALLOW_RETRY may it.
    """
    result = handle_mm_fault(cpu, mm, vma, address, flags)
    if result & VmFault.OOM:
        return -Errno.ENOMEM
    if result & (VmFault.SIGBUS | VmFault.SIGSEGV):
        return -Errno.EFAULT
    return -Errno.EBUSY if result & VmFault.RETRY else 0


@kernel
def get_user_page(
    cpu: int, mm: int, vma: int, address: int, gup_flags: int, fault_flags: int
) -> int:
    """Take the frame behind an address of `vma`, faulting as often as it needs; or an errno.

    As of `faultin_page`, and -EINTR after a fatal signal.
    """
    while True:
        if read_once(cpu + CPU.fatal_signal) != 0:
            return -Errno.EINTR
        irq_poll(cpu)
        page = follow_page_pte(cpu, mm, address, gup_flags)
        if page != 0:
            return page
        count_vm_event(cpu, Event.GUP_FAULT)
        error = faultin_page(cpu, mm, vma, address, fault_flags)
        if error != 0:
            return error


@kernel
def get_user_page_locked(cpu: int, mm: int, address: int, gup_flags: int, fault_flags: int) -> int:
    """Take the frame behind any address under the mmap lock for reading; as `get_user_page`."""
    vma = find_vma(cpu, mm, address)
    if vma == 0 or load(vma + VMA.vm_start) > address:
        return -Errno.EFAULT
    error = check_vma_flags(vma, gup_flags)
    if error != 0:
        return error
    return get_user_page(cpu, mm, vma, address, gup_flags, fault_flags)


@slowpath
def get_user_pages_unlocked(
    cpu: int, mm: int, start: int, nr_pages: int, gup_flags: int, pages: int
) -> int:
    """Take frames under the mmap lock for reading; their number, or why there is not even one.

    A fault that waits does so without the lock, and then its page is tried again.  Stacks are not
    made to grow.  Source: __get_user_pages_locked.
    """
    write = FaultFlag.WRITE if gup_flags & FOLL_WRITE else 0
    flags = write | FaultFlag.ALLOW_RETRY
    nr_pinned = 0
    error = 0
    mmap_read_lock(cpu, mm)
    while nr_pinned < nr_pages and error == 0:
        address = start + (nr_pinned << PAGE_SHIFT)
        page = get_user_page_locked(cpu, mm, address, gup_flags, flags)
        if page > 0:
            store(pages + nr_pinned * WORD, page)
            nr_pinned += 1
            flags = write | FaultFlag.ALLOW_RETRY
        elif page == -Errno.EBUSY:
            flags = flags | FaultFlag.TRIED
            mmap_read_lock(cpu, mm)
        else:
            error = page
    mmap_read_unlock(cpu, mm)
    count_vm_events(cpu, Event.GUP_SLOW, nr_pinned)
    return nr_pinned if nr_pinned != 0 else error
