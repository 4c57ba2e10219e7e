# SPDX-License-Identifier: MIT
"""How the real kernel is looked at, from inside the process that runs the programs.

Touches are reads and writes of a file with the touched word as the buffer: the kernel's copy takes
the hardware fault that a load or store of the program would take, and what would be a signal is
-EFAULT.  Mappings and present pages are those of /proc/self/maps and /proc/self/pagemap.
"""

import platform
import signal
from typing import NamedTuple

from spfemu.fidelity.channel import MINCORE_PAGES, SIZE, TEXT_MAX, VM_FILE, VM_PRIVATE, Channel
from spfemu.fidelity.interpreter import (
    Kind,
    list_is_full,
    put_entry,
    serve,
    skip_foreign,
    this_operation,
)
from spfemu.host.calls import NR_FTRUNCATE, NR_MINCORE, NR_MUNMAP, sys_brk
from spfemu.kernel import kernel
from spfemu.layout import PAGE_SHIFT, PAGE_SIZE, WORD
from spfemu.mm.flags import Prot
from spfemu.primitives import (
    copy_page,
    futex_wait,
    futex_wake,
    load,
    raw_syscall,
    smp_load_acquire,
    smp_store_release,
    store,
)


class _Numbers(NamedTuple):
    pread64: int
    pwrite64: int
    getrusage: int
    msync: int
    clone: int
    wait4: int
    exit_group: int
    prctl: int
    openat: int


_GENERIC = _Numbers(67, 68, 165, 227, 220, 260, 94, 167, 56)
_X86_64 = _Numbers(17, 18, 98, 26, 56, 61, 231, 157, 257)
_NUMBERS = _X86_64 if platform.machine() == "x86_64" else _GENERIC

NR_PREAD64 = _NUMBERS.pread64
NR_PWRITE64 = _NUMBERS.pwrite64
NR_GETRUSAGE = _NUMBERS.getrusage
NR_MSYNC = _NUMBERS.msync
NR_CLONE = _NUMBERS.clone
NR_WAIT4 = _NUMBERS.wait4
NR_EXIT_GROUP = _NUMBERS.exit_group
NR_PRCTL = _NUMBERS.prctl
NR_OPENAT = _NUMBERS.openat
SIGCHLD = int(signal.SIGCHLD)
SIGKILL = int(signal.SIGKILL)
PR_SET_PDEATHSIG = 1
AT_FDCWD = -100
PROC_SELF = int.from_bytes(b"/proc/se", "little")
LF_MAPS = int.from_bytes(b"lf/maps", "little")
LF_PAGEM = int.from_bytes(b"lf/pagem", "little")
AP = int.from_bytes(b"ap", "little")
LF_MEM = int.from_bytes(b"lf/mem", "little")
TURN_EXIT = 2
"""Channel.TURN when the child is to end."""
RUSAGE_THREAD = 1
RU_MINFLT = 8 * WORD
"""Offset in struct rusage (include/uapi/linux/resource.h)."""
PAGEMAP_SHIFT = 62
PAGEMAP_PRESENT_OR_SWAPPED = 3
"""The two highest bits of an entry (Documentation/admin-guide/mm/pagemap.rst)."""
WORD_MASK = -WORD
NEWLINE, SPACE, DASH, DIGIT_0, LETTER_A, LETTER_P = 10, 32, 45, 48, 97, 112


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


# A child is a process that runs this code too, one of both at a time.


@kernel
def fork_child(cpu: int, channel: int) -> int:
    """Make a child, which returns from here when it is its turn; 0 or a negative errno."""
    pid = raw_syscall(NR_CLONE, SIGCHLD, 0, 0, 0, 0, 0)
    if pid == 0:
        raw_syscall(NR_PRCTL, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0)
        open_own_files(channel)
        warm_up(cpu, channel)
        # pairs with the wait of the process: the child has all that it needs, and nothing moves
        smp_store_release(channel + Channel.CHILD, 1)
        futex_wake(channel + Channel.CHILD, 1)
        wait_for_turn(channel, 1)
        return 0
    if pid < 0:
        return pid
    while smp_load_acquire(channel + Channel.CHILD) == 0:
        futex_wait(channel + Channel.CHILD, 0, -1)
    store(channel + Channel.CHILD, pid)
    warm_up(cpu, channel)
    return 0


@kernel
def open_own_files(channel: int) -> None:
    """Open what the child looks at itself with."""
    fds = channel + Channel.CHILD_FDS
    store(fds, open_proc_self(channel, LF_MAPS, 0))
    store(fds + Channel.FD_PAGEMAP - Channel.FD_MAPS, open_proc_self(channel, LF_PAGEM, AP))
    store(fds + Channel.FD_MEM - Channel.FD_MAPS, open_proc_self(channel, LF_MEM, 0))


@kernel
def open_proc_self(channel: int, second: int, third: int) -> int:
    """Open a file in /proc/self, whose name's second and third words are given."""
    name = channel + Channel.NAME
    store(name, PROC_SELF)
    store(name + WORD, second)
    store(name + 2 * WORD, third)
    return raw_syscall(NR_OPENAT, AT_FDCWD, name, 0, 0, 0, 0)


@kernel
def warm_up(cpu: int, channel: int) -> None:
    """Touch what the interpreter uses: after a fork that faults, which is no program's fault."""
    store(channel + Channel.READ, fault_in(channel))
    user_write(cpu, 0, 0)
    user_read(cpu, 0)
    mincore_bits(cpu, channel, 0, 0)
    minor_faults(cpu, channel)
    read_map(cpu, channel, load(channel + Channel.STREAM_END))
    read_presence(cpu, channel, 0, 1)


@kernel
def wait_for_turn(channel: int, process: int) -> None:
    """Wait until it is the turn of process 0 or child 1; a child that is to end does so here."""
    turn = smp_load_acquire(channel + Channel.TURN)
    while turn != process:
        if turn == TURN_EXIT and process == 1:
            raw_syscall(NR_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
        futex_wait(channel + Channel.TURN, turn, -1)
        turn = smp_load_acquire(channel + Channel.TURN)


@kernel
def hand_over(channel: int, turn: int) -> None:
    """Say whose turn it is; the release pairs with the acquire in `wait_for_turn`."""
    smp_store_release(channel + Channel.TURN, turn)
    futex_wake(channel + Channel.TURN, 1)


@kernel
def switch_process(cpu: int, channel: int) -> None:
    """Let the other process go on until it hands over; clear up if it has ended."""
    process = load(channel + Channel.TURN)
    hand_over(channel, 1 - process)
    wait_for_turn(channel, process)
    if process == 0 and is_end_of_child(load(this_operation(channel))):
        reap_child(channel)


@kernel
def is_end_of_child(kind: int) -> int:
    """Tell whether an operation ends the child."""
    return kind == Kind.EXIT or kind == Kind.UNMAP_ALL


@kernel
def reap_child(channel: int) -> None:
    """Wait until the child is gone."""
    raw_syscall(NR_WAIT4, load(channel + Channel.CHILD), 0, 0, 0, 0, 0)
    store(channel + Channel.CHILD, 0)
    store(channel + Channel.TURN, 0)


@kernel
def exit_child(cpu: int, channel: int) -> None:
    """End the child, from either side; only the process returns from here."""
    if load(channel + Channel.TURN) == 1:
        hand_over(channel, 0)
        raw_syscall(NR_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
    hand_over(channel, TURN_EXIT)
    reap_child(channel)


@kernel
def proc_fd(channel: int, offset: int) -> int:
    """Return the descriptor, at `offset` of the channel, that the running process has."""
    if load(channel + Channel.TURN) == 1:
        return load(channel + Channel.CHILD_FDS + offset - Channel.FD_MAPS)
    return load(channel + offset)


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
def sys_ftruncate(cpu: int, file: int, size: int) -> int:
    """ftruncate(2)."""
    return raw_syscall(NR_FTRUNCATE, file, size, 0, 0, 0, 0)


@kernel
def sys_pwrite(cpu: int, file: int, offset: int, value: int) -> int:
    """pwrite(2) of a word; 0 or a negative errno."""
    channel = cpu - Channel.CPU
    store(channel + Channel.WRITTEN, value)
    result = raw_syscall(NR_PWRITE64, file, channel + Channel.WRITTEN, WORD, offset, 0, 0)
    return 0 if result == WORD else result


@kernel
def sys_msync(cpu: int, start: int, length: int, flags: int) -> int:
    """msync(2)."""
    return raw_syscall(NR_MSYNC, start, length, flags, 0, 0, 0)


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
    fd = proc_fd(channel, Channel.FD_PAGEMAP)
    raw_syscall(NR_PREAD64, fd, entry, size, offset, 0, 0)
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
        fd = proc_fd(channel, Channel.FD_MEM)
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
def has_file(text: int) -> int:
    """Tell whether the inode behind a device at `text` is not 0: the mapping is one of a file."""
    while byte_at(text) != SPACE:
        text += 1
    return byte_at(text + 1) != DIGIT_0


@kernel
def read_text(channel: int) -> int:
    """Read all of the file; returns the address behind the text."""
    fd = proc_fd(channel, Channel.FD_MAPS)
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
            rights = parse_rights(text)
            offset, text = parse_hex(text + 5)
            if has_file(text):
                rights = rights | VM_FILE
            at = put_entry(at, start, end, rights, offset)
        while byte_at(text) != NEWLINE:
            text += 1
        text += 1
    return at
