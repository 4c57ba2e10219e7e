# SPDX-License-Identifier: MIT
"""Makes the recorded calls, one after another, where the program made them.

A mapping is put where the recorded one was, so that all later calls mean the same.  What the
emulated kernel itself would have chosen is asked before and compared.
"""

from __future__ import annotations

import errno

from spfemu.errors import ResourceError
from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.mm.flags import Map, Mremap, Prot
from spfemu.replay.machine import STACK, Machine, Thread, is_special
from spfemu.replay.outcome import KEPT_DIFFERENCES, Final, Outcome
from spfemu.replay.size import ACCESSIBLE
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.maps import Mapping, difference
from spfemu.trace.strace import Clone, Event, Exec, Exit, Maps, Reader

DEFERRED_MAX = 10_000
"""So many events of processes whose parent is not known yet are kept."""
NOT_EMULATED = int(Map.HUGETLB) | 0x3F << 26
"""Flags of mmap that are left out: there are no huge pages of a given size."""


class Player:
    """Plays the events of one trace on one machine."""

    def __init__(
        self, machine: Machine, outcome: Outcome, touch: str, initial: tuple[Mapping, ...]
    ) -> None:
        self.machine = machine
        self.outcome = outcome
        self.touch = touch
        self.initial = initial
        self._deferred: dict[int, list[Event]] = {}
        self._nr_deferred = 0
        self._ended: set[int] = set()

    def event(self, event: Event, reader: Reader) -> None:
        """Play one event, or keep it until it is known whose child its process is."""
        pid = event.pid
        if isinstance(event, Exit) and pid not in self.machine.threads:
            return
        if pid not in self.machine.threads and not self._adopt(pid, reader):
            if self._nr_deferred < DEFERRED_MAX:
                self._deferred.setdefault(pid, []).append(event)
                self._nr_deferred += 1
                return
        self._play(event)

    def _adopt(self, pid: int, reader: Reader) -> bool:
        """Let a process that shows up before its parent's call returns be the child of it.

        Returns False if several may be its parent.
        """
        parents = [(p, s) for p, s in reader.cloning() if p != pid]
        if len(parents) > 1:
            return False
        if parents:
            if parents[0][0] not in self.machine.threads:
                self._first(parents[0][0])
            self._clone(parents[0][0], pid, shares_mm=parents[0][1])
        else:
            self._first(pid)
        return True

    def _first(self, pid: int) -> None:
        """Begin a process of whose past nothing is known."""
        thread = self.machine.thread(pid)
        self.outcome.processes += 1
        self.outcome.threads += 1
        if self.initial:
            self._place(thread, self.initial)
            self.initial = ()

    def _play(self, event: Event) -> None:
        if isinstance(event, Clone):
            if event.child not in self.machine.threads:
                self._clone(event.pid, event.child, shares_mm=event.shares_mm)
            return
        thread = self.machine.thread(event.pid)
        if isinstance(event, MemoryCall):
            self._call(thread, event)
        elif isinstance(event, Exec):
            self._end(thread)
            # so far it shared the memory of its parent, which waited
            self.outcome.processes += thread.image.users > 1
            self.machine.execute(thread)
        elif isinstance(event, Exit):
            self._end(thread)
            self.machine.exit(thread)
        elif event.initial:
            self._place(thread, event.mappings)
        else:
            self._final(thread, event)

    def _clone(self, parent: int, child: int, *, shares_mm: bool) -> None:
        thread = self.machine.thread(parent)
        self.outcome.threads += 1
        if shares_mm:
            self.machine.clone(thread, child)
        else:
            self.outcome.processes += 1
            self.outcome.calls["fork"] += 1
            error = self.machine.fork(thread, child)
            if error < 0:
                raise ResourceError(f"the emulated machine cannot fork: error {-error}")
        deferred = self._deferred.pop(child, [])
        self._nr_deferred -= len(deferred)
        for event in deferred:
            self._play(event)

    def finish(self) -> None:
        """Note the maps of what is still there."""
        last = {thread.image.mm: thread for thread in self.machine.threads.values()}
        for thread in last.values():
            self._note(thread)

    # Maps.

    def _place(self, thread: Thread, mappings: tuple[Mapping, ...]) -> None:
        self.machine.learn(mappings)
        self.machine.place(thread, mappings)
        for mapping in mappings:
            if mapping.name == STACK:
                self._touch(thread, mapping.end - PAGE_SIZE, PAGE_SIZE, mapping.prot)
            elif not is_special(mapping):
                self._touch(thread, mapping.start, mapping.end - mapping.start, mapping.prot)

    def _final(self, thread: Thread, recorded: Maps) -> None:
        """Compare the map with the recorded one.

        A stack grows by faults, of which strace knows nothing: where it has come to is taken from
        the recorded map, and it grows by a touch there.
        """
        self.machine.learn(recorded.mappings)
        for mapping in recorded.mappings:
            if mapping.name == STACK:
                self.machine.call(
                    thread, "touch_pages", mapping.start, mapping.start + PAGE_SIZE, 1
                )
        ours = self.machine.maps(thread.image)
        self.outcome.finals.append(
            Final(thread.image.pid, ours, difference(ours, recorded.mappings))
        )
        self._ended.add(thread.image.mm)

    def _end(self, thread: Thread) -> None:
        """Keep the map of an address space that loses its last thread."""
        if thread.image.users == 1:
            self._note(thread)
            self._ended.discard(thread.image.mm)

    def _note(self, thread: Thread) -> None:
        """Keep the map of an address space, unless the recorded one was met."""
        ours = self.machine.maps(thread.image)
        if ours and thread.image.mm not in self._ended:
            self.outcome.finals.append(Final(thread.image.pid, ours, None))

    # Calls.

    def _call(self, thread: Thread, call: MemoryCall) -> None:
        name = call.call.name.lower()
        refused = call.result is not None and call.result < 0 and call.path is not None
        if refused:
            # it is the file that does not allow it, and of files only the names are known
            self.outcome.skipped["mmap of a file that failed"] += 1
            return
        self.outcome.calls[name] += 1
        result = self._perform(thread, call)
        if result < 0:
            self.outcome.failed[name] += 1
        if call.result is not None and result != call.result:
            self._differs(name, call, result)
            self._repair(thread, call, result)
        elif result >= 0:
            self._touch_result(thread, call, result)

    def _differs(self, name: str, call: MemoryCall, result: int) -> None:
        outcome = self.outcome
        outcome.different[name] += 1
        if len(outcome.differences) < KEPT_DIFFERENCES:
            assert call.result is not None
            outcome.differences.append(
                f"line {call.line}: {name} returned {show(call.result)} when it was recorded, "
                f"and {show(result)} now"
            )

    def _repair(self, thread: Thread, call: MemoryCall, result: int) -> None:
        """Undo what has succeeded here and failed when it was recorded."""
        if call.call is Call.MMAP and result >= 0 and not call.arguments[3] & Map.FIXED:
            self.machine.call(thread, "sys_munmap", result, call.arguments[1])
        elif call.call is Call.BRK and call.result is not None and call.result >= 0:
            self.machine.call(thread, "sys_brk", call.result)

    def _perform(self, thread: Thread, call: MemoryCall) -> int:
        """Make one call; returns its result."""
        run = self.machine.call
        arguments = call.arguments
        if call.call is Call.MMAP:
            return self._mmap(thread, call)
        if call.call is Call.MREMAP:
            return self._mremap(thread, call)
        if call.call is Call.BRK and not thread.image.brk_known and call.result:
            # the first call asks
            self.machine.set_brk(thread.image, call.result)
        if call.call is Call.MINCORE:
            arguments = (*arguments, 0)
        return run(thread, f"sys_{call.call.name.lower()}", *arguments)

    def _mmap(self, thread: Thread, call: MemoryCall) -> int:
        addr, length, prot, flags = call.arguments
        flags &= ~NOT_EMULATED
        file = 0 if call.path is None else self.machine.file(call.path)
        placed = call.result is not None and call.result >= 0
        if placed and not flags & (Map.FIXED | Map.FIXED_NOREPLACE):
            assert call.result is not None
            own = self.machine.call(thread, "choose_address", addr, length, flags, file)
            self._compare_place(thread, call, own)
            addr, flags = call.result, flags | Map.FIXED
        if file == 0:
            return self.machine.call(thread, "sys_mmap", addr, length, prot, flags)
        offset = call.offset
        return self.machine.call(thread, "sys_mmap_file", addr, length, prot, flags, file, offset)

    def _compare_place(self, thread: Thread, call: MemoryCall, own: int) -> None:
        """Compare where the emulated kernel would put a mapping with where it was."""
        if not thread.image.placed:
            return
        outcome = self.outcome
        outcome.chosen += 1
        if own != call.result:
            outcome.moved += 1
            if len(outcome.places) < KEPT_DIFFERENCES:
                assert call.result is not None
                outcome.places.append(
                    f"line {call.line}: mmap of {call.arguments[1]} bytes went to "
                    f"{show(call.result)} when it was recorded, and would go to {show(own)} now"
                )

    def _mremap(self, thread: Thread, call: MemoryCall) -> int:
        addr, old, new, flags, target = call.arguments
        if call.result is not None and call.result >= 0 and not flags & Mremap.FIXED:
            if call.result == addr:
                flags &= ~Mremap.MAYMOVE
            else:
                flags, target = flags | Mremap.FIXED, call.result
        return self.machine.call(thread, "sys_mremap", addr, old, new, flags, target)

    # Touches.

    def _touch_result(self, thread: Thread, call: MemoryCall, result: int) -> None:
        """Touch what a call has made accessible."""
        arguments = call.arguments
        if call.call is Call.MMAP:
            self._touch(thread, result, arguments[1], arguments[2])
        elif call.call is Call.MPROTECT:
            self._touch(thread, arguments[0], arguments[1], arguments[2])
        elif call.call is Call.MREMAP and arguments[2] > arguments[1]:
            start = result + arguments[1]
            self._touch(thread, start, arguments[2] - arguments[1], ACCESSIBLE)
        elif call.call is Call.BRK and result > thread.image.touched_brk:
            start = max(thread.image.touched_brk, self.machine.start_brk(thread.image))
            self._touch(thread, start, result - start, ACCESSIBLE)
            thread.image.touched_brk = result

    def _touch(self, thread: Thread, start: int, length: int, prot: int) -> None:
        if self.touch == "none" or not prot & ACCESSIBLE or length <= 0:
            return
        end = start + length if self.touch == "all" else start + 1
        failed = self.machine.call(
            thread, "touch_pages", start & PAGE_MASK, end, int(bool(prot & Prot.WRITE))
        )
        self.outcome.touch_failed += failed


def show(result: int) -> str:
    """Return a result the way strace prints it."""
    if result < 0:
        return errno.errorcode.get(-result, "another error")
    return f"{result:#x}" if result else "0"
