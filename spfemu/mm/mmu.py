# SPDX-License-Identifier: MIT
"""The emulated MMU: loads and stores of user code at virtual addresses.

An access looks in the CPU's TLB, then walks the page table as the hardware does (setting accessed
and dirty bits), then faults, until it succeeds or the fault ends in a signal.  Between
translation and access no IPI is served, so a flush that has returned is never followed by an
access through what it flushed.
"""

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE_SHIFT, TLB_ENTRIES, WORD
from spfemu.mm.fault import handle_page_fault
from spfemu.mm.flags import PMD_SHIFT, PTE_ADDR_MASK, Errno, FaultFlag, Pte
from spfemu.mm.irq import irq_poll
from spfemu.mm.pgtable import (
    find_pmd,
    huge_pte,
    pgd_offset,
    pmd_bad,
    pmd_huge,
    pmd_offset,
    pte_offset,
    pud_offset,
)
from spfemu.mm.sched import cond_resched
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import cmpxchg, load, read_once, store, write_once

READABLE = int(Pte.PRESENT | Pte.ACCESSED)
WRITABLE = int(Pte.PRESENT | Pte.RW | Pte.ACCESSED | Pte.DIRTY)
OFFSET_MASK = 4095 & -WORD
USER_LIMIT = 1 << 47


@kernel
def user_write(cpu: int, address: int, value: int) -> int:
    """Store a word at a virtual address; returns 0, or -EFAULT or -ENOMEM as a signal would say.

    `address` is rounded down to a word.
    """
    entry = translate(cpu, address, WRITABLE)
    if entry < 0:
        return entry
    write_once((entry & PTE_ADDR_MASK) + (address & OFFSET_MASK), value)
    return 0


@kernel
def user_read(cpu: int, address: int) -> tuple[int, int]:
    """Load the word at a virtual address; returns (0 or a negative errno, value)."""
    entry = translate(cpu, address, READABLE)
    if entry < 0:
        return entry, 0
    return 0, read_once((entry & PTE_ADDR_MASK) + (address & OFFSET_MASK))


@kernel
def translate(cpu: int, address: int, need: int) -> int:
    """Return a pte that has the bits of `need`, from the TLB if it can; or a negative errno."""
    irq_poll(cpu)
    vpn = address >> PAGE_SHIFT
    slot = cpu + CPU.tlb + (vpn & (TLB_ENTRIES - 1)) * (2 * WORD)
    if load(slot) == load(cpu + CPU.tlb_tag) | vpn:
        entry = load(slot + WORD)
        if entry & need == need:
            return entry
    return tlb_miss(cpu, address, need)


@kernel
def tlb_miss(cpu: int, address: int, need: int) -> int:
    """Walk, and fault until the walk succeeds; fills the TLB."""
    count_vm_event(cpu, Event.TLB_MISS)
    if address < 0 or address >= USER_LIMIT:
        return -Errno.EFAULT
    entry = hardware_walk(cpu, address, need)
    while entry == 0:
        flags = FaultFlag.USER
        if need & Pte.RW:
            flags = FaultFlag.USER | FaultFlag.WRITE
        result = handle_page_fault(cpu, address, flags)
        if result != 0:
            return result
        entry = hardware_walk(cpu, address, need)
        if entry == 0:
            # between its faults a CPU is in user mode: it takes interrupts and reads by no RCU
            cond_resched(cpu)
    vpn = address >> PAGE_SHIFT
    slot = cpu + CPU.tlb + (vpn & (TLB_ENTRIES - 1)) * (2 * WORD)
    store(slot, load(cpu + CPU.tlb_tag) | vpn)
    store(slot + WORD, entry)
    return entry


@kernel
def hardware_walk(cpu: int, address: int, need: int) -> int:
    """Translate as the hardware does; returns the pte with its bits set, or 0 for a fault."""
    pmd = cached_pmd(cpu, address)
    if pmd == 0:
        return 0
    if pmd_huge(pmd):
        return hardware_walk_huge(cpu, address, need)
    pte = pte_offset(pmd, address)
    entry = read_once(pte)
    while entry & need != need:
        rights = need & (Pte.PRESENT | Pte.RW)
        if entry & rights != rights:
            return 0
        # accessed and dirty are set only while the entry still allows the access
        found = cmpxchg(pte, entry, entry | need)
        if found == entry:
            return entry | need
        entry = found
    return entry


@slowpath
def hardware_walk_huge(cpu: int, address: int, need: int) -> int:
    """Do the same where a pmd entry maps a huge frame; one that has just been split faults."""
    slot = find_pmd(load(cpu + CPU.mm), address)
    if slot == 0:
        return 0
    entry = read_once(slot)
    rights = need & (Pte.PRESENT | Pte.RW)
    while pmd_huge(entry) and entry & rights == rights:
        if entry & need == need:
            return huge_pte(entry, address)
        found = cmpxchg(slot, entry, entry | need)
        if found == entry:
            return huge_pte(entry | need, address)
        entry = found
    return 0


@kernel
def cached_pmd(cpu: int, address: int) -> int:
    """Return the pmd entry for `address` or 0, from the paging-structure cache if it can.

    As in the hardware, the cache holds entries that name tables only and is flushed with the TLB,
    which is why a page table may be freed only after a flush.  It has one entry: the last used.
    """
    tag = load(cpu + CPU.tlb_tag) | (address >> PMD_SHIFT)
    if load(cpu + CPU.pde_tag) == tag:
        return load(cpu + CPU.pde)
    # each level's address depends on the entry above, which orders the loads
    entry = read_once(pgd_offset(load(cpu + CPU.mm), address))
    if entry == 0:
        return 0
    entry = read_once(pud_offset(entry, address))
    if entry == 0:
        return 0
    entry = read_once(pmd_offset(entry, address))
    if pmd_bad(entry) == 0:
        store(cpu + CPU.pde_tag, tag)
        store(cpu + CPU.pde, entry)
    return entry
