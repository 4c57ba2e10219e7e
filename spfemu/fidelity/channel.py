# SPDX-License-Identifier: MIT
"""The memory through which an executor gets programs and hands back what it observed.

A memfd that the executor maps at the address at which its parent does.  On the host side it is
also the file from which touches read and to which they write.
"""

from __future__ import annotations

import mmap
import os
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from spfemu.layout import CPU, PAGE_SIZE, WORD

MAX_OPERATIONS = 2048
"""Most operations in one request."""
MAX_PAGES = 128
"""Most pages in all windows together."""
MAX_VMAS = 256
"""Most mappings observed; what is beyond is not looked at."""
MAX_FOREIGN = 2000
MINCORE_PAGES = 60
"""Most pages of which one mincore tells: a bit each."""
MAX_UNMAP = 2000


class Operation(IntEnum):
    """Words of one operation."""

    KIND = 0 * WORD
    ADDRESS = 1 * WORD
    LENGTH = 2 * WORD
    PROT = 3 * WORD
    FLAGS = 4 * WORD
    VALUE = 5 * WORD
    NEW_LENGTH = 6 * WORD
    TARGET = 7 * WORD
    FILE = 8 * WORD
    OFFSET = 9 * WORD


OPERATION_WORDS = len(Operation)
OPERATION_SIZE = OPERATION_WORDS * WORD


class Record(IntEnum):
    """Words of what is observed after one operation; the lists of VMAs and pages follow.

    A VMA is its start, end, rights and offset in its file, a page its address, first word, digest
    and 0.
    """

    RESULT = 0 * WORD
    VALUE = 1 * WORD
    FAULTS = 2 * WORD
    NR_VMAS = 3 * WORD
    NR_PAGES = 4 * WORD


RECORD_WORDS = len(Record)
RECORD_SIZE = RECORD_WORDS * WORD
ENTRY_WORDS = 4
ENTRY_SIZE = ENTRY_WORDS * WORD
VM_PRIVATE = 8
VM_FILE = 16
"""Bits of a VMA's rights beside those of `spfemu.mm.flags.Prot`; shared memory is a file's too."""
FILE_SIZES = (8 * PAGE_SIZE, 3 * PAGE_SIZE + 1000, 0)
"""Lengths at first of the files that programs can map; they are called 1, 2, 3 [bytes]."""


class Channel(IntEnum):
    """Byte offsets into the memory."""

    REQUEST = 0  # futex word: counted up by the parent for each request
    REPLY = 64  # futex word: the request that was finished last
    NR_OPERATIONS = 128
    STREAM_END = 136  # address behind the last finished record
    START_BRK = 144
    MM = 152  # address of the emulated mm
    FD_CHANNEL = 160  # host: descriptors of this memory and of files in /proc/self
    FD_MAPS = 168
    FD_PAGEMAP = 176
    FD_MEM = 184
    WRITTEN = 192  # host: the word that a touch writes
    READ = 200  # host: the word that a touch has read
    FILES = 208  # how the executor calls no file, then each file: descriptor or FILE
    FILE_SIZES = 240  # 0, then the length at first of each file
    TURN = 280  # futex word: 0 the process, 1 its forked child runs operations; 2 the child exits
    CHILD = 288  # the forked child: pid or mm; 0: there is none
    NEXT = 296  # index of the operation that runs
    RUSAGE = 320  # host: struct rusage
    CHILD_FDS = 464  # host: the child's descriptors of files in /proc/self
    NAME = 488  # host: name of a file to open
    WINDOWS = 512  # (first address, pages), up to one with 0 pages
    PRESENCE = 1024  # a word per page of one window, 0 if none is present
    FOREIGN = 4096  # ends of the mappings that are not the program's, ascending, up to 0
    UNMAP = FOREIGN + 4 * PAGE_SIZE  # host: (start, end) of what goes before the start, up to 0
    PAGE = UNMAP + 8 * PAGE_SIZE  # copy of one page
    TEXT = PAGE + PAGE_SIZE  # host: /proc/self/maps
    CPU = TEXT + 64 * PAGE_SIZE  # host: where kernel functions count events
    OPERATIONS = CPU + 4 * PAGE_SIZE
    STREAM = OPERATIONS + MAX_OPERATIONS * OPERATION_SIZE


TEXT_MAX = Channel.CPU - Channel.TEXT - PAGE_SIZE
SIZE = Channel.STREAM + MAX_OPERATIONS * (RECORD_SIZE + ENTRY_SIZE * (MAX_VMAS + MAX_PAGES))

if CPU.SIZE > Channel.OPERATIONS - Channel.CPU:
    raise AssertionError("a CPU block does not fit its place in the channel")


class ChannelMemory:
    """One channel, with its words as a NumPy array."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("spfemu-fidelity", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, SIZE)
        self._map = mmap.mmap(self.fd, SIZE)
        self.words: NDArray[np.int64] = np.frombuffer(self._map, dtype=np.int64)
        self.address = self.words.ctypes.data
        self[Channel.FD_CHANNEL] = self.fd

    def __getitem__(self, offset: int) -> int:
        return int(self.words[offset // WORD])

    def __setitem__(self, offset: int, value: int) -> None:
        self.words[offset // WORD] = value

    def write(self, offset: int, words: list[int]) -> None:
        """Store a list of words from `offset` on."""
        first = offset // WORD
        self.words[first : first + len(words)] = words

    def stream(self) -> NDArray[np.int64]:
        """Return what was observed: all finished records."""
        first = Channel.STREAM // WORD
        end = (self[Channel.STREAM_END] - self.address) // WORD
        return self.words[first:end]

    def close(self) -> None:
        """Close the descriptor; the memory goes with the last view and the last process."""
        os.close(self.fd)
