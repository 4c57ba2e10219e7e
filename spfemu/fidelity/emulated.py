# SPDX-License-Identifier: MIT
"""How the emulated kernel is looked at.  Nobody else runs, so no lock is taken."""

from spfemu.events import Event
from spfemu.fidelity.channel import MINCORE_PAGES, VM_FILE, VM_PRIVATE, Channel
from spfemu.fidelity.interpreter import list_is_full, put_entry, skip_foreign
from spfemu.kernel import kernel
from spfemu.layout import CPU, MM, PAGE_SHIFT, VMA, WORD
from spfemu.mm.context import switch_mm
from spfemu.mm.flags import PTE_ADDR_MASK, Errno, Vm
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.mm.mmap import vma_map
from spfemu.mm.pgtable import lookup_pte, pte_present
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_mincore
from spfemu.mm.vma import VM_ACCESS_FLAGS, find_vma_links
from spfemu.primitives import copy_page, load, store


@kernel
def map_foreign(cpu: int, start: int, end: int, vm_flags: int) -> int:
    """Occupy a range as the host's process does, before any program runs; 0 or a negative errno.

    `vm_flags` has VM_DONTEXPAND, so that no mapping of a program is merged with it.
    """
    mm = load(cpu + CPU.mm)
    overlaps, prev = find_vma_links(mm, start, end)
    if overlaps:
        return -Errno.EEXIST
    return vma_map(cpu, mm, prev, start, end, vm_flags, 0, start >> PAGE_SHIFT)


@kernel
def operation_done(cpu: int) -> None:
    """Let grace periods end."""
    cond_resched(cpu)


@kernel
def fork_child(cpu: int, channel: int) -> int:
    """Make a child of the mm; 0 or a negative errno."""
    child = sys_fork(cpu)
    if child < 0:
        return child
    store(channel + Channel.CHILD, child)
    return 0


@kernel
def switch_process(cpu: int, channel: int) -> None:
    """Run the other mm."""
    turn = 1 - load(channel + Channel.TURN)
    store(channel + Channel.TURN, turn)
    switch_mm(cpu, load(channel + (Channel.CHILD if turn else Channel.MM)))


@kernel
def exit_child(cpu: int, channel: int) -> None:
    """End the child and run the process's own mm."""
    if load(channel + Channel.TURN) == 0:
        switch_process(cpu, channel)
    exit_mm(cpu, load(channel + Channel.MM))
    store(channel + Channel.TURN, 0)
    store(channel + Channel.CHILD, 0)


@kernel
def minor_faults(cpu: int, channel: int) -> int:
    """Return how many faults were handled: those that end in a signal are not counted."""
    events = cpu + CPU.event
    failed = load(events + Event.FAULT_SIGSEGV_MAPERR * WORD)
    failed += load(events + Event.FAULT_SIGSEGV_ACCERR * WORD)
    failed += load(events + Event.FAULT_OOM * WORD)
    failed += load(events + Event.FAULT_SIGBUS * WORD)
    handled = load(events + Event.PGFAULT * WORD) - failed
    return handled + load(events + Event.POPULATE_FAULT * WORD)


@kernel
def read_map(cpu: int, channel: int, vmas: int) -> int:
    """List the program's VMAs in order of address; returns the address behind the list."""
    at = vmas
    foreign = channel + Channel.FOREIGN
    vma = load(load(cpu + CPU.mm) + MM.mmap)
    while vma != 0 and not list_is_full(vmas, at):
        end = load(vma + VMA.vm_end)
        foreign = skip_foreign(foreign, end)
        if load(foreign) != end:
            flags = load(vma + VMA.vm_flags)
            rights = flags & VM_ACCESS_FLAGS
            if (flags & Vm.SHARED) == 0:
                rights = rights | VM_PRIVATE
            offset = 0
            if load(vma + VMA.vm_file) != 0:
                rights = rights | VM_FILE
                offset = load(vma + VMA.vm_pgoff) << PAGE_SHIFT
            at = put_entry(at, load(vma + VMA.vm_start), end, rights, offset)
        vma = load(vma + VMA.vm_next)
    return at


@kernel
def mincore_bits(cpu: int, channel: int, address: int, length: int) -> tuple[int, int]:
    """Return the result of mincore and a bit for each of the first pages that is resident."""
    vec = channel + Channel.PRESENCE
    for i in range(MINCORE_PAGES):
        store(vec + i * WORD, 0)
    result = sys_mincore(cpu, address, length, vec)
    bits = 0
    if result == 0:
        for i in range(MINCORE_PAGES):
            bits = bits | ((load(vec + i * WORD) & 1) << i)
    return result, bits


@kernel
def find_pte(cpu: int, address: int) -> int:
    """Return the page-table entry of `address`, 0 if there is none."""
    return lookup_pte(load(cpu + CPU.mm), address)


@kernel
def read_presence(cpu: int, channel: int, start: int, pages: int) -> None:
    """Say for each page of a window whether a frame is mapped there."""
    for i in range(pages):
        present = pte_present(find_pte(cpu, start + (i << PAGE_SHIFT)))
        store(channel + Channel.PRESENCE + i * WORD, present)


@kernel
def copy_present_page(cpu: int, channel: int, address: int, rights: int) -> None:
    """Copy a present page to the channel."""
    copy_page(channel + Channel.PAGE, find_pte(cpu, address) & PTE_ADDR_MASK)
