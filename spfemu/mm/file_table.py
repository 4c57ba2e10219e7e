# SPDX-License-Identifier: MIT
"""Open files and what they are open on (Linux 5.12, fs/file_table.c, fs/inode.c).

There are no names: a file is made with its first descriptor and gone with the last reference.
Differs in that an inode and its address_space are one object, and in that the last reference frees
the file at once, where the kernel puts that off to the way out of the system call.
"""

from typing import TYPE_CHECKING

from spfemu.kernel import kernel, slowpath
from spfemu.layout import ADDRESS_SPACE, FILE, SYSTEM, WORD
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.flags import Errno, FileOps, Fmode
from spfemu.mm.slab import slab_give, slab_take
from spfemu.mm.truncate import truncate_inode_pages
from spfemu.mm.xarray import XA_MAX_INDEX, xa_destroy
from spfemu.primitives import atomic_fetch_add, atomic_fetch_add_relaxed, load, store

if TYPE_CHECKING:  # circular
    from spfemu.mm.drain import drain_all_pages

FMODE_ALL = int(Fmode.READ | Fmode.WRITE)
LAST_INODE_WORD = ADDRESS_SPACE.SIZE // WORD


@slowpath
def new_inode(cpu: int, size: int, i_fop: int) -> int:
    """Return an ADDRESS_SPACE of `size` bytes with one reference, or 0 if there is no slot."""
    mapping = slab_take(cpu, SYSTEM.files_lock, SYSTEM.mapping_free, ADDRESS_SPACE.next_free)
    if mapping == 0:
        return 0
    for i in range(LAST_INODE_WORD):
        store(mapping + i * WORD, 0)
    store(mapping + ADDRESS_SPACE.i_count, 1)
    store(mapping + ADDRESS_SPACE.i_fop, i_fop)
    store(mapping + ADDRESS_SPACE.i_size, size)
    return mapping


@kernel
def iput(cpu: int, mapping: int) -> None:
    """Drop a reference; with the last one the file is gone."""
    count = atomic_fetch_add(mapping + ADDRESS_SPACE.i_count, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        evict(cpu, mapping)


@slowpath
def evict(cpu: int, mapping: int) -> None:
    """Free the pages and the slot of a file that nobody refers to."""
    truncate_inode_pages(cpu, mapping, 0, XA_MAX_INDEX)
    xa_destroy(cpu, mapping)
    slab_give(cpu, SYSTEM.files_lock, SYSTEM.mapping_free, ADDRESS_SPACE.next_free, mapping)


@slowpath
def alloc_file(cpu: int, mapping: int, f_mode: int) -> int:
    """Open `mapping`, whose reference the file takes over; 0 if there is no slot."""
    file = slab_take(cpu, SYSTEM.files_lock, SYSTEM.file_free, FILE.next_free)
    if file == 0:
        return 0
    store(file + FILE.f_mode, f_mode)
    store(file + FILE.f_mapping, mapping)
    store(file + FILE.descriptors, 0)
    store(file + FILE.f_count, 1)
    return file


@kernel
def get_file(file: int) -> None:
    """Take another reference to a file that is known to have one."""
    atomic_fetch_add_relaxed(file + FILE.f_count, 1)


@kernel
def fput(cpu: int, file: int) -> None:
    """Drop a reference; the full order puts what its holder did before the freeing."""
    count = atomic_fetch_add(file + FILE.f_count, -1)
    vm_bug_on(count <= 0, Bug.REFCOUNT_UNDERFLOW)
    if count == 1:
        __fput(cpu, file)


@slowpath
def __fput(cpu: int, file: int) -> None:
    """Free a file without references."""
    iput(cpu, load(file + FILE.f_mapping))
    slab_give(cpu, SYSTEM.files_lock, SYSTEM.file_free, FILE.next_free, file)


@slowpath
def make_file(cpu: int, size: int, i_fop: int) -> int:
    """Return a new file of `size` bytes, open for reading and writing, with one reference; or 0."""
    file = open_new_inode(cpu, size, i_fop)
    if file == 0:
        # files that have been unmapped may wait for a grace period
        drain_all_pages(cpu)
        file = open_new_inode(cpu, size, i_fop)
    return file


@kernel
def open_new_inode(cpu: int, size: int, i_fop: int) -> int:
    """Do so if there are free slots."""
    mapping = new_inode(cpu, size, i_fop)
    if mapping == 0:
        return 0
    file = alloc_file(cpu, mapping, FMODE_ALL)
    if file == 0:
        iput(cpu, mapping)
    return file


@kernel
def shmem_file_setup(cpu: int, size: int) -> int:
    """Return the unnamed file behind a shared anonymous mapping, or 0 (mm/shmem.c)."""
    return make_file(cpu, size, FileOps.SHMEM)


# Descriptors: what programs hold.


@slowpath
def sys_create(cpu: int, size: int, i_fop: int) -> int:
    """Make a file of `size` bytes, all zero, and open it for reading and writing.

    Returns it or -ENFILE.  Stands for open with O_CREAT, or memfd_create, and ftruncate.
    """
    file = make_file(cpu, size, i_fop)
    if file == 0:
        return -Errno.ENFILE
    store(file + FILE.descriptors, 1)
    return file


@slowpath
def sys_open(cpu: int, file: int, f_mode: int) -> int:
    """Open the file that `file` is open on once more; returns the new one or -ENFILE."""
    mapping = load(file + FILE.f_mapping)
    atomic_fetch_add_relaxed(mapping + ADDRESS_SPACE.i_count, 1)
    opened = alloc_file(cpu, mapping, f_mode)
    if opened == 0:
        iput(cpu, mapping)
        return -Errno.ENFILE
    store(opened + FILE.descriptors, 1)
    return opened


@slowpath
def sys_close(cpu: int, file: int) -> int:
    """Drop a descriptor; what maps the file keeps it.  Returns 0."""
    atomic_fetch_add_relaxed(file + FILE.descriptors, -1)
    fput(cpu, file)
    return 0
