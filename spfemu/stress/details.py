# SPDX-License-Identifier: MIT
"""Say what an oracle has noted of a broken promise."""

from __future__ import annotations

from spfemu.engines.symbols import symbol
from spfemu.layout import CPU, SHADOW, WORD
from spfemu.segment import Segment
from spfemu.stress import lock_fault
from spfemu.stress.promises import Promise


def describe(segment: Segment, promise: Promise, a: int, b: int) -> str:
    """Say it as a verb with its objects; `a` and `b` are the words that the oracle has left."""
    if promise is Promise.LOCK_ORDER:
        return lock_fault.describe(segment, a, b)
    if promise is Promise.TORN_READ:
        return f"went on with a mixture of states of {_name(segment, a)}, for a fault at {b:#x}"
    if promise is Promise.USE_AFTER_FREE:
        return _use_after_free(segment, a, b)
    if promise is Promise.COMMIT_RIGHTS and symbol(segment, a) is not None:
        table = _name(segment, a)
        return f"found the entry {_name(segment, b)} at {table}, in a table that is being freed"
    if promise is Promise.COMMIT_RIGHTS:
        return f"was let through the gate for a fault at {a:#x}, where the mm forbids it"
    if promise is Promise.SEQUENCE:
        return f"found mmap_seq of {_name(segment, a)} at {b} while it held the mmap lock"
    return f"noted {_name(segment, a)} and {_name(segment, b)}"


def _use_after_free(segment: Segment, address: int, shadow: int) -> str:
    at = (shadow - segment.base) // WORD
    words = segment.words[at : at + SHADOW.SIZE // WORD].view(SHADOW.dtype)[0]
    cycles = int(segment.stress[0]["time"]) - int(words["time"])
    freed_by = int(words["freed_by"])
    who = f"CPU {(freed_by - segment.cpu(0)) // CPU.SIZE}" if freed_by else "somebody"
    return f"touched {_name(segment, address)}, which {who} had freed {cycles:,} cycles before"


def _name(segment: Segment, word: int) -> str:
    """Name what a word points at in the segment, else give the number."""
    return symbol(segment, word) or f"{word:#x}"
