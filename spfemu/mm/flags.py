# SPDX-License-Identifier: MIT
"""Constants that the kernel and its users share, with Linux's values (5.12, x86-64)."""

from enum import IntEnum, IntFlag

from spfemu.layout import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE

__all__ = ["PAGE_MASK", "PAGE_SHIFT", "PAGE_SIZE"]


class Prot(IntFlag):
    """Access rights of mmap and mprotect."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4


class Map(IntFlag):
    """Flags of mmap."""

    SHARED = 0x01
    PRIVATE = 0x02
    SHARED_VALIDATE = 0x03
    FIXED = 0x10
    ANONYMOUS = 0x20
    GROWSDOWN = 0x0100
    DENYWRITE = 0x0800
    EXECUTABLE = 0x1000
    LOCKED = 0x2000
    NORESERVE = 0x4000
    POPULATE = 0x8000
    NONBLOCK = 0x10000
    STACK = 0x20000
    HUGETLB = 0x40000
    FIXED_NOREPLACE = 0x100000


class Mremap(IntFlag):
    """Flags of mremap."""

    MAYMOVE = 1
    FIXED = 2
    DONTUNMAP = 4


class Msync(IntFlag):
    """Flags of msync."""

    ASYNC = 1
    INVALIDATE = 2
    SYNC = 4


class Mcl(IntFlag):
    """Flags of mlockall; ONFAULT is also mlock2's, where its value is 1."""

    CURRENT = 1
    FUTURE = 2
    ONFAULT = 4


class Madv(IntEnum):
    """Advice of madvise."""

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25


class Foll(IntFlag):
    """FOLL_*: how get_user_pages takes frames (include/linux/mm.h)."""

    WRITE = 0x01
    GET = 0x04
    LONGTERM = 0x10000
    PIN = 0x40000
    FAST_ONLY = 0x80000


class Vm(IntFlag):
    """vm_flags (include/linux/mm.h)."""

    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SHARED = 0x8
    MAYREAD = 0x10
    MAYWRITE = 0x20
    MAYEXEC = 0x40
    MAYSHARE = 0x80
    GROWSDOWN = 0x100
    UFFD_MISSING = 0x200
    UFFD_WP = 0x1000
    LOCKED = 0x2000
    SEQ_READ = 0x8000
    RAND_READ = 0x10000
    DONTCOPY = 0x20000
    DONTEXPAND = 0x40000
    LOCKONFAULT = 0x80000
    ACCOUNT = 0x100000
    NORESERVE = 0x200000
    WIPEONFORK = 0x2000000
    DONTDUMP = 0x4000000
    HUGEPAGE = 0x20000000
    NOHUGEPAGE = 0x40000000
    MERGEABLE = 0x80000000


VM_UFFD_FLAGS = int(Vm.UFFD_MISSING | Vm.UFFD_WP)
"""Bits of a VMA that go with its userfaultfd context (__VM_UFFD_FLAGS)."""


class Fmode(IntFlag):
    """FILE.f_mode: what a file has been opened for (include/linux/fs.h)."""

    READ = 1
    WRITE = 2


class FileOps(IntEnum):
    """ADDRESS_SPACE.i_fop and VMA.vm_ops: what kind of file it is."""

    NO_MMAP = 0
    GENERIC = 1
    SHMEM = 2


class Errno(IntEnum):
    """Error numbers that calls return negated."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    ENODEV = 19
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    EFBIG = 27
    ENOSPC = 28
    ENOSYS = 38
    EOVERFLOW = 75
    EOPNOTSUPP = 95
    ETIMEDOUT = 110


class FaultFlag(IntFlag):
    """FAULT_FLAG_*: what a fault is (include/linux/mm.h)."""

    WRITE = 0x01
    ALLOW_RETRY = 0x04
    TRIED = 0x20
    USER = 0x40
    INSTRUCTION = 0x100
    SPECULATIVE = 0x400
    VMA_LOCK = 0x1000


class VmFault(IntFlag):
    """VM_FAULT_*: how handling it ended (include/linux/mm_types.h)."""

    OOM = 0x0001
    SIGBUS = 0x0002
    MAJOR = 0x0004
    SIGSEGV = 0x0040
    NOPAGE = 0x0100
    LOCKED = 0x0200
    RETRY = 0x0400


VM_FAULT_ERROR = int(VmFault.OOM | VmFault.SIGBUS | VmFault.SIGSEGV)
"""The fault failed."""


class Pte(IntFlag):
    """Bits of a page-table entry on x86-64; bits 12-51 are the frame's address."""

    PRESENT = 0x001
    RW = 0x002
    USER = 0x004
    ACCESSED = 0x020
    DIRTY = 0x040
    PSE = 0x080
    PROTNONE = 0x100
    SPECIAL = 0x200
    UFFD_WP = 0x400
    NX = 1 << 62  # bit 63 on x86-64: words here are signed, so the sign bit stays clear


PTE_ADDR_MASK = ((1 << 52) - 1) & PAGE_MASK

PTRS_PER_TABLE = 512
PMD_SHIFT, PUD_SHIFT, PGDIR_SHIFT = 21, 30, 39
HPAGE_PMD_NR = 512
"""Frames of a huge page, the size of what a pmd entry maps."""
PMD_SIZE, PUD_SIZE, PGDIR_SIZE = 1 << 21, 1 << 30, 1 << 39
TASK_SIZE = (1 << 47) - PAGE_SIZE
MMAP_MIN_ADDR = 0x10000
RLIM_INFINITY = 1 << 62
"""No limit: more than any sum of lengths, and far from where words overflow [bytes]."""
STACK_GUARD_GAP = 256 << PAGE_SHIFT
"""What a growing stack keeps free below it [bytes] (stack_guard_gap)."""
DEFAULT_MAP_COUNT = 65530
"""sysctl_max_map_count."""


class PageKind(IntEnum):
    """Low bits of PAGE.flags: what a frame is used for."""

    FREE = 0
    ANON = 1
    TABLE = 2
    RESERVED = 3
    FILE = 4
    XA_NODE = 5


PAGE_KIND_MASK = 7
"""The bits of PAGE.flags that hold its PageKind; those of Pg lie above."""


class Pg(IntFlag):
    """State of a page in PAGE.flags, beside its kind (include/linux/page-flags.h: PG_*)."""

    LOCKED = 0x010
    UPTODATE = 0x020
    DIRTY = 0x040
    REFERENCED = 0x080
    SWAPCACHE = 0x100
    SWAPBACKED = 0x200
    WRITEBACK = 0x400
    COMPOUND = 0x8000  # part of a huge frame
    WAITERS = 0x800
    LAZYFREE = 0x1000  # the contrary of PG_swapbacked: MADV_FREE gave it up
    ANON_SHARED = 0x4000  # a fork has shared it since it was last one process's own
