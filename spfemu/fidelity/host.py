# SPDX-License-Identifier: MIT
"""How the real kernel is looked at, from inside the process that runs the programs.

Touches are reads and writes of a file with the touched word as the buffer: the kernel's copy takes
the hardware fault that a load or store of the program would take, and what would be a signal is
-EFAULT.  Mappings and present pages are those of /proc/self/maps and /proc/self/pagemap.
"""

import platform
from typing import NamedTuple

from spfemu.fidelity.channel import MINCORE_PAGES, SIZE, TEXT_MAX, VM_PRIVATE, Channel
from spfemu.fidelity.interpreter import list_is_full, put_entry, serve, skip_foreign
from spfemu.host.calls import NR_MINCORE, NR_MUNMAP, sys_brk
from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import Prot
from spfemu.primitives import copy_page, load, raw_syscall, store


class _Numbers(NamedTuple):
    pread64: int
    pwrite64: int
    getrusage: int


_GENERIC = _Numbers(67, 68, 165)
_NUMBERS = _Numbers(17, 18, 98) if platform.machine() == "x86_64" else _GENERIC

NR_PREAD64 = _NUMBERS.pread64
NR_PWRITE64 = _NUMBERS.pwrite64
NR_GETRUSAGE = _NUMBERS.getrusage
RUSAGE_THREAD = 1
RU_MINFLT = 8 * WORD
"""Offset in struct rusage (include/uapi/linux/resource.h)."""
PAGEMAP_SHIFT = 62
PAGEMAP_PRESENT_OR_SWAPPED = 3
"""The two highest bits of an entry (Documentation/admin-guide/mm/pagemap.rst)."""
WORD_MASK = -WORD
NEWLINE, DASH, DIGIT_0, LETTER_A, LETTER_P = 10, 45, 48, 97, 112


@kernel
def serve_host(cpu: int, channel: int) -> None:
    """Take away what this process inherited and does not need, then run requests; never returns.

    Only the code that runs here, its stack and the C library stay, so there is no way back.
    """
    range_ = channel + Channel.UNMAP
    while load(range_) != 0:
        start = load(range_)
        raw_syscall(NR_MUNMAP, start, load(range_ + WORD) - start, 0, 0, 0, 0)
        range_ += 2 * WORD
    sys_brk(cpu, load(channel + Channel.START_BRK))
    store(channel + Channel.READ, fault_in(channel))
    serve(cpu, channel)


@kernel
def fault_in(channel: int) -> int:
    """Read from every page of the channel, so that none of it counts as a program's fault.

    Returns the sum of what was read: a load without use would be left out.
    """
    total = 0
    for i in range(SIZE // PAGE_SIZE):
        total += load(channel + i * PAGE_SIZE)
    return total


@kernel
def operation_done(cpu: int) -> None:
    """There is nothing to keep going."""


@kernel
def minor_faults(cpu: int, channel: int) -> int:
    """Return how many minor faults the kernel has counted for this thread."""
    usage = channel + Channel.RUSAGE
    raw_syscall(NR_GETRUSAGE, RUSAGE_THREAD, usage, 0, 0, 0, 0)
    return load(usage + RU_MINFLT)


@kernel
def mincore_bits(cpu: int, channel: int, address: int, length: int) -> tuple[int, int]:
    """Return the result of mincore and a bit for each of the first pages that is resident."""
    vec = channel + Channel.PRESENCE
    for i in range(MINCORE_PAGES // WORD + 1):
        store(vec + i * WORD, 0)
    result = raw_syscall(NR_MINCORE, address, length, vec, 0, 0, 0)
    bits = 0
    if result == 0:
        for i in range(MINCORE_PAGES):
            bits = bits | ((byte_at(vec + i) & 1) << i)
    return result, bits


@kernel
def touch(channel: int, number: int, address: int, offset: int) -> int:
    """Copy a word between the channel's file and `address`; 0 or a negative errno."""
    fd = load(channel + Channel.FD_CHANNEL)
    result = raw_syscall(number, fd, address & WORD_MASK, WORD, offset, 0, 0)
    return 0 if result == WORD else result


@kernel
def user_write(cpu: int, address: int, value: int) -> int:
    """Store a word of the program; 0 or -EFAULT."""
    channel = cpu - Channel.CPU
    store(channel + Channel.WRITTEN, value)
    return touch(channel, NR_PREAD64, address, Channel.WRITTEN)


@kernel
def user_read(cpu: int, address: int) -> tuple[int, int]:
    """Load a word of the program; (0 or -EFAULT, the word)."""
    channel = cpu - Channel.CPU
    store(channel + Channel.READ, 0)
    result = touch(channel, NR_PWRITE64, address, Channel.READ)
    return result, load(channel + Channel.READ)


@kernel
def read_presence(cpu: int, channel: int, start: int, pages: int) -> None:
    """Say for each page of a window whether a page is mapped there."""
    entry = channel + Channel.PRESENCE
    size = pages * WORD
    offset = (start >> PAGE_SHIFT) * WORD
    raw_syscall(NR_PREAD64, load(channel + Channel.FD_PAGEMAP), entry, size, offset, 0, 0)
    for i in range(pages):
        bits = (load(entry + i * WORD) >> PAGEMAP_SHIFT) & PAGEMAP_PRESENT_OR_SWAPPED
        store(entry + i * WORD, bits)


@kernel
def copy_present_page(cpu: int, channel: int, address: int, rights: int) -> None:
    """Copy a present page to the channel: directly, or past its protection."""
    page = channel + Channel.PAGE
    if rights & (Prot.READ | Prot.WRITE):
        copy_page(page, address)
    else:
        fd = load(channel + Channel.FD_MEM)
        raw_syscall(NR_PREAD64, fd, page, PAGE_SIZE, address, 0, 0)


# The text of /proc/self/maps: lines of "start-end rwxp ...".


@kernel
def byte_at(address: int) -> int:
    """Return one byte of text; the machine is little-endian."""
    return (load(address & WORD_MASK) >> ((address & (WORD - 1)) * 8)) & 255


@kernel
def parse_hex(text: int) -> tuple[int, int]:
    """Parse a number; returns it and the address behind the character that ends it."""
    value = 0
    digit = byte_at(text)
    while digit >= DIGIT_0:
        value = value * 16 + (digit - DIGIT_0 if digit < LETTER_A else digit - LETTER_A + 10)
        text += 1
        digit = byte_at(text)
    return value, text + 1


@kernel
def parse_rights(text: int) -> int:
    """Parse "rwxp"."""
    rights = Prot.READ if byte_at(text) != DASH else 0
    if byte_at(text + 1) != DASH:
        rights = rights | Prot.WRITE
    if byte_at(text + 2) != DASH:
        rights = rights | Prot.EXEC
    return rights | VM_PRIVATE if byte_at(text + 3) == LETTER_P else rights


@kernel
def read_text(channel: int) -> int:
    """Read all of the file; returns the address behind the text."""
    fd = load(channel + Channel.FD_MAPS)
    text = channel + Channel.TEXT
    size = 0
    while size < TEXT_MAX:
        result = raw_syscall(NR_PREAD64, fd, text + size, PAGE_SIZE, size, 0, 0)
        if result <= 0:
            return text + size
        size += result
    return text + size


@kernel
def read_map(cpu: int, channel: int, vmas: int) -> int:
    """List the program's VMAs in order of address; returns the address behind the list."""
    at = vmas
    foreign = channel + Channel.FOREIGN
    text = channel + Channel.TEXT
    text_end = read_text(channel)
    while text < text_end and not list_is_full(vmas, at):
        start, text = parse_hex(text)
        end, text = parse_hex(text)
        if start < 0:
            # the kernel's half: [vsyscall], which is no VMA
            return at
        foreign = skip_foreign(foreign, end)
        if load(foreign) != end:
            at = put_entry(at, start, end, parse_rights(text))
        while byte_at(text) != NEWLINE:
            text += 1
        text += 1
    return at
