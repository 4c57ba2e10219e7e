# SPDX-License-Identifier: MIT
"""SEQUENCE: mmap_seq is odd exactly while a writer holds the mmap lock.

Who holds the lock for reading keeps writers out and must find the count even, at both ends of its
section; a writer must find it odd at its end.  That it is odd from its beginning, the writer's own
assertions see.
"""

from spfemu.kernel import around, kernel, proceed
from spfemu.mm.mmap_lock import mmap_seq_addr
from spfemu.primitives import read_once
from spfemu.stress.promises import Promise
from spfemu.stress.violation import stress_violation


@kernel
def judge_sequence(mm: int, odd: int) -> None:
    """See that the count of an mm whose lock this CPU holds is odd, or even."""
    seq = read_once(mmap_seq_addr(mm))
    if seq & 1 != odd:
        stress_violation(Promise.SEQUENCE, mm, seq)


@around
def mmap_read_lock(cpu: int, mm: int) -> None:
    """See that no writer is inside once the lock is held for reading."""
    proceed(cpu, mm)
    judge_sequence(mm, 0)


@around
def mmap_read_trylock(cpu: int, mm: int) -> int:
    """See that no writer is inside if the lock is held for reading."""
    locked: int = proceed(cpu, mm)
    if locked:
        judge_sequence(mm, 0)
    return locked


@around
def mmap_read_unlock(cpu: int, mm: int) -> None:
    """See that no writer has come in before the lock is released."""
    judge_sequence(mm, 0)
    proceed(cpu, mm)


@around
def mmap_write_unlock(cpu: int, mm: int) -> None:
    """See that the count tells of this writer until its end."""
    judge_sequence(mm, 1)
    proceed(cpu, mm)


@around
def mmap_write_downgrade(cpu: int, mm: int) -> None:
    """See that it does until it goes on as a reader, and no longer."""
    judge_sequence(mm, 1)
    proceed(cpu, mm)
    judge_sequence(mm, 0)
