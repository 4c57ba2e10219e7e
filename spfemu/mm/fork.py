# SPDX-License-Identifier: MIT
"""The life of an mm: made fresh or as a copy of another, shared by users, taken down by the last.

Answers to kernel/fork.c, mm/mmap.c (exit_mmap) and mm/memory.c (copy_page_range) of Linux 5.12.
A fork copies no page: parent and child map the same frames, read-only, and the first to write to
one gets a copy (do_wp_page).  Differs in that only the mm is copied: there are no tasks, so the
caller of `sys_fork` holds the child's only reference, and any CPU may run it (`switch_mm`).
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE, PAGE_SHIFT, VMA, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.context import switch_mm
from spfemu.mm.flags import (
    PMD_SIZE,
    PTE_ADDR_MASK,
    VM_UFFD_FLAGS,
    Errno,
    PageKind,
    Pg,
    Pte,
    Vm,
)
from spfemu.mm.fork_pinned import (
    copy_pinned_range,
    write_protect_seqcount_begin,
    write_protect_seqcount_end,
)
from spfemu.mm.huge_memory import copy_huge_pmd, pmd_of_ptes
from spfemu.mm.i_mmap import vma_link_file
from spfemu.mm.limits import VM_LOCKED_MASK, vm_stat_account
from spfemu.mm.mm_struct import mm_slot_alloc, mm_slot_free, mmdrop
from spfemu.mm.mmap import remove_vma_list
from spfemu.mm.mmap_lock import mmap_write_lock, mmap_write_lock_killable, mmap_write_unlock
from spfemu.mm.mmu_notifier import (
    mmu_notifier_invalidate_range_end,
    mmu_notifier_invalidate_range_start,
    mmu_notifier_release,
)
from spfemu.mm.page_alloc import (
    alloc_zeroed_page,
    get_page,
    page_address,
    page_kind,
    virt_to_page,
)
from spfemu.mm.pgtable import (
    alloc_pmd,
    pmd_huge,
    pte_lockptr,
    pte_offset,
    pte_present,
    set_pte,
    table_alloc,
)
from spfemu.mm.rmap import anon_vma_fork
from spfemu.mm.rss import add_mm_file_rss, sync_mm_rss
from spfemu.mm.spinlock import spin_lock, spin_unlock
from spfemu.mm.swapfile import swap_duplicate
from spfemu.mm.swapops import is_swap_pte, pte_to_swp_entry
from spfemu.mm.syscalls import syscall_result
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.mm.vma import vm_area_dup, vm_area_free, vm_area_reserve, vma_link, vma_pages
from spfemu.mm.vma_write import (
    vm_write_begin,
    vm_write_end,
    vma_mark_attached,
    vma_start_write,
    vmas_mark_detached,
    vmas_start_write,
)
from spfemu.mm.vmstat import count_vm_event
from spfemu.mm.zap import find_pmd_range, unmap_region
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    atomic_fetch_and,
    atomic_fetch_or,
    load,
    read_once,
    smp_store_release,
    store,
)

# An mm: its slot, its top-level table, its users.


@slowpath
def mm_alloc(cpu: int, layout: int) -> int:
    """Return an empty mm with one user, or 0 if no mm_struct or frame is left.

    Its address space is divided as that of mm `layout`, with an empty heap.  Source: mm_alloc,
    mm_init.
    """
    mm = mm_slot_alloc(cpu)
    if mm == 0:
        return 0
    if mm_alloc_pgd(cpu, mm) != 0:
        mm_slot_free(cpu, mm)
        return 0
    index = load(mm + MM.id)
    pgd = load(mm + MM.pgd)
    for i in range(MM.SIZE // WORD):
        store(mm + i * WORD, 0)
    store(mm + MM.id, index)
    store(mm + MM.pgd, pgd)
    store(mm + MM.pgtables, 1)
    store(mm + MM.mmap_base, load(layout + MM.mmap_base))
    store(mm + MM.task_size, load(layout + MM.task_size))
    store(mm + MM.mmap_min_addr, load(layout + MM.mmap_min_addr))
    store(mm + MM.rlimit_as, load(layout + MM.rlimit_as))
    store(mm + MM.rlimit_data, load(layout + MM.rlimit_data))
    store(mm + MM.rlimit_memlock, load(layout + MM.rlimit_memlock))
    store(mm + MM.rlimit_stack, load(layout + MM.rlimit_stack))
    store(mm + MM.start_brk, load(layout + MM.start_brk))
    store(mm + MM.brk, load(layout + MM.start_brk))
    store(mm + MM.mm_count, 1)
    store(mm + MM.in_use, 1)
    # a reclaimer may become a user from here on: pairs with the update in mmget_not_zero
    smp_store_release(mm + MM.mm_users, 1)
    return mm


@kernel
def mm_alloc_pgd(cpu: int, mm: int) -> int:
    """Give `mm` a top-level table; 0 or -ENOMEM."""
    page = alloc_zeroed_page(cpu, PageKind.TABLE)
    if page == 0:
        return -Errno.ENOMEM
    store(page + PAGE.ptl, 0)
    store(page + PAGE.private, mm)
    store(mm + MM.pgd, page_address(cpu, page))
    return 0


@kernel
def mmput(cpu: int, mm: int) -> None:
    """Drop a user's reference; with the last one the mm and all that it maps are gone.

    The full order of the decrement puts what other users did before the teardown.
    """
    users = atomic_fetch_add(mm + MM.mm_users, -1)
    vm_bug_on(users <= 0, Bug.REFCOUNT_UNDERFLOW)
    if users == 1:
        __mmput(cpu, mm)


@slowpath
def __mmput(cpu: int, mm: int) -> None:
    """Take down the mappings of an mm without users."""
    vm_bug_on(load(cpu + CPU.mm) == mm, Bug.MM_IN_USE)
    exit_mmap(cpu, mm)
    mmdrop(cpu, mm)


@kernel
def exit_mmap(cpu: int, mm: int) -> None:
    """Unmap everything and free VMAs and page tables; nobody else knows the mm any more.

    So the lock is free, and VMAs are freed at once.  No CPU runs the mm: the flush asks nobody.
    """
    mmu_notifier_release(cpu, mm)
    vma = load(mm + MM.mmap)
    if vma != 0:
        mmap_write_lock(cpu, mm)
        vmas_start_write(cpu, vma, load(mm + MM.task_size))
        vmas_mark_detached(cpu, vma)
        mmap_write_unlock(cpu, mm)
        unmap_region(cpu, mm, vma, 0, 0)
        remove_vma_list(cpu, mm, vma)
        mmap_clear(mm)


@kernel
def mmap_clear(mm: int) -> None:
    """Forget VMAs that have been freed where they are, for who still has a reference to the mm."""
    store(mm + MM.mmap, 0)
    store(mm + MM.mm_rb, 0)
    store(mm + MM.mm_rb_latch, 0)
    store(mm + MM.map_count, 0)
    store(mm + MM.highest_vm_end, 0)


@kernel
def exit_mm(cpu: int, next_mm: int) -> None:
    """End this CPU's thread: go on with that of `next_mm`, drop the reference to the old mm."""
    mm = load(cpu + CPU.mm)
    switch_mm(cpu, next_mm)
    mmput(cpu, mm)


# Fork.


@kernel
def sys_fork(cpu: int) -> int:
    """Make a copy of this CPU's mm; returns it, with one user, or a negative errno.

    -ENOMEM: no memory, or no mm_struct is left; -EINTR: a fatal signal ended the wait for the mmap
    lock.
    """
    count_vm_event(cpu, Event.CALL_FORK)
    vm_area_reserve(cpu)
    return syscall_result(cpu, dup_mm(cpu))


@slowpath
def dup_mm(cpu: int) -> int:
    """Copy this CPU's mm; returns the copy or a negative errno with everything undone."""
    oldmm = load(cpu + CPU.mm)
    mm = mm_alloc(cpu, oldmm)
    if mm == 0:
        return -Errno.ENOMEM
    error = dup_mmap(cpu, mm, oldmm)
    if error != 0:
        mmput(cpu, mm)
        return error
    return mm


@kernel
def dup_mmap(cpu: int, mm: int, oldmm: int) -> int:
    """Copy all VMAs of `oldmm` and what they map; 0, -EINTR or -ENOMEM with a part done."""
    if mmap_write_lock_killable(cpu, oldmm) != 0:
        return -Errno.EINTR
    mmap_write_lock(cpu, mm)
    sync_mm_rss(cpu)
    store(mm + MM.brk, load(oldmm + MM.brk))
    write_protect_seqcount_begin(oldmm)
    error = 0
    prev = 0
    mpnt = load(oldmm + MM.mmap)
    while mpnt != 0 and error == 0:
        dup_vma_lock(cpu, mpnt)
        if (load(mpnt + VMA.vm_flags) & Vm.DONTCOPY) == 0:
            vma = dup_vma(cpu, mm, mpnt, prev)
            error = copy_page_range(cpu, vma, mpnt) if vma != 0 else -Errno.ENOMEM
            prev = vma
        mpnt = load(mpnt + VMA.vm_next)
    write_protect_seqcount_end(oldmm)
    dup_mmap_unlock(cpu, mm, oldmm, mpnt)
    return error


@kernel
def dup_mmap_unlock(cpu: int, mm: int, oldmm: int, rest: int) -> None:
    """End the copying of all VMAs or of those before `rest`.

    The parent's TLBs are flushed before its lock is released: until then its threads write to
    frames that the copy shares, through translations from before.  A fault that copied such a
    frame earlier, as one may once the lock is free, would lose what they write.
    """
    mmap_write_unlock(cpu, mm)
    flush_tlb_mm(cpu, oldmm)
    mpnt = load(oldmm + MM.mmap)
    while mpnt != rest:
        vm_write_end(mpnt)
        mpnt = load(mpnt + VMA.vm_next)
    mmap_write_unlock(cpu, oldmm)


@kernel
def dup_vma_lock(cpu: int, mpnt: int) -> None:
    """Keep faults that do not look at the mmap lock out of a VMA of the parent's until the flush.

    Source: 6.4.1 (fb49c455323f); patch 18 of Dufour's v12.
    """
    vma_start_write(cpu, mpnt)
    vm_write_begin(mpnt)


@kernel
def dup_vma(cpu: int, mm: int, mpnt: int, prev: int) -> int:
    """Copy one VMA into `mm`, behind `prev`, with an anon_vma of its own; 0 if out of memory.

    One with VM_WIPEONFORK begins empty.
    """
    vma = vm_area_dup(cpu, mpnt)
    if vma == 0:
        return 0
    store(vma + VMA.vm_mm, mm)
    # neither locks are inherited nor, without UFFD_FEATURE_EVENT_FORK, who serves faults
    vm_flags = load(vma + VMA.vm_flags) & ~(VM_LOCKED_MASK | VM_UFFD_FLAGS)
    store(vma + VMA.vm_flags, vm_flags)
    store(vma + VMA.vm_userfaultfd_ctx, 0)
    wiped = vm_flags & Vm.WIPEONFORK
    if wiped == 0 and anon_vma_fork(cpu, vma, mpnt) != 0:
        vm_area_free(cpu, vma)
        return 0
    vma_start_write(cpu, vma)
    vma_mark_attached(cpu, vma)
    vma_link(mm, vma, prev)
    vma_link_file(cpu, vma, mpnt)
    vm_stat_account(mm, vm_flags, vma_pages(vma))
    return vma


@kernel
def copy_page_range(cpu: int, vma: int, src_vma: int) -> int:
    """Let the child's copy `vma` map what `src_vma` maps; 0 or -ENOMEM with a part done.

    Without an anon_vma there are no pages of its own, at most the zero page, which faults bring
    again.  Needs both mmap locks for writing.
    """
    if load(src_vma + VMA.anon_vma) == 0 or load(src_vma + VMA.vm_flags) & Vm.WIPEONFORK:
        return 0
    src_mm = load(src_vma + VMA.vm_mm)
    end = load(src_vma + VMA.vm_end)
    mmu_notifier_invalidate_range_start(cpu, src_mm, load(src_vma + VMA.vm_start), end)
    error = copy_pmd_range(cpu, vma, src_vma)
    mmu_notifier_invalidate_range_end(cpu, src_mm, load(src_vma + VMA.vm_start), end)
    return error


@kernel
def copy_pmd_range(cpu: int, vma: int, src_vma: int) -> int:
    """Copy what the tables of a VMA map; 0 or -ENOMEM with a part done."""
    src_mm = load(src_vma + VMA.vm_mm)
    mm = load(vma + VMA.vm_mm)
    end = load(src_vma + VMA.vm_end)
    address = load(src_vma + VMA.vm_start)
    while address < end:
        slot, next_ = find_pmd_range(src_mm, address, end)
        error = 0
        if slot != 0 and copies_huge_pmd(src_mm, slot, address, next_):
            dst_slot = alloc_pmd(cpu, mm, address)
            error = -Errno.ENOMEM
            if dst_slot != 0:
                error = copy_huge_pmd(cpu, mm, dst_slot, src_mm, slot)
        elif slot != 0 and read_once(slot) != 0:
            error = copy_table(cpu, vma, src_vma, slot, address, next_)
        if error != 0:
            return error
        address = next_
    return 0


@kernel
def copy_table(cpu: int, vma: int, src_vma: int, slot: int, start: int, end: int) -> int:
    """Copy the part [start, end) of the table that the parent's entry at `slot` names."""
    mm = load(vma + VMA.vm_mm)
    pmd = copy_alloc_pmd(cpu, mm, start)
    if pmd == 0:
        return -Errno.ENOMEM
    src_mm = load(src_vma + VMA.vm_mm)
    src_pmd = pmd_of_ptes(cpu, src_mm, slot, start)
    vm_flags = load(src_vma + VMA.vm_flags)
    if load(src_mm + MM.has_pinned):
        count = copy_pinned_range(cpu, vma, src_vma, pmd, src_pmd, start, end)
        if count < 0:
            return count
        atomic_fetch_add_relaxed(mm + MM.rss_anon, count)
    count = copy_pte_range(cpu, mm, pmd, src_pmd, start, end, vm_flags)
    atomic_fetch_add_relaxed(mm + MM.rss_anon, count)
    return 0


@kernel
def copies_huge_pmd(src_mm: int, slot: int, start: int, end: int) -> int:
    """Tell whether an entry is copied as one: a part is not, nor one whose pages may be pinned."""
    if pmd_huge(read_once(slot)) == 0 or end - start != PMD_SIZE:
        return 0
    return load(src_mm + MM.has_pinned) == 0


@kernel
def copy_alloc_pmd(cpu: int, mm: int, address: int) -> int:
    """Entry of the child's table of ptes for `address`, made if need be; 0 if out of memory."""
    slot = alloc_pmd(cpu, mm, address)
    if slot == 0:
        return 0
    pmd = read_once(slot)
    if pmd == 0:
        pmd = table_alloc(cpu, mm, slot)
    return pmd


@kernel
def copy_pte_range(
    cpu: int, mm: int, pmd: int, src_pmd: int, start: int, end: int, vm_flags: int
) -> int:
    """Copy the entries of one table for `mm`; returns how many map anonymous pages.

    Both page-table locks are held, the child's first: the one case of two at a time.  The child's
    is another table's than any fault's of the parent, and nobody takes them the other way round.
    """
    dst_ptl = pte_lockptr(cpu, pmd)
    src_ptl = pte_lockptr(cpu, src_pmd)
    count = 0
    spin_lock(cpu, dst_ptl)
    spin_lock(cpu, src_ptl)
    pte = pte_offset(pmd, start)
    src_pte = pte_offset(src_pmd, start)
    last = src_pte + ((end - start) >> PAGE_SHIFT) * WORD
    while src_pte < last:
        # what the child has already is the copy of a pinned frame
        entry = read_once(src_pte) if read_once(pte) == 0 else 0
        if pte_present(entry):
            count += copy_present_pte(cpu, mm, pte, src_pte, vm_flags)
        elif is_swap_pte(entry):
            copy_swap_pte(cpu, mm, pte, src_pte)
        pte += WORD
        src_pte += WORD
    spin_unlock(src_ptl)
    spin_unlock(dst_ptl)
    return count


@kernel
def copy_present_pte(cpu: int, mm: int, pte: int, src_pte: int, vm_flags: int) -> int:
    """Copy one entry, write-protecting both if the mapping is private; 1 if the page is anonymous.

    The right to write is taken by one atomic update: the hardware may be setting accessed and dirty
    bits.
    """
    entry = read_once(src_pte)
    if is_cow_mapping(vm_flags) and entry & Pte.RW:
        entry = atomic_fetch_and(src_pte, ~Pte.RW) & ~Pte.RW
    found = 0
    if (entry & Pte.SPECIAL) == 0:
        page = virt_to_page(cpu, entry & PTE_ADDR_MASK)
        get_page(page)
        if page_kind(page) == PageKind.FILE:
            page_dup_rmap(page)
            add_mm_file_rss(cpu, mm, page, 1)
        else:
            page_dup_anon_rmap(page)
            found = 1
    set_pte(pte, entry & ~(Pte.ACCESSED | Pte.UFFD_WP))
    return found


@kernel
def copy_swap_pte(cpu: int, mm: int, pte: int, src_pte: int) -> None:
    """Let the child's pte hold the same swap entry, which no monitor guards there.

    Source: copy_nonpresent_pte.
    """
    entry = read_once(src_pte)
    swap_duplicate(cpu, pte_to_swp_entry(entry))
    atomic_fetch_add_relaxed(mm + MM.swap_ents, 1)
    set_pte(pte, pte_to_swp_entry(entry))


@kernel
def is_cow_mapping(vm_flags: int) -> int:
    """Tell whether pages of the mapping are copied when written to (include/linux/mm.h)."""
    return (vm_flags & (Vm.SHARED | Vm.MAYWRITE)) == Vm.MAYWRITE


@kernel
def page_dup_rmap(page: int) -> None:
    """Count one mapping more of a page that is mapped; under a page-table lock (mm/rmap.c)."""
    atomic_fetch_add_relaxed(page + PAGE.mapcount, 1)


@kernel
def page_dup_anon_rmap(page: int) -> None:
    """The same of an anonymous page, which processes share from here on (page_try_dup_anon_rmap).

    PageAnonExclusive, the other way round.
    """
    page_dup_rmap(page)
    if read_once(page + PAGE.flags) & Pg.ANON_SHARED == 0:
        atomic_fetch_or(page + PAGE.flags, Pg.ANON_SHARED)
