# SPDX-License-Identifier: MIT
"""How a thread's calls stand in the segment's area `trace`, for workers to make them."""

from enum import IntEnum

from spfemu.layout import WORD


class Word(IntEnum):
    """Byte offsets in one entry; together a cache line."""

    KIND = 0 * WORD
    A = 1 * WORD
    """The call's arguments from here on, in its order."""
    B = 2 * WORD
    C = 3 * WORD
    D = 4 * WORD
    E = 5 * WORD
    FILE = 6 * WORD
    """Address of the word that holds the file; 0: none."""
    OFFSET = 7 * WORD
    """Where in the file [bytes]."""


ENTRY_WORDS = len(Word)
ENTRY_SIZE = ENTRY_WORDS * WORD


class Step(IntEnum):
    """Kinds of entries beside those of `spfemu.trace.calls.Call`."""

    PLACE = 32
    """What execve has mapped: start, end, vm_flags, rights to touch it with; file and offset."""
    SET_BRK = 33
    """Where the heap begins."""
    START = 34
    """A thread begins: the address of its CPU."""
    FORK = 35
    """A child is made and ends at once."""
