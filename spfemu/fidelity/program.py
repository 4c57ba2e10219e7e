# SPDX-License-Identifier: MIT
"""Programs: lists of operations on addresses that are relative to windows.

Where the windows lie differs from run to run (the real kernel randomises addresses), so a program
that is kept names them.  A file of a program is JSON; `listing` shows one as C.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntFlag, StrEnum
from pathlib import Path

import msgspec

from spfemu.errors import UsageError
from spfemu.fidelity.channel import FILE_SIZES, MAX_OPERATIONS
from spfemu.fidelity.interpreter import Kind
from spfemu.layout import PAGE_SIZE, WORD
from spfemu.mm.flags import TASK_SIZE, Madv, Map, Mremap, Msync, Prot
from spfemu.mm.map_type import MAP_TYPE
from spfemu.results import JSON_ERRORS, read_json

FORMAT = "spfemu-program-1"
_WRAP = 1 << 64
FILE_SIZE_MAX = 64 * PAGE_SIZE
"""Longest length that programs give to a file [bytes]."""


class Window(StrEnum):
    """Parts of the address space in which programs work."""

    ABSOLUTE = ""  # no part: an address that no mapping can have
    LOW = "low"  # from the lowest address that may be mapped
    HEAP = "heap"  # from where the heap starts
    ARENA = "arena"  # far from everything else
    TOP = "top"  # up to where the kernel puts mappings without a hint


WINDOW_PAGES = {Window.LOW: 8, Window.HEAP: 16, Window.ARENA: 40, Window.TOP: 24}
"""Their sizes, in order of address."""

_EXPLAINED = {
    Window.LOW: "from the lowest address that may be mapped",
    Window.HEAP: "from where the heap starts, which is where it ends at first",
    Window.ARENA: "far from any other mapping",
    Window.TOP: f"ends {WINDOW_PAGES[Window.TOP]} pages on, where mappings without a hint go first",
}
_MAP_DROPPABLE = 8  # a type of mapping that the emulator does not have
_KNOWN_FLAGS = int(
    MAP_TYPE
    | Map.FIXED
    | Map.ANONYMOUS
    | Map.FIXED_NOREPLACE
    | Map.GROWSDOWN
    | Map.LOCKED
    | Map.NORESERVE
    | Map.POPULATE
    | Map.NONBLOCK
    | Map.STACK
)
_WITHOUT_RANGE = (Kind.BRK, Kind.UNMAP_ALL, Kind.FORK, Kind.SWITCH, Kind.EXIT)
_BOUNDED = (Kind.MMAP, Kind.MUNMAP)
"""Calls that refuse a length beyond the address space before they do anything."""

Bases = Mapping[Window, int]
"""First address of each window."""


class Operation(msgspec.Struct, frozen=True):
    """One call or touch.

    `address` is an offset in `window`; `value` is the word written, the advice, or flags.  The new
    length and the target are mremap's; `file` is the number of a file, 0: none.
    """

    kind: Kind
    window: Window = Window.ABSOLUTE
    address: int = 0
    length: int = 0
    prot: int = 0
    flags: int = 0
    value: int = 0
    new_length: int = 0
    target_window: Window = Window.ABSOLUTE
    target: int = 0
    file: int = 0
    offset: int = 0

    def words(self, bases: Bases) -> list[int]:
        """Return the operation as the interpreter takes it."""
        address = signed(bases[self.window] + self.address)
        length = signed(self.length)
        words = [int(self.kind), address, length, self.prot, self.flags, self.value]
        target = signed(bases[self.target_window] + self.target)
        return [*words, signed(self.new_length), target, self.file, signed(self.offset)]


Program = Sequence[Operation]

UNMAP_ALL = Operation(Kind.UNMAP_ALL)


class _Line(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """An operation as a file has it; `call` is the name of its kind."""

    call: str
    window: Window = Window.ABSOLUTE
    address: int = 0
    length: int = 0
    prot: int = 0
    flags: int = 0
    value: int = 0
    new_length: int = 0
    target_window: Window = Window.ABSOLUTE
    target: int = 0
    file: int = 0
    offset: int = 0


class _File(msgspec.Struct):
    format: str
    note: str
    operations: list[_Line]


def signed(value: int) -> int:
    """Return the 64 bits of `value` as a signed number."""
    value %= _WRAP
    return value - _WRAP if value >= _WRAP // 2 else value


def encode(operations: Program, note: str = "") -> bytes:
    """Return the contents of a file, an operation to a line."""
    head = msgspec.json.encode({"format": FORMAT, "note": note}).decode()
    lines = ",\n".join("  " + msgspec.json.encode(_line(o)).decode() for o in operations)
    return f'{head[:-1]},"operations":[\n{lines}\n]}}\n'.encode()


def _line(operation: Operation) -> _Line:
    fields = msgspec.structs.asdict(operation)
    kind: Kind = fields.pop("kind")
    return _Line(call=kind.name.lower(), **fields)


def _operation(line: _Line) -> Operation:
    """Raise ValueError if there is no such call."""
    fields = msgspec.structs.asdict(line)
    call = fields.pop("call")
    if call.upper() not in Kind.__members__:
        raise ValueError(f"no call '{call}'")
    return Operation(Kind[call.upper()], **fields)


def load(path: str | Path) -> list[Operation]:
    """Read a program; raises UsageError."""
    content = read_json(path)
    try:
        file = msgspec.json.decode(content, type=_File)
    except JSON_ERRORS as error:
        raise UsageError(f"{path} holds no program: {error}") from error
    if file.format != FORMAT:
        raise UsageError(f"{path} has the format '{file.format}', not '{FORMAT}'")
    if not 0 < len(file.operations) < MAX_OPERATIONS:
        raise UsageError(f"{path} must have 1 to {MAX_OPERATIONS - 1} operations")
    operations = []
    for count, line in enumerate(file.operations, 1):
        try:
            operation = _operation(line)
        except ValueError as error:
            raise UsageError(f"{path}: operation {count}: {error}") from error
        problem = unsafe(operation)
        if problem:
            raise UsageError(f"{path}: operation {count}: {problem}")
        operations.append(operation)
    return operations


def unsafe(operation: Operation) -> str:
    """Say why an operation must not be run, or nothing.

    One that reaches out of its window could change what the executor itself lives on.
    """
    if not 0 <= operation.file <= len(FILE_SIZES):
        return "there is no such file"
    for name in ("address", "length", "new_length", "target", "offset"):
        if not -_WRAP // 2 <= getattr(operation, name) < _WRAP:
            return f"{name} does not fit 64 bits"
    for name in ("prot", "flags", "value"):
        if not -_WRAP // 2 <= getattr(operation, name) < _WRAP // 2:
            return f"{name} does not fit 64 bits with a sign"
    kind, address = operation.kind, operation.address % _WRAP
    fixed = True
    if kind is Kind.MMAP:
        fixed = bool(operation.flags & Map.FIXED)
        if operation.flags & MAP_TYPE == _MAP_DROPPABLE or operation.flags & ~_KNOWN_FLAGS:
            return "the emulator does not have these flags"
    if kind is Kind.MREMAP:
        return _unsafe_mremap(operation)
    if kind in (Kind.FTRUNCATE, Kind.PWRITE):
        return _unsafe_file_call(operation)
    if kind in _WITHOUT_RANGE or not fixed:
        return ""
    length = WORD if kind in (Kind.READ, Kind.WRITE) else operation.length % _WRAP
    if operation.window is Window.ABSOLUTE:
        outside = address >= TASK_SIZE or address + length <= PAGE_SIZE
        return "" if outside else "it has no window and is no impossible address"
    size = WINDOW_PAGES[operation.window] * PAGE_SIZE
    refused = length >= _WRAP - PAGE_SIZE or (length > TASK_SIZE and kind in _BOUNDED)
    # mprotect stops at the first hole, and there is one behind the arena
    refused = refused or (kind is Kind.MPROTECT and operation.window is Window.ARENA)
    inside = address < size and address + length <= size
    return "" if inside or (refused and address < size) else "it reaches out of its window"


def _unsafe_file_call(operation: Operation) -> str:
    """Say why a file must not be changed so: more than can be looked at is only in the way."""
    if operation.file == 0:
        return "it needs a file"
    if operation.kind is Kind.PWRITE and (operation.offset < 0 or operation.offset % WORD):
        return "it must write a whole word of the file"
    longest = max(operation.length, operation.offset + WORD)
    return "" if longest <= FILE_SIZE_MAX else "the file would be too long"


def _unsafe_mremap(operation: Operation) -> str:
    """Say why mremap must not be run: source, what it may grow to and target are in windows."""
    if operation.window is Window.ABSOLUTE:
        return "" if operation.address % _WRAP >= TASK_SIZE else "mremap needs a window"
    size = WINDOW_PAGES[operation.window] * PAGE_SIZE
    grown = max(operation.length, operation.new_length)
    if operation.address + grown > size or min(operation.length, operation.new_length) < 0:
        return "it reaches out of its window"
    if operation.flags & Mremap.FIXED:
        if operation.target_window is Window.ABSOLUTE:
            return "" if operation.target % _WRAP >= TASK_SIZE else "its target needs a window"
        size = WINDOW_PAGES[operation.target_window] * PAGE_SIZE
        if operation.target + operation.new_length > size or operation.target < 0:
            return "its target reaches out of its window"
    return ""


# The listing.


def listing(operations: Program, results: Sequence[str] = (), note: str = "") -> str:
    """Show a program as C; `results` are comments for the operations from the first on."""
    lines = [f"/* {line} */" for line in note.splitlines()]
    used = dict.fromkeys(o.window for o in operations if o.window)
    lines += [f"/* {window}: {_EXPLAINED[window]} */" for window in used]
    width = max((len(statement(o)) for o in operations), default=0)
    for number, operation in enumerate(operations):
        comment = f"  /* {results[number]} */" if number < len(results) else ""
        text = statement(operation)
        lines.append(f"{text:<{width}}{comment}" if comment else text)
    return "\n".join(lines) + "\n"


def statement(operation: Operation) -> str:
    """Return one operation as a statement of C."""
    at = place(operation.window, operation.address)
    length = number(operation.length)
    match operation.kind:
        case Kind.MMAP:
            flags = _names(operation.flags, Map, "MAP_")
            file = _file(operation)
            offset = number(operation.offset)
            return f"mmap({at}, {length}, {_rights(operation.prot)}, {flags}, {file}, {offset});"
        case Kind.MUNMAP:
            return f"munmap({at}, {length});"
        case Kind.MPROTECT:
            return f"mprotect({at}, {length}, {_rights(operation.prot)});"
        case Kind.MADVISE:
            known = operation.value in set(Madv)
            advice = f"MADV_{Madv(operation.value).name}" if known else str(operation.value)
            return f"madvise({at}, {length}, {advice});"
        case Kind.MREMAP:
            new = number(operation.new_length)
            flags = _names(operation.flags, Mremap, "MREMAP_")
            target = place(operation.target_window, operation.target)
            return f"mremap({at}, {length}, {new}, {flags}, {target});"
        case Kind.BRK:
            return f"syscall(SYS_brk, {at});"
        case Kind.MLOCK:
            return f"mlock({at}, {length});"
        case Kind.MLOCK2:
            return f"mlock2({at}, {length}, {operation.value});"
        case Kind.MUNLOCK:
            return f"munlock({at}, {length});"
        case Kind.MINCORE:
            return f"mincore({at}, {length}, vec);"
        case Kind.READ:
            return f"(void)*(volatile long *)({at});"
        case Kind.WRITE:
            return f"*(volatile long *)({at}) = {number(operation.value)};"
        case Kind.FTRUNCATE:
            return f"ftruncate({_file(operation)}, {length});"
        case Kind.MSYNC:
            flags = _names(operation.value, Msync, "MS_") if operation.value else "0"
            return f"msync({at}, {length}, {flags});"
        case Kind.PWRITE:
            word = number(operation.value)
            return f"pwrite({_file(operation)}, &(long){{{word}}}, 8, {number(operation.offset)});"
        case Kind.FORK:
            return "fork_and_go_on_as_parent();"
        case Kind.SWITCH:
            return "let_the_other_process_go_on();"
        case Kind.EXIT:
            return "end_the_child();"
        case Kind.UNMAP_ALL:
            return "unmap_everything();"


def place(window: Window, offset: int) -> str:
    """Return an address as an expression of C."""
    if window is Window.ABSOLUTE:
        return number(offset) if offset else "NULL"
    return f"{window} + {number(offset)}" if offset else str(window)


def number(value: int) -> str:
    """Return a number as C has it: small ones decimal, others hexadecimal."""
    return str(value) if 0 <= value < 10 else f"{value % _WRAP:#x}"


def _file(operation: Operation) -> str:
    return f"file{operation.file}" if operation.file else "-1"


def _rights(prot: int) -> str:
    return _names(prot, Prot, "PROT_") if prot else "PROT_NONE"


def _names(value: int, flags: type[IntFlag], prefix: str) -> str:
    """Name the bits of `value`; those without a name are given as a number."""
    names = []
    for flag in flags:
        if flag and value & flag == flag:
            names.append(prefix + str(flag.name))
            value &= ~int(flag)
    return " | ".join([*names, f"{value:#x}"] if value or not names else names)
