# SPDX-License-Identifier: MIT
"""VMAs: their slab, how one is found, how they are linked, split and merged.

Answers to mm/mmap.c and kernel/fork.c (vm_area_alloc) of Linux 5.12, with the
speculative-page-fault series (v2) applied: VMAs are freed after an RCU grace period, and
`__find_vma` may run without the mmap lock.
"""

from enum import IntEnum

from spfemu.events import Event
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, MM, PAGE_SHIFT, SYSTEM, VMA, WORD
from spfemu.mm.config import CONFIG_LINUX_VERSION
from spfemu.mm.file_table import fput, get_file
from spfemu.mm.flags import DEFAULT_MAP_COUNT, Errno, FileOps, Pte, Vm
from spfemu.mm.i_mmap import (
    __remove_shared_vm_struct,
    __vma_link_file,
    vma_i_mmap_lock,
    vma_i_mmap_unlock,
)
from spfemu.mm.rbtree import vma_gap_update
from spfemu.mm.rbtree_latch import vma_rb_erase, vma_rb_insert, vma_rb_lookup
from spfemu.mm.rcu import call_rcu, rcu_barrier
from spfemu.mm.rmap import anon_vma_clone, is_fork_child, unlink_anon_vmas
from spfemu.mm.slab import slab_cache_give, slab_cache_take, slab_refill
from spfemu.mm.versions import ANON_VMA_EITHER_WAY
from spfemu.mm.vma_write import (
    mm_write_seqlock,
    mm_write_sequnlock,
    vm_write_begin,
    vm_write_end,
    vma_lock_init,
    vma_mark_attached,
    vma_mark_detached,
    vma_start_write,
)
from spfemu.mm.vmacache import vmacache_find, vmacache_invalidate, vmacache_update
from spfemu.mm.vmstat import count_vm_event
from spfemu.primitives import (
    load,
    read_once,
    store,
    write_once,
)


class SlabState(IntEnum):
    """VMA.slab_state."""

    FREE = 0
    IN_USE = 1
    RCU_PENDING = 2


VMA_RESERVE = 5
"""Most VMAs that one system call makes: mremap out of the middle of a VMA into that of another."""

VM_ACCESS_FLAGS = int(Vm.READ | Vm.WRITE | Vm.EXEC)
VM_MAY_FLAGS = int(Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
VM_SHARED_WRITE = int(Vm.SHARED | Vm.WRITE)
PAGE_NONE = int(Pte.PROTNONE | Pte.ACCESSED)
PAGE_READONLY_EXEC = int(Pte.PRESENT | Pte.USER | Pte.ACCESSED)
PAGE_READONLY = PAGE_READONLY_EXEC | int(Pte.NX)


@kernel
def vma_wants_writenotify(vm_flags: int, vm_ops: int) -> int:
    """Tell whether the first write to a page of a shared mapping has to fault.

    A file with page_mkwrite has to know which of its pages are dirty; shared memory has not.
    """
    return (vm_flags & VM_SHARED_WRITE) == VM_SHARED_WRITE and vm_ops == FileOps.GENERIC


@kernel
def vm_get_page_prot(vm_flags: int, vm_ops: int) -> int:
    """Return the pte bits for pages of a VMA (mm/mmap.c: protection_map, vma_set_page_prot).

    Of a private one never writable: the write fault decides whether the page may be written in
    place.
    """
    if (vm_flags & VM_ACCESS_FLAGS) == 0:
        return PAGE_NONE
    prot = PAGE_READONLY_EXEC if vm_flags & Vm.EXEC else PAGE_READONLY
    if (vm_flags & VM_SHARED_WRITE) != VM_SHARED_WRITE or vma_wants_writenotify(vm_flags, vm_ops):
        return prot
    return prot | Pte.RW


@kernel
def vma_pages(vma: int) -> int:
    """Return the length of `vma` in pages."""
    return (load(vma + VMA.vm_end) - load(vma + VMA.vm_start)) >> PAGE_SHIFT


# The slab.  A free slot is linked through the word that the RCU callback links use too, so a
# late reader sees the same garbage in vm_start as in the kernel.  Its other words stay as they
# were, and the links of the tree never point out of the slab.


@kernel
def vm_area_alloc(cpu: int, mm: int) -> int:
    """Return a VMA of `mm` with all other fields zero, or 0 if the slab is used up."""
    vma = vma_slab_alloc(cpu)
    if vma == 0:
        return 0
    for i in range(VMA.slab_state // WORD):
        store(vma + i * WORD, 0)
    store(vma + VMA.vm_mm, mm)
    store(vma + VMA.vm_userfaultfd_ctx, 0)
    vma_lock_init(cpu, vma)
    return vma


@kernel
def vm_area_dup(cpu: int, orig: int) -> int:
    """Return a copy of `orig` that is not linked and has no anon_vma, or 0 if there is no slot.

    It has a reference of its own to the file.
    """
    vma = vm_area_alloc(cpu, load(orig + VMA.vm_mm))
    if vma == 0:
        return 0
    store(vma + VMA.vm_start, load(orig + VMA.vm_start))
    store(vma + VMA.vm_end, load(orig + VMA.vm_end))
    store(vma + VMA.vm_page_prot, load(orig + VMA.vm_page_prot))
    store(vma + VMA.vm_flags, load(orig + VMA.vm_flags))
    store(vma + VMA.vm_ops, load(orig + VMA.vm_ops))
    store(vma + VMA.vm_pgoff, load(orig + VMA.vm_pgoff))
    vma_set_file(vma, load(orig + VMA.vm_file))
    store(vma + VMA.vm_userfaultfd_ctx, load(orig + VMA.vm_userfaultfd_ctx))
    return vma


@kernel
def vma_set_file(vma: int, file: int) -> None:
    """Let `vma`, which has none yet, map `file` (0: none); takes a reference."""
    if file != 0:
        get_file(file)
    store(vma + VMA.vm_file, file)


@kernel
def vm_area_free(cpu: int, vma: int) -> None:
    """Free an unlinked VMA: after a grace period, or at once if its mm has a single thread.

    With a single thread nobody else can be looking the VMA up.  Source: patch 29 of the series.
    """
    mm = load(vma + VMA.vm_mm)
    if read_once(mm + MM.mm_users) > 1:
        store(vma + VMA.slab_state, SlabState.RCU_PENDING)
        call_rcu(cpu, vma)
    else:
        vm_area_free_rcu(cpu, vma)


@kernel
def vm_area_free_rcu(cpu: int, vma: int) -> None:
    """Put a VMA that nobody can reach any more into this CPU's cache: the RCU callback.

    Its file goes only now, because a speculative fault may have been using that (RFC of the patch
    set, "rcu safe vma freeing of vm_file"): a file may be in use for some time after munmap.
    """
    file = load(vma + VMA.vm_file)
    if file != 0:
        store(vma + VMA.vm_file, 0)
        fput(cpu, file)
    store(vma + VMA.slab_state, SlabState.FREE)
    slab_cache_give(cpu, CPU.vma_list, SYSTEM.vma_lock, SYSTEM.vma_free, VMA.vm_start, vma)


@kernel
def vma_slab_alloc(cpu: int) -> int:
    """Take a free slot; 0 if there is none."""
    vma = slab_cache_take(cpu, CPU.vma_list, SYSTEM.vma_lock, SYSTEM.vma_free, VMA.vm_start)
    if vma == 0:
        return 0
    store(vma + VMA.generation, load(vma + VMA.generation) + 1)
    store(vma + VMA.slab_state, SlabState.IN_USE)
    return vma


@kernel
def vm_area_reserve(cpu: int) -> None:
    """See, before any lock is taken, that a system call will find the VMAs that it may need.

    The kernel's slab grows while freed VMAs wait for their grace period.  This one does not, so
    a CPU that unmaps faster than grace periods end waits for its own.
    """
    if load(cpu + CPU.vma_count) < VMA_RESERVE:
        vm_area_reserve_slowpath(cpu)


@slowpath
def vm_area_reserve_slowpath(cpu: int) -> None:
    """Fill the cache from the global list, else from what this CPU has queued for RCU."""
    slab_refill(cpu, CPU.vma_list, SYSTEM.vma_lock, SYSTEM.vma_free, VMA.vm_start)
    if load(cpu + CPU.vma_count) < VMA_RESERVE:
        rcu_barrier(cpu)


@kernel
def __find_vma(cpu: int, mm: int, addr: int) -> int:
    """Find the first VMA that ends behind `addr`, or 0; it may start behind `addr` too.

    Needs the mmap lock, or rcu_read_lock and a check of mmap_seq afterwards.
    """
    vma = vmacache_find(cpu, mm, addr)
    if vma != 0:
        return vma
    vma = vma_rb_lookup(mm, addr)
    if vma != 0:
        vmacache_update(cpu, addr, vma)
    return vma


@kernel
def find_vma(cpu: int, mm: int, addr: int) -> int:
    """Find the first VMA that ends behind `addr`, or 0; the mmap lock must be held."""
    return __find_vma(cpu, mm, addr)


@kernel
def find_vma_intersection(cpu: int, mm: int, start: int, end: int) -> int:
    """Find the first VMA with a part of [start, end), or 0 (include/linux/mm.h)."""
    vma = find_vma(cpu, mm, start)
    return vma if vma != 0 and load(vma + VMA.vm_start) < end else 0


@kernel
def find_vma_links(mm: int, addr: int, end: int) -> tuple[int, int]:
    """Find where a VMA of [addr, end) belongs.

    Returns (1, 0) if it would overlap another, else (0, the VMA before it or 0).  Needs the mmap
    lock.
    """
    prev = 0
    node = load(mm + MM.mm_rb)
    while node != 0:
        if load(node + VMA.vm_end) <= addr:
            prev = node
            node = load(node + VMA.rb_right)
        elif load(node + VMA.vm_start) >= end:
            node = load(node + VMA.rb_left)
        else:
            return 1, 0
    return 0, prev


# Linking.  All of it needs the mmap lock for writing.


@kernel
def vma_link(mm: int, vma: int, prev: int) -> None:
    """Insert `vma`, whose fields are set, behind `prev` (0: as the first).

    Of two neighbours in order, either the first has no right child or the second no left one:
    there the new leaf belongs.  Source: vma_link, __vma_link_rb.
    """
    following = load(prev + VMA.vm_next) if prev != 0 else load(mm + MM.mmap)
    parent = following
    side = VMA.rb_left
    if prev != 0 and load(prev + VMA.rb_right) == 0:
        parent = prev
        side = VMA.rb_right
    vma_link_list(mm, vma, prev, following)
    mm_write_seqlock(mm)
    # the gap of the next VMA has become smaller: everything is to be up to date when
    # the tree is rotated
    vma_gap_update(following)
    vma_rb_insert(mm, vma, parent, side)
    mm_write_sequnlock(mm)
    store(mm + MM.map_count, load(mm + MM.map_count) + 1)


@kernel
def vma_link_list(mm: int, vma: int, prev: int, following: int) -> None:
    """Insert `vma` into the list between two neighbours (0: none)."""
    store(vma + VMA.vm_prev, prev)
    store(vma + VMA.vm_next, following)
    if prev != 0:
        write_once(prev + VMA.vm_next, vma)
    else:
        store(mm + MM.mmap, vma)
    if following != 0:
        write_once(following + VMA.vm_prev, vma)
    else:
        store(mm + MM.highest_vm_end, load(vma + VMA.vm_end))


@kernel
def vma_unlink_list(mm: int, prev: int, following: int) -> None:
    """Join two VMAs (0: none) in the list after what was between them has left the tree."""
    if prev != 0:
        write_once(prev + VMA.vm_next, following)
    else:
        store(mm + MM.mmap, following)
    if following != 0:
        write_once(following + VMA.vm_prev, prev)
        vma_gap_update(following)
    else:
        store(mm + MM.highest_vm_end, load(prev + VMA.vm_end) if prev != 0 else 0)


@kernel
def detach_vmas_to_be_unmapped(mm: int, vma: int, prev: int, end: int) -> int:
    """Take `vma` and those behind it that start below `end` out of tree and list.

    They stay linked to each other by vm_next, the last with 0.  Returns the VMA behind them or
    0.  The caches of VMAs are invalidated last, see `vmacache_invalidate`.
    """
    last = vma
    detached = 0
    mm_write_seqlock(mm)
    while vma != 0 and load(vma + VMA.vm_start) < end:
        vma_rb_erase(mm, vma)
        detached += 1
        last = vma
        vma = load(vma + VMA.vm_next)
    mm_write_sequnlock(mm)
    vma_unlink_list(mm, prev, vma)
    write_once(last + VMA.vm_next, 0)
    store(mm + MM.map_count, load(mm + MM.map_count) - detached)
    vmacache_invalidate(mm)
    return vma


@kernel
def vma_remove(cpu: int, mm: int, vma: int) -> None:
    """Unlink and free a VMA whose range another one takes over (__vma_adjust, remove_next).

    It is locked for writing, because its range no longer has a VMA when it leaves the tree; so is
    the list of its file's mappings, until the other has the range.
    """
    prev = load(vma + VMA.vm_prev)
    following = load(vma + VMA.vm_next)
    mm_write_seqlock(mm)
    vma_rb_erase(mm, vma)
    mm_write_sequnlock(mm)
    vma_unlink_list(mm, prev, following)
    vmacache_invalidate(mm)
    vma_mark_detached(cpu, vma)
    store(mm + MM.map_count, load(mm + MM.map_count) - 1)
    __remove_shared_vm_struct(vma)
    unlink_anon_vmas(cpu, vma)
    vm_area_free(cpu, vma)


# Splitting and merging.  The kernel does both with __vma_adjust; here each case is its own.


@kernel
def vma_set_start(vma: int, start: int) -> None:
    """Move the start of `vma`, keeping the page offset of each address."""
    pages = (start - load(vma + VMA.vm_start)) >> PAGE_SHIFT
    write_once(vma + VMA.vm_start, start)
    write_once(vma + VMA.vm_pgoff, load(vma + VMA.vm_pgoff) + pages)


@kernel
def vma_expand_down(vma: int, start: int) -> None:
    """Move the start of `vma` down into the gap before it."""
    vma_set_start(vma, start)
    vma_gap_update(vma)


@kernel
def vma_expand_up(mm: int, vma: int, end: int) -> None:
    """Move the end of `vma` up into the gap behind it."""
    write_once(vma + VMA.vm_end, end)
    following = load(vma + VMA.vm_next)
    if following != 0:
        vma_gap_update(following)
    else:
        store(mm + MM.highest_vm_end, end)


@kernel
def vma_shift_boundary(lower: int, upper: int, addr: int) -> None:
    """Move the boundary between two VMAs that touch; there is no gap before or after."""
    vm_write_begin(lower)
    vm_write_begin(upper)
    write_once(lower + VMA.vm_end, addr)
    vma_set_start(upper, addr)
    vm_write_end(upper)
    vm_write_end(lower)


@kernel
def __split_vma(cpu: int, mm: int, vma: int, addr: int, new_below: int) -> int:
    """Split `vma` at `addr`; the new VMA is the lower part if `new_below`.  0 or -ENOMEM."""
    new = vm_area_dup(cpu, vma)
    if new == 0:
        return -Errno.ENOMEM
    vma_start_write(cpu, vma)
    vma_start_write(cpu, new)
    if anon_vma_clone(cpu, new, vma) != 0:
        vm_area_free(cpu, new)
        return -Errno.ENOMEM
    vma_i_mmap_lock(cpu, vma)
    vm_write_begin(vma)
    if new_below:
        store(new + VMA.vm_end, addr)
        vma_set_start(vma, addr)
        vma_mark_attached(cpu, new)
        vma_link(mm, new, load(vma + VMA.vm_prev))
    else:
        vma_set_start(new, addr)
        write_once(vma + VMA.vm_end, addr)
        vma_mark_attached(cpu, new)
        vma_link(mm, new, vma)
    vm_write_end(vma)
    __vma_link_file(new, 0)
    vma_i_mmap_unlock(cpu, vma)
    count_vm_event(cpu, Event.VMA_SPLIT)
    return 0


@kernel
def split_vma(cpu: int, mm: int, vma: int, addr: int, new_below: int) -> int:
    """Split as `__split_vma` unless the process has too many VMAs; 0 or -ENOMEM."""
    if load(mm + MM.map_count) >= DEFAULT_MAP_COUNT:
        return -Errno.ENOMEM
    return __split_vma(cpu, mm, vma, addr, new_below)


@kernel
def is_mergeable_anon_vma(anon_vma1: int, anon_vma2: int) -> int:
    """Tell whether pages of both may be in one VMA: the same anon_vma, or one has none yet."""
    return anon_vma1 == 0 or anon_vma2 == 0 or anon_vma1 == anon_vma2


@kernel
def can_vma_merge(vma: int, vm_flags: int, anon_vma: int, file: int, uffd: int) -> int:
    """Tell whether `vma` may take in a range with these flags, anon_vma, file and userfaultfd.

    Before 6.16, a VMA without anon_vma takes in none that has one, though the other way round is
    fine (is_mergeable_anon_vma wants the VMA's chain to be singular, and an empty one is not).
    One that was inherited in a fork comes with its ancestors', so only its own kind takes it.
    """
    if load(vma + VMA.vm_flags) != vm_flags or load(vma + VMA.vm_file) != file:
        return 0
    if load(vma + VMA.vm_userfaultfd_ctx) != uffd:
        return 0
    own = load(vma + VMA.anon_vma)
    if anon_vma == own:
        return 1
    if own == 0:
        return CONFIG_LINUX_VERSION >= ANON_VMA_EITHER_WAY and not is_fork_child(anon_vma)
    return anon_vma == 0 and not is_fork_child(own)


@kernel
def can_vma_merge_after(
    vma: int, vm_flags: int, anon_vma: int, file: int, pgoff: int, uffd: int
) -> int:
    """Tell whether a range may be appended to `vma`; `pgoff` is that of the range."""
    if not can_vma_merge(vma, vm_flags, anon_vma, file, uffd):
        return 0
    return load(vma + VMA.vm_pgoff) + vma_pages(vma) == pgoff


@kernel
def can_vma_merge_before(
    vma: int, vm_flags: int, anon_vma: int, file: int, pgoff: int, uffd: int
) -> int:
    """Tell whether a range may be put in front of `vma`; `pgoff` is that of the range's end."""
    if not can_vma_merge(vma, vm_flags, anon_vma, file, uffd):
        return 0
    return load(vma + VMA.vm_pgoff) == pgoff


@kernel
def vma_merge(
    cpu: int,
    mm: int,
    prev: int,
    addr: int,
    end: int,
    vm_flags: int,
    anon_vma: int,
    file: int,
    pgoff: int,
    uffd: int,
) -> int:
    """Let a neighbour take over [addr, end) if it is alike; returns that VMA, or 0 if none is.

    `prev` is the VMA before the range, or the one that contains it if it does not start there.
    The range is a gap (cases 1 to 3) or all or the end or start of a VMA that gets
    new flags (mprotect: cases 4 to 8).  Source: vma_merge, where the cases are drawn.
    """
    area = load(prev + VMA.vm_next) if prev != 0 else load(mm + MM.mmap)
    upper = area
    if area != 0 and load(area + VMA.vm_end) == end:
        upper = load(area + VMA.vm_next)  # cases 6, 7, 8: the range is all of `area`
    merge_prev = 0
    if prev != 0 and load(prev + VMA.vm_end) == addr:
        merge_prev = can_vma_merge_after(prev, vm_flags, anon_vma, file, pgoff, uffd)
    merge_upper = 0
    if upper != 0 and load(upper + VMA.vm_start) == end:
        upper_pgoff = pgoff + ((end - addr) >> PAGE_SHIFT)
        merge_upper = can_vma_merge_before(upper, vm_flags, anon_vma, file, upper_pgoff, uffd)
    if merge_prev and merge_upper:
        merge_upper = is_mergeable_anon_vma(load(prev + VMA.anon_vma), load(upper + VMA.anon_vma))
    if merge_prev:
        vma_merge_after(cpu, mm, prev, area, upper, end, merge_upper)
    elif merge_upper:
        vma_merge_before(cpu, mm, prev, area, upper, addr)
    else:
        return 0
    count_vm_event(cpu, Event.VMA_MERGE)
    return prev if merge_prev else upper


@kernel
def anon_vma_inherit(cpu: int, dst: int, src: int) -> None:
    """Let `dst` share the anon_vma of `src`, whose pages it takes over, unless it has it already.

    That cannot fail: what a fork's child has inherited is not merged with what has no anon_vma.
    Source: dup_anon_vma.
    """
    if load(dst + VMA.anon_vma) == 0:
        anon_vma_clone(cpu, dst, src)


@kernel
def vma_merge_after(
    cpu: int, mm: int, prev: int, area: int, upper: int, end: int, merge_upper: int
) -> None:
    """Expand `prev` to `end`, and over `upper` too if `merge_upper`: cases 1, 2, 5, 6 and 7.

    All that is changed or removed is locked for writing first: a fault that holds one of them
    must not meet the anon_vma of another before it is known to stay.
    """
    vma_start_write(cpu, prev)
    if area != upper or (area != 0 and load(area + VMA.vm_start) < end):
        vma_start_write(cpu, area)
    if merge_upper:
        vma_start_write(cpu, upper)
    vma_i_mmap_lock(cpu, prev)
    if area != upper:
        anon_vma_inherit(cpu, prev, area)
        vma_remove(cpu, mm, area)  # cases 6, 7
    elif area != 0 and load(area + VMA.vm_start) < end:
        anon_vma_inherit(cpu, prev, area)
        vma_shift_boundary(prev, area, end)  # case 5
        vma_i_mmap_unlock(cpu, prev)
        return
    if merge_upper:
        anon_vma_inherit(cpu, prev, upper)
        end = load(upper + VMA.vm_end)
        vma_remove(cpu, mm, upper)  # cases 1, 6
    vm_write_begin(prev)
    vma_expand_up(mm, prev, end)
    vm_write_end(prev)
    vma_i_mmap_unlock(cpu, prev)


@kernel
def vma_merge_before(cpu: int, mm: int, prev: int, area: int, upper: int, addr: int) -> None:
    """Expand `upper` down to `addr`: cases 3, 4 and 8."""
    vma_start_write(cpu, upper)
    if prev != 0 and load(prev + VMA.vm_end) > addr:
        vma_start_write(cpu, prev)
    if area != upper:
        vma_start_write(cpu, area)
    vma_i_mmap_lock(cpu, upper)
    if prev != 0 and load(prev + VMA.vm_end) > addr:
        anon_vma_inherit(cpu, upper, prev)
        vma_shift_boundary(prev, upper, addr)  # case 4
        vma_i_mmap_unlock(cpu, upper)
        return
    if area != upper:
        anon_vma_inherit(cpu, upper, area)
        vma_remove(cpu, mm, area)  # case 8
    vm_write_begin(upper)
    vma_expand_down(upper, addr)
    vm_write_end(upper)
    vma_i_mmap_unlock(cpu, upper)
