# SPDX-License-Identifier: MIT
"""The calls that change or ask about an address space, and the arguments that they can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import partial

from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.mm.flags import TASK_SIZE, Errno, Madv, Map, Mcl, Mremap, Msync, Prot
from spfemu.trace.lexer import Text, descriptor, flags, pointer
from spfemu.trace.problems import TraceError, quote

Names = Mapping[str, int]


class Call(IntEnum):
    """The calls that are replayed."""

    MMAP = 1
    MUNMAP = 2
    MPROTECT = 3
    MREMAP = 4
    BRK = 5
    MADVISE = 6
    MLOCK = 7
    MLOCK2 = 8
    MUNLOCK = 9
    MLOCKALL = 10
    MUNLOCKALL = 11
    MSYNC = 12
    MINCORE = 13


UNSUPPORTED = frozenset(
    {
        "shmat",
        "shmdt",
        "remap_file_pages",
        "process_madvise",
        "mseal",
        "map_shadow_stack",
        "userfaultfd",
    }
)
"""Calls that change address spaces and are only counted."""
FOREIGN = frozenset({"mmap2", "old_mmap", "mmap_pgoff"})
"""Calls that x86-64 does not have."""


@dataclass(frozen=True, slots=True)
class MemoryCall:
    """One call.

    `arguments` are integers in the order of the call's; of mmap those before the descriptor and the
    offset.  `result` is an address, 0 or a negative errno; None: not known when the call was made.
    """

    line: int
    pid: int
    seconds: float | None
    call: Call
    arguments: tuple[int, ...]
    result: int | None
    path: str | None = None
    """What mmap maps, "" if the file has no known name; None: no file."""
    offset: int = 0
    """Where in the file a mapping begins [bytes]."""


def _names(prefix: str, values: type[IntEnum | IntFlag], more: Names) -> dict[str, int]:
    named = {prefix + name: int(member) for name, member in values.__members__.items()}
    return named | {prefix + name: value for name, value in more.items()}


PROT = _names("PROT_", Prot, {"SEM": 0x8, "GROWSDOWN": 0x1000000, "GROWSUP": 0x2000000})
MAP = _names(
    "MAP_",
    Map,
    {"FILE": 0, "32BIT": 0x40, "ABOVE4G": 0x80, "SYNC": 0x80000, "UNINITIALIZED": 0x4000000},
)
MAP["MAP_ANON"] = int(Map.ANONYMOUS)
MAP |= {"MAP_HUGE_2MB": 21 << 26, "MAP_HUGE_1GB": 30 << 26}
MREMAP = _names("MREMAP_", Mremap, {"MAYMOVE": 1})
ADVICE = _names(
    "MADV_",
    Madv,
    {"HWPOISON": 100, "SOFT_OFFLINE": 101, "GUARD_INSTALL": 102, "GUARD_REMOVE": 103},
)
MLOCK2 = {"MLOCK_ONFAULT": 1}
MCL = _names("MCL_", Mcl, {})
MS = _names("MS_", Msync, {})

Decode = Callable[[str], int]


def _flags(names: Names, what: str) -> Decode:
    return partial(flags, names=names, what=what)


_PROT = _flags(PROT, "rights")
_ARGUMENTS: dict[Call, tuple[Decode, ...]] = {
    Call.MMAP: (pointer, pointer, _PROT, _flags(MAP, "flags of mmap")),
    Call.MUNMAP: (pointer, pointer),
    Call.MPROTECT: (pointer, pointer, _PROT),
    Call.MREMAP: (pointer, pointer, pointer, _flags(MREMAP, "flags of mremap"), pointer),
    Call.BRK: (pointer,),
    Call.MADVISE: (pointer, pointer, _flags(ADVICE, "advice")),
    Call.MLOCK: (pointer, pointer),
    Call.MLOCK2: (pointer, pointer, _flags(MLOCK2, "flags of mlock2")),
    Call.MUNLOCK: (pointer, pointer),
    Call.MLOCKALL: (_flags(MCL, "flags of mlockall"),),
    Call.MUNLOCKALL: (),
    Call.MSYNC: (pointer, pointer, _flags(MS, "flags of msync")),
    Call.MINCORE: (pointer, pointer),
}
_GIVEN = {
    Call.MMAP: (6,),
    Call.MREMAP: (4, 5),
    Call.MINCORE: (3,),
}
"""How many arguments strace prints, where that is not the number of those that are used."""
CALLS = {call.name.lower(): call for call in Call} | {"pkey_mprotect": Call.MPROTECT}


def decode(line: int, pid: int, seconds: float | None, text: Text) -> MemoryCall:
    """Make integers of a call on memory; raises TraceError for what no program can have done."""
    call = CALLS[text.name]
    texts = text.arguments
    if text.name == "pkey_mprotect":
        texts = texts[:3]
    decoders = _ARGUMENTS[call]
    if len(texts) not in _GIVEN.get(call, (len(decoders),)):
        raise TraceError(f"{text.name} has {len(texts)} arguments: {quote(', '.join(texts))}")
    arguments = tuple(d(t) for d, t in zip(decoders, texts, strict=False))
    if len(arguments) < len(decoders):
        arguments += (0,) * (len(decoders) - len(arguments))
    path = None
    offset = 0
    if call is Call.MMAP:
        path, offset = _file(texts, arguments[3])
    _check_widths(text.name, arguments)
    result = _result(text)
    _check_result(call, arguments, result)
    return MemoryCall(line, pid, seconds, call, _signed(arguments), result, path, offset)


def _file(texts: tuple[str, ...], map_flags: int) -> tuple[str | None, int]:
    fd, path = descriptor(texts[4])
    offset = pointer(texts[5])
    if offset < 0 or offset >= 1 << 63:
        raise TraceError(f"mmap has an impossible offset: {quote(texts[5])}")
    if map_flags & Map.ANONYMOUS or fd < 0:
        return None, offset
    return path or "", offset


def _check_widths(name: str, arguments: tuple[int, ...]) -> None:
    for value in arguments:
        if value < -(1 << 31):
            raise TraceError(f"{name} has an impossible argument: {value}")


def _signed(arguments: tuple[int, ...]) -> tuple[int, ...]:
    """Words are signed: 2**63 and above become negative, as the kernel's functions take them."""
    return tuple(a - (1 << 64) if a >= 1 << 63 else a for a in arguments)


def _result(text: Text) -> int | None:
    """Return an address, 0 or a negative errno."""
    if text.result is None:
        return None
    if text.result != -1:
        return text.result
    if text.errno is None:
        raise TraceError(f"{text.name} failed without an error's name")
    return -ERRNO.get(text.errno, UNKNOWN_ERRNO)


UNKNOWN_ERRNO = 4095
"""Stands for errors that no emulated call returns."""
ERRNO = {error.name: int(error) for error in Errno}


def _check_result(call: Call, arguments: tuple[int, ...], result: int | None) -> None:
    """Refuse successes that no kernel of this architecture can have returned."""
    if result is None or result < 0:
        return
    if call in (Call.MMAP, Call.MREMAP):
        length = arguments[1 if call is Call.MMAP else 2]
        if result & ~PAGE_MASK:
            raise TraceError(f"{call.name.lower()} returned {result:#x}, which begins no page")
        if not 0 < length <= TASK_SIZE or result > TASK_SIZE - length:
            raise TraceError(
                f"{call.name.lower()} returned {result:#x} for {length:#x} bytes: not within the "
                f"{TASK_SIZE + PAGE_SIZE >> 40} TiB of this architecture"
            )
    elif call is Call.BRK:
        if result > TASK_SIZE:
            raise TraceError(f"brk returned {result:#x}, beyond the address space")
    elif result != 0:
        raise TraceError(f"{call.name.lower()} returned {result:#x}, not 0")
