# SPDX-License-Identifier: MIT
"""What can be wrong with the taking and releasing of locks, and how that is said."""

from enum import IntEnum
from typing import Self

from spfemu.engines.symbols import symbol
from spfemu.segment import Segment
from spfemu.stress.lock_class import LockClass

CLASS_BITS = 8
"""Bits of a class of locks in the second detail of a violation."""


class LockFault(IntEnum):
    """Kinds of faults; `text` is completed by the names of the lock, and of the class held."""

    INVERSION = 1, "waits for {lock} while it holds {held}, which others take inside of it"
    NESTED = 2, "waits for {lock} while it holds one of its kind, for which there is no order"
    NOT_HELD = 3, "releases {lock}, which it does not hold so"
    NOT_RELEASED = 4, "has ended an operation and still holds {lock}"
    SLEEPS = 5, "may sleep for {lock} while it holds {held}, with which one must not sleep"

    text: str

    def __new__(cls, code: int, text: str) -> Self:
        """Make a member from its code and its text."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.text = text
        return member


def lock_name(segment: Segment, kind: int, lock: int) -> str:
    """Name a lock by its class and the object that it is in."""
    text = next(c for c in LockClass if c == kind).text
    if kind == LockClass.RCU:
        return f"the end of every {text}"
    named = symbol(segment, lock) or hex(lock)
    return named if kind == LockClass.POOL else f"the {text} of {named.partition('.')[0]}"


def describe(segment: Segment, lock: int, words: int) -> str:
    """Say what is wrong, from the two details of a LOCK_ORDER violation."""
    mask = (1 << CLASS_BITS) - 1
    fault = next(f for f in LockFault if f == words >> (2 * CLASS_BITS))
    held, wanted = (words >> CLASS_BITS) & mask, words & mask
    return fault.text.format(
        lock=lock_name(segment, wanted or held, lock),
        held=next((c.a_text for c in LockClass if c == held), ""),
    )
