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
    FIXED = 0x10
    ANONYMOUS = 0x20
    FIXED_NOREPLACE = 0x100000


class Madv(IntEnum):
    """Advice of madvise."""

    DONTNEED = 4


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
    ACCOUNT = 0x100000


class Errno(IntEnum):
    """Error numbers that calls return negated."""

    EPERM = 1
    EINTR = 4
    EBADF = 9
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EEXIST = 17
    EINVAL = 22
    ETIMEDOUT = 110


class FaultFlag(IntFlag):
    """FAULT_FLAG_*: what a fault is (include/linux/mm.h)."""

    WRITE = 0x01
    TRIED = 0x20
    USER = 0x40
    INSTRUCTION = 0x100
    SPECULATIVE = 0x400
    VMA_LOCK = 0x1000


class VmFault(IntFlag):
    """VM_FAULT_*: how handling it ended (include/linux/mm_types.h)."""

    OOM = 0x0001
    SIGSEGV = 0x0040
    RETRY = 0x0400


class Pte(IntFlag):
    """Bits of a page-table entry on x86-64; bits 12-51 are the frame's address."""

    PRESENT = 0x001
    RW = 0x002
    USER = 0x004
    ACCESSED = 0x020
    DIRTY = 0x040
    PSE = 0x080
    SPECIAL = 0x200
    PROTNONE = 0x100
    NX = 1 << 62  # bit 63 on x86-64: words here are signed, so the sign bit stays clear


PTE_ADDR_MASK = ((1 << 52) - 1) & PAGE_MASK

PTRS_PER_TABLE = 512
PMD_SHIFT, PUD_SHIFT, PGDIR_SHIFT = 21, 30, 39
PMD_SIZE, PUD_SIZE, PGDIR_SIZE = 1 << 21, 1 << 30, 1 << 39
TASK_SIZE = (1 << 47) - PAGE_SIZE
MMAP_MIN_ADDR = 0x10000
DEFAULT_MAP_COUNT = 65530
"""sysctl_max_map_count."""


class PageKind(IntEnum):
    """PAGE.flags: what a frame is used for."""

    FREE = 0
    ANON = 1
    TABLE = 2
    RESERVED = 3
