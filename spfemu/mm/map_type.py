# SPDX-License-Identifier: MIT
"""Shared or private, of a file or not: what mmap makes of it (Linux 6.18, mm/mmap.c: do_mmap)."""

from spfemu.kernel import kernel
from spfemu.layout import ADDRESS_SPACE, FILE, PAGE_SHIFT
from spfemu.mm.flags import Errno, FileOps, Fmode, Map, Prot, Vm
from spfemu.primitives import load

MAP_TYPE = 0x0F
"""The bits of mmap's flags that say shared or private."""
LEGACY_MAP_MASK = int(
    Map.SHARED
    | Map.PRIVATE
    | Map.FIXED
    | Map.ANONYMOUS
    | Map.DENYWRITE
    | Map.EXECUTABLE
    | Map.GROWSDOWN
    | Map.LOCKED
    | Map.NORESERVE
    | Map.POPULATE
    | Map.NONBLOCK
    | Map.STACK
    | Map.HUGETLB
    | 0x40  # MAP_32BIT
    | 0x3F << 26  # the size of huge pages
)
"""Flags that MAP_SHARED_VALIDATE knows; MAP_SHARED ignores all others."""
MAX_LFS_SIZE = (1 << 63) - 1
"""Longest possible file [bytes] (MAX_LFS_FILESIZE)."""
VM_SHARED_FLAGS = int(Vm.SHARED | Vm.MAYSHARE)


@kernel
def file_mmap_ok(pgoff: int, length: int) -> int:
    """Tell whether a file can have all pages of the mapping."""
    return 0 <= pgoff <= (MAX_LFS_SIZE - length) >> PAGE_SHIFT


@kernel
def anon_map_flags(flags: int, vm_flags: int) -> tuple[int, int]:
    """Return (0, vm_flags) of an anonymous mapping, or (-EINVAL, 0)."""
    if (flags & MAP_TYPE) == Map.PRIVATE:
        return 0, vm_flags
    if (flags & MAP_TYPE) != Map.SHARED or vm_flags & Vm.GROWSDOWN:
        return -Errno.EINVAL, 0
    return 0, vm_flags | VM_SHARED_FLAGS


@kernel
def shared_map_flags(file: int, prot: int, flags: int, vm_flags: int) -> tuple[int, int]:
    """Return (0, vm_flags) of a shared mapping of `file`, or (a negative errno, 0).

    One of a file that has not been opened for writing is treated as a private one that can never
    become writable, but for VM_MAYSHARE.
    """
    if (flags & MAP_TYPE) == Map.SHARED_VALIDATE and flags & ~LEGACY_MAP_MASK:
        return -Errno.EOPNOTSUPP, 0
    if load(file + FILE.f_mode) & Fmode.WRITE:
        return 0, vm_flags | VM_SHARED_FLAGS
    if prot & Prot.WRITE:
        return -Errno.EACCES, 0
    return 0, (vm_flags | Vm.MAYSHARE) & ~Vm.MAYWRITE


@kernel
def file_map_flags(
    file: int, pgoff: int, length: int, prot: int, flags: int, vm_flags: int
) -> tuple[int, int]:
    """Return (0, vm_flags) of a mapping of `file`, or (a negative errno, 0)."""
    if file_mmap_ok(pgoff, length) == 0:
        return -Errno.EOVERFLOW, 0
    error = 0
    kind = flags & MAP_TYPE
    if kind == Map.SHARED or kind == Map.SHARED_VALIDATE:
        error, vm_flags = shared_map_flags(file, prot, flags, vm_flags)
    elif kind != Map.PRIVATE:
        return -Errno.EINVAL, 0
    if error != 0:
        return error, 0
    if (load(file + FILE.f_mode) & Fmode.READ) == 0:
        return -Errno.EACCES, 0
    if load(load(file + FILE.f_mapping) + ADDRESS_SPACE.i_fop) == FileOps.NO_MMAP:
        return -Errno.ENODEV, 0
    if vm_flags & Vm.GROWSDOWN:
        return -Errno.EINVAL, 0
    return 0, vm_flags
