# SPDX-License-Identifier: MIT
"""The promises that kernel and protocol make, each with what it means that one is broken."""

from __future__ import annotations

from enum import IntEnum
from typing import Self


class Promise(IntEnum):
    """A promise; its docstring says what it is and what its break means, a sentence each."""

    TORN_READ = (
        1,
        "A copy that a reader goes on with is one state of the object, never a mixture of two.",
        (
            "A fault has been handled by a VMA or an entry that never was: it may have mapped a "
            "page where the program has none, or with rights that it never had."
        ),
    )
    USE_AFTER_FREE = (
        2,
        "What is freed is touched by nobody until it is handed out again.",
        (
            "Somebody has read or written memory that may belong to somebody else by now, as an "
            "attacker would have it."
        ),
    )
    COMMIT_RIGHTS = (
        3,
        "An entry becomes present only inside a live VMA that allows the access.",
        (
            "A page has been mapped where the program has unmapped memory or taken rights away, so "
            "munmap or mprotect has returned and is not true."
        ),
    )
    DATA = (
        4,
        "A program reads what was last written there, and zeros where nothing was.",
        "A write is lost, or a page shows the data of another page, process or time.",
    )
    TLB = (
        5,
        "Once a call that takes a translation away has returned, no CPU uses it any more.",
        (
            "A CPU has accessed memory by a stale translation, and may so reach a frame that is "
            "somebody else's now."
        ),
    )
    ACCOUNTING = (
        6,
        "At rest all counters, lists and references agree with what is there.",
        (
            "Something is lost, counted twice or freed too early, and a later operation will trip "
            "over it."
        ),
    )
    SEQUENCE = (
        7,
        "A sequence count is odd exactly while its writer is inside.",
        "Readers trust what is being changed, or never succeed again.",
    )
    PROGRESS = (
        8,
        "Every operation ends, whatever the others do.",
        "CPUs wait for each other for ever, or one of them never gets its turn.",
    )
    NOTIFIERS = (
        9,
        "Every invalidation that notifiers hear the start of has an end, and covers what changes.",
        "A subscriber blocks its readers for ever, or keeps using memory that is no longer mapped.",
    )
    OUTCOME = (
        10,
        "Every result is one that some order of the calls, one after another, would give.",
        (
            "A fault or call has failed or succeeded as it could in no order: the program is told "
            "something that is not so."
        ),
    )
    LOCK_ORDER = (
        11,
        "Locks are taken in one order by everybody, and given back by who took them.",
        "Two CPUs may come to wait for each other, if not this time then another.",
    )

    promise: str
    broken: str

    def __new__(cls, code: int, promise: str, broken: str) -> Self:
        """Make a member from its code and its two sentences."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.promise, member.broken = promise, broken
        member.__doc__ = f"{promise}  {broken}"
        return member
