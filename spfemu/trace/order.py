# SPDX-License-Identifier: MIT
"""The order in which overlapping calls of threads took effect, as far as their results tell.

strace prints a call when it returns.  If one thread's mremap moves a mapping away and another
thread's mmap is put there, the second may be printed first.  It is known to be second because two
mappings cannot be at one place: it waits here for the call that makes room, and so does all that
its thread does later.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from spfemu.mm.flags import Map, Mremap
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.strace import Event, Id, Reader, Vacating

HELD_MAX = 10_000
"""So many events wait at most."""


@dataclass
class _Held:
    """An event that waits for calls."""

    event: Event
    blockers: set[Id]

    @property
    def id(self) -> Id:
        return self.event.pid, self.event.line


def in_order(reader: Reader) -> Iterator[Event]:
    """Yield a trace's events, each behind those that made room for it."""
    held: list[_Held] = []
    for event in reader:
        begun = reader.vacating()
        blockers = _blockers(event, [*begun, *(v for h in held for v in _vacates(h.event))])
        if not held and not blockers:
            yield event
            continue
        held.append(_Held(event, blockers))
        yield from _release(held, {v.id for v in begun})
        while len(held) > HELD_MAX:
            yield held.pop(0).event
    yield from (h.event for h in held)


def _release(held: list[_Held], begun: set[Id]) -> Iterator[Event]:
    """Yield and remove the events that need not wait any more."""
    at = 0
    pids: set[int] = set()
    while at < len(held):
        one = held[at]
        one.blockers &= begun | {h.id for h in held}
        if one.blockers or one.event.pid in pids:
            pids.add(one.event.pid)
            at += 1
            continue
        yield held.pop(at).event
        # who has waited for it may go on
        at = 0
        pids.clear()


def _blockers(event: Event, vacating: Iterable[Vacating]) -> set[Id]:
    """Return the calls of other threads that make the room into which a mapping is put."""
    if not isinstance(event, MemoryCall) or not event.result or event.result < 0:
        return set()
    if event.call is Call.MMAP and not event.arguments[3] & Map.FIXED:
        end = event.result + event.arguments[1]
    elif event.call is Call.MREMAP and not event.arguments[3] & Mremap.FIXED:
        end = event.result + event.arguments[2]
    else:
        return set()
    others = (v for v in vacating if v.pid != event.pid)
    return {v.id for v in others if event.result < v.end and v.start < end}


def _vacates(event: Event) -> list[Vacating]:
    """Return the range in which an event makes room."""
    if isinstance(event, MemoryCall) and event.call in (Call.MUNMAP, Call.MREMAP):
        start, length = event.arguments[:2]
        return [Vacating(event.pid, event.line, start, start + length)]
    return []
