# SPDX-License-Identifier: MIT
"""TORN_READ: every copy of a VMA, and every VMA a fault goes by, is a state that a writer has left.

Writers stamp each VMA that they have changed, before they let readers go on: the stamp is a hash
of the fields that faults go by, and the last NR_STAMPS of each VMA are kept.  A copy whose hash is
none of them is a mixture of states, or was never complete.  Such copies happen all the time; what
must not happen is that a fault goes on with one.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import CPU, MM, NR_STAMPS, STRESS_CPU, SYSTEM, VMA, VMA_STAMPS, WORD
from spfemu.primitives import (
    load,
    read_once,
    smp_load_acquire,
    smp_store_release,
    store,
    this_cpu,
    write_once,
)
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation

HASH_FACTOR = 0x9E3779B97F4A7C1
HASH_MASK = (1 << 62) - 1


@kernel
def hash_word(hashed: int, word: int) -> int:
    """Add a word to a hash of 62 bits."""
    mixed = ((hashed ^ word) * HASH_FACTOR) & HASH_MASK
    return mixed ^ (mixed >> 29)


@kernel
def hash_vma(vma: int) -> int:
    """Hash what faults go by, of a VMA or a copy of one.

    Not its anon_vma, which faults set themselves, nor what links it into the tree.
    """
    hashed = hash_word(1, load(vma + VMA.vm_start))
    hashed = hash_word(hashed, load(vma + VMA.vm_end))
    hashed = hash_word(hashed, load(vma + VMA.vm_page_prot))
    hashed = hash_word(hashed, load(vma + VMA.vm_flags))
    hashed = hash_word(hashed, load(vma + VMA.vm_ops))
    hashed = hash_word(hashed, load(vma + VMA.vm_pgoff))
    return hash_word(hashed, load(vma + VMA.vm_file))


@kernel
def stamps_of(cpu: int, vma: int) -> int:
    """Address of the VMA_STAMPS of a VMA's slot."""
    system = load(cpu + CPU.system)
    index = (vma - load(system + SYSTEM.vmas)) // VMA.SIZE
    return load(system + SYSTEM.vma_stamps) + index * VMA_STAMPS.SIZE


@kernel
def stamp_vma(cpu: int, vma: int) -> None:
    """Remember the state of a VMA, which nobody else changes now, if it is another than before.

    The release pairs with the acquire in is_stamped.
    """
    stamps = stamps_of(cpu, vma)
    newest = load(stamps + VMA_STAMPS.newest)
    stamp = hash_vma(vma)
    if load(stamps + VMA_STAMPS.stamp + (newest % NR_STAMPS) * WORD) == stamp:
        return
    newest += 1
    write_once(stamps + VMA_STAMPS.stamp + (newest % NR_STAMPS) * WORD, stamp)
    smp_store_release(stamps + VMA_STAMPS.newest, newest)


@kernel
def is_stamped(cpu: int, vma: int, hashed: int) -> int:
    """Tell whether a hash is that of a state that the VMA has been in, not long ago."""
    stamps = stamps_of(cpu, vma)
    smp_load_acquire(stamps + VMA_STAMPS.newest)
    for i in range(NR_STAMPS):
        if read_once(stamps + VMA_STAMPS.stamp + i * WORD) == hashed:
            return 1
    return 0


@kernel
def stamp_vmas(cpu: int, mm: int) -> None:
    """Stamp all VMAs of an mm whose writer is about to leave."""
    vma = load(mm + MM.mmap)
    while vma != 0:
        stamp_vma(cpu, vma)
        vma = load(vma + VMA.vm_next)


# Writers


@around
def vma_mark_attached(cpu: int, vma: int) -> None:
    """Stamp a VMA that is about to be found by readers, if its protocol lets them go on."""
    stamp_vma(cpu, vma)
    proceed(cpu, vma)


@around
def mmap_write_unlock(cpu: int, mm: int) -> None:
    """Stamp what the writer has changed while nobody may see it."""
    stamp_vmas(cpu, mm)
    proceed(cpu, mm)


@around
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """Stamp as if the lock was released: from here on readers go on."""
    stamp_vmas(cpu, mm)
    proceed(cpu, mm)


@around
def vm_write_end(vma: int) -> None:
    """Stamp a VMA whose own sequence count is about to become even (`spf-vma`)."""
    stamp_vma(this_cpu(), vma)
    proceed(vma)


# Readers


@around
def copy_pvma(pvma: int, vma: int) -> None:
    """Judge a copy, and remember whether it is torn until it is used."""
    proceed(pvma, vma)
    cpu = this_cpu()
    own = load(cpu + CPU.stress)
    torn = is_stamped(cpu, vma, hash_vma(pvma)) == 0
    store(own + STRESS_CPU.copies, load(own + STRESS_CPU.copies) + 1)
    store(own + STRESS_CPU.torn, load(own + STRESS_CPU.torn) + torn)
    store(own + STRESS_CPU.torn_vma, vma if torn else 0)


@around
def do_handle_mm_fault(cpu: int, mm: int, address: int, flags: int, seq: int) -> int:
    """See that no fault goes on with a torn copy."""
    torn = load(load(cpu + CPU.stress) + STRESS_CPU.torn_vma)
    if torn != 0:
        stress_violation(Promise.TORN_READ, torn, address)
    result: int = proceed(cpu, mm, address, flags, seq)
    return result


@around
def handle_mm_fault(cpu: int, mm: int, vma: int, address: int, flags: int) -> int:
    """See that a fault that has locked its VMA finds it whole."""
    if is_stamped(cpu, vma, hash_vma(vma)) == 0:
        stress_violation(Promise.TORN_READ, vma, address)
    result: int = proceed(cpu, mm, vma, address, flags)
    return result
