# SPDX-License-Identifier: MIT
"""The processes that do the work: started together, watched, stopped, never left behind.

An emulated worker is a process with one emulated CPU.  On the host target a process holds the
workers of one mm as threads, as in will-it-scale.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from spfemu import shims
from spfemu.engines.plain import KernelPanic
from spfemu.errors import ResourceError, WorkerDiedError, WorkerHangsError, WorkerKilledError
from spfemu.events import Event
from spfemu.layout import CPU, RWSEM, SYSTEM, WORD
from spfemu.measure import processes
from spfemu.measure.build import Engine
from spfemu.measure.plan import Plan, Progress, quiet
from spfemu.measure.topology import read_text
from spfemu.mm.bug import Bug
from spfemu.mm.kthread import Role
from spfemu.mm.mmap_lock import HELD_OTHER, HELD_READ
from spfemu.segment import Segment
from spfemu.workloads.parameters import Param

HANG_SECONDS = 10.0
"""A worker whose counters stand still for that long hangs, if cores were to be had."""
CROWDED_SECONDS = 50.0
"""Time without a core that excuses workers at most."""
WATCH_PERIOD = 0.25
TERM_SECONDS = 0.3
"""Time that a worker has between SIGTERM and SIGKILL."""
START_SECONDS = 60.0
PROGRESS_STEP = 16
"""Progress of a start is told after each so many workers."""
HOST_BRK_GAP = 64 << 20

_PR_SET_THP_DISABLE = 41
_MADV_POPULATE_WRITE = 23
_EVERYBODY = (1 << 31) - 1
_EXIT_FAILED = 1
_FROM_ELSEWHERE = {signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT}
"""Signals that no mistake of a worker sends to it."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass
class _Group:
    """One process and the CPUs whose workers it runs."""

    process: Any
    cpus: list[int]
    pipe: Connection
    messages: list[str]


class Workers:
    """The worker processes of one sample.  Leaving the context ends them, whatever happened."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
        segment: Segment,
        cycles_per_second: float,
        hang_seconds: float = HANG_SECONDS,
        progress: Progress = quiet,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.segment = segment
        self.hang_seconds = hang_seconds
        self.watchdog: Callable[[Workers], None] | None = None
        """Called again and again while the workers run; what it raises ends them."""
        self.progress = progress
        self._told = ""
        self.stops = 0
        """How often a signal has stopped a process."""
        self._stopped: dict[int, float] = {}
        """Since when processes are stopped that nothing has continued."""
        self.threads: dict[int, tuple[int, int]] = {}
        """Process and thread id of each CPU's worker."""
        self._groups: list[_Group] = []
        self._prepare(cycles_per_second)
        self._activity = self._counters()
        self._moved = [time.monotonic()] * plan.nr_cpus
        self._waits: dict[int, list[int] | None] = {}
        """What `waited` was when a CPU was first seen to stand still."""

    def __enter__(self) -> Self:
        """Start the processes and wait until all are set up and stand at the gate."""
        try:
            self._start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave no process behind."""
        self.kill()

    def _prepare(self, cycles_per_second: float) -> None:
        """Write what the workers find in their CPU blocks."""
        plan, cpus = self.plan, self.segment.cpus[: self.plan.nr_cpus]
        parameters = plan.parameters
        mm_index = [plan.mm_of(i) for i in range(plan.nr_cpus)]
        mms = [self.segment.mm(i) for i in mm_index]
        cpus["mm"] = mms
        roles = np.asarray([plan.role(i) for i in range(plan.nr_cpus)])
        cpus["role"] = roles
        cpus["fault_overhead"] = round(plan.fault_overhead_ns * 1e-9 * cycles_per_second)
        words = {
            Param.SIZE: parameters.size,
            Param.AREAS: parameters.areas,
            Param.PAGES: parameters.pages,
            Param.PERIOD: round(cycles_per_second / parameters.rate) if parameters.rate else 0,
            Param.OVERLAP: int(parameters.overlap),
            Param.BRK_GAP: HOST_BRK_GAP if plan.target == "host" else 0,
            Param.NS_PER_CYCLE: round((1 << 20) * 1e9 / cycles_per_second),
        }
        workload = cpus["workload"]
        for param, value in words.items():
            workload[:, _word(param)] = value
        for i, mm in enumerate(mm_index):
            peers = [j for j, other in enumerate(mm_index) if other == mm]
            alike = [j for j in peers if roles[j] == roles[i]]
            workload[i, _word(Param.WORKER)] = alike.index(i)
            workload[i, _word(Param.WORKERS)] = len(alike)
            workload[i, _word(Param.LEADER)] = self.segment.cpu(peers[0])
        if plan.trace is not None:
            plan.trace.write(self.segment)
        # a process of threads has a main thread that only waits for them
        users = np.bincount(mm_index, minlength=plan.nr_mms)
        users[: plan.nr_user_mms] += int(plan.mode == "threads" and plan.trace is None)
        self.segment.mms["mm_users"][: plan.nr_mms] = users

    def _start(self) -> None:
        placement: list[int | None] = [*self.plan.placement()]
        placement += [None] * len(self.plan.kthreads)
        as_threads = self.plan.target == "host" and self.plan.mode == "threads"
        cpus = range(self.plan.nr_cpus)
        sets = [list(cpus)] if as_threads else self._processes()
        for members in sets:
            reading, writing = processes.context.Pipe(duplex=False)
            with processes.uninterrupted():
                process = processes.start(
                    self._title(members[0]),
                    _process_main,
                    self,
                    members,
                    [placement[i] for i in members],
                    writing,
                )
                self._groups.append(_Group(process, members, reading, []))
            writing.close()
            self._tell("forking", members[-1] + 1)
        deadline = time.monotonic() + START_SECONDS
        while (ready := int(self.segment.system["ready"])) < self.plan.nr_cpus:
            self._tell("setting up", ready)
            self._wait(0.001)
            if time.monotonic() > deadline:
                raise WorkerDiedError(
                    f"workers were not set up within {START_SECONDS:g} s: see the machine's load"
                )
        for group in self._groups:
            self._receive(group)

    def _tell(self, what: str, count: int) -> None:
        """Show how far a start is that takes long."""
        text = f"{what} worker {count} of {self.plan.nr_cpus}"
        if count % PROGRESS_STEP == 0 and text != self._told:
            self.progress(text, None)
            self._told = text

    def _processes(self) -> list[list[int]]:
        """Return which CPUs go into one process each."""
        plan = self.plan
        if plan.target == "emulator":
            return [[i] for i in range(plan.nr_cpus)]
        return [
            [i for i in range(plan.nr_cpus) if plan.mm_of(i) == mm] for mm in range(plan.nr_mms)
        ]

    def open_gate(self) -> None:
        """Let all workers go."""
        gate = self._system(SYSTEM.gate)
        library = shims.load()
        library.spf_smp_store_release(gate, 1)
        library.spf_futex_wake(gate, _EVERYBODY)
        self._moved = [time.monotonic()] * self.plan.nr_cpus

    def watch(self, seconds: float) -> None:
        """Let the workers run for `seconds`; raises WorkerDiedError if one dies or hangs."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._wait(min(left, WATCH_PERIOD))

    def waited(self) -> list[int] | None:
        """Time that each thread was ready and did not run [ns]; None if Linux does not tell."""
        found = []
        for i in range(self.plan.nr_tasks):
            process, thread = self.threads[i]
            words = (read_text(Path(f"/proc/{process}/task/{thread}/schedstat")) or "").split()
            if len(words) != 3:
                return None
            found.append(int(words[1]))
        return found

    def stop(self) -> None:
        """Tell the workers to leave their loops and wait until they have.

        Raises WorkerDiedError if one dies or hangs instead.
        """
        shims.load().spf_smp_store_release(self._system(SYSTEM.stop), 1)
        # a look at how they ended comes last: who dies before the first wait is seen, too
        while self._wait(WATCH_PERIOD, stopping=True):
            pass
        self._raise_if_failed()

    def kill(self) -> None:
        """End all processes: SIGTERM, and SIGKILL for those that do not go."""
        with processes.uninterrupted():
            self._kill()

    def _kill(self) -> None:
        shims.load().spf_smp_store_release(self._system(SYSTEM.stop), 1)
        alive = [g.process for g in self._groups if g.process.exitcode is None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + TERM_SECONDS
        for process in alive:
            process.join(max(0.0, deadline - time.monotonic()))
        for process in alive:
            if process.exitcode is None:
                process.kill()
                process.join()
        for group in self._groups:
            group.pipe.close()
        self._groups = []

    def _wait(self, seconds: float, *, stopping: bool = False) -> bool:
        """Wait that long, or until a process ends; raises WorkerDiedError.

        Tells whether any is left that had not ended.
        """
        running = [g for g in self._groups if g.process.exitcode is None]
        wait([g.process.sentinel for g in running], seconds)
        self._raise_if_failed()
        ended = [g for g in self._groups if g.process.exitcode is not None]
        if any(g.process.exitcode != 0 for g in ended) or (ended and not stopping):
            self._raise_died(ended)
        left = [g for g in running if g not in ended]
        self._check_stopped(left)
        if self._stopped:  # others may wait for it
            self._moved = [time.monotonic()] * self.plan.nr_cpus
            self._waits.clear()
        else:
            if self.watchdog is not None and left and int(self.segment.system["gate"]):
                self.watchdog(self)
            self._check_progress([i for g in left for i in g.cpus])
        return bool(left)

    def _check_stopped(self, groups: list[_Group]) -> None:
        """Note what a signal has stopped; raises WorkerKilledError if nothing continues it."""
        now = time.monotonic()
        for group in groups:
            pid = group.process.pid
            while (change := _stopped_or_continued(pid)) is not None:
                if change == os.CLD_CONTINUED:
                    self._stopped.pop(pid, None)
                else:
                    self._stopped.setdefault(pid, now)
                self.stops += 1
            if now - self._stopped.get(pid, now) > self.hang_seconds:
                who = " and ".join(self._name(i) for i in group.cpus)
                raise WorkerKilledError(
                    f"{who} hangs: a signal stopped it {now - self._stopped[pid]:.1f} s ago and "
                    f"nothing has continued it{''.join(self._held(i) for i in group.cpus)}"
                )

    def _counters(self) -> NDArray[np.int64]:
        """One number per CPU that moves while its worker does."""
        cpus = self.segment.cpus[: self.plan.nr_cpus]
        total: NDArray[np.int64] = cpus["operations"] + cpus["progress"] + cpus["event"].sum(axis=1)
        return total

    def _check_progress(self, cpus: list[int]) -> None:
        now, counters = time.monotonic(), self._counters()
        for i in cpus:
            if counters[i] != self._activity[i] or not int(self.segment.system["gate"]):
                self._activity[i], self._moved[i] = counters[i], now
                self._waits.pop(i, None)
                continue
            if i not in self._waits:
                self._waits[i] = self.waited()
            still = now - self._moved[i]
            if still > self.hang_seconds:
                # of a holder, too: who waits for it stands still as long
                crowded = self._crowded_seconds(self._waits[i])
                if still - min(crowded, CROWDED_SECONDS) > self.hang_seconds:
                    without = f" ({crowded:.1f} s without a core)" if crowded >= 1 else ""
                    raise WorkerHangsError(
                        f"{self._name(i)} hangs: it has done nothing for {still:.1f} s"
                        f"{without}{self._held(i)}"
                    )

    def _crowded_seconds(self, before: list[int] | None) -> float:
        """Return how long one of the threads has been ready and not run since `before`."""
        after = self.waited()
        if before is None or after is None:
            return 0.0
        return max(b - a for a, b in zip(before, after, strict=True)) / 1e9

    def _raise_if_failed(self) -> None:
        """Raise if a workload gave up with an error."""
        cpus = self.segment.cpus[: self.plan.nr_cpus]
        for i in np.flatnonzero(cpus["failed"]):
            raise WorkerDiedError(
                f"{self._name(int(i))} gave up: an operation of {self.plan.workload} failed with "
                f"{_errno_name(int(cpus['failed'][i]))}"
            )

    def _raise_died(self, ended: list[_Group]) -> None:
        died = [g for g in ended if g.process.exitcode != 0] or ended
        texts = []
        for group in died:
            self._receive(group)
            who = " and ".join(self._name(i) for i in group.cpus)
            held = "".join(self._held(i) for i in group.cpus)
            texts.append(f"{who} {_how(group)}{held}")
        if all(-g.process.exitcode in _FROM_ELSEWHERE for g in died):
            raise WorkerKilledError("; ".join(texts))
        bugs = [code for g in died if (code := g.process.exitcode) in set(Bug)]
        raise WorkerDiedError("; ".join(texts), bugs[0] if bugs else None)

    def _receive(self, group: _Group) -> None:
        """Take what the process has said."""
        with contextlib.suppress(EOFError, OSError):
            while group.pipe.poll():
                message = group.pipe.recv()
                if isinstance(message, tuple):
                    cpu, thread = message
                    self.threads[cpu] = (group.process.pid, thread)
                else:
                    group.messages.append(message)

    def _title(self, index: int) -> str:
        role = self.plan.role(index)
        name = role.name.lower()
        if role <= Role.WRITER:
            name += f" {index - (self.plan.workers if role == Role.WRITER else 0)}"
        return name

    def _name(self, index: int) -> str:
        pid = next((g.process.pid for g in self._groups if index in g.cpus), None)
        return f"{self._title(index)} (pid {pid})"

    def _held(self, index: int) -> str:
        held = held_locks(self.segment, index)
        return f"; it held {', '.join(held)}" if held else "; it held no lock"

    def _system(self, offset: int) -> int:
        return self.segment.address["system"] + offset


def held_locks(segment: Segment, index: int) -> list[str]:
    """Name the locks that CPU `index` holds, as far as the segment tells.

    A spinlock holds the number of its holder plus one; about the mmap lock each CPU keeps a note.
    """
    me = index + 1
    cpu = segment.cpus[index]
    mm_index = (int(cpu["mm"]) - segment.address["mms"]) // segment.mms.dtype.itemsize
    held = []
    mode = int(cpu["mmap_lock_held"])
    if mode:
        whose = "another mm" if mode & HELD_OTHER else f"mm {mm_index}"
        held.append(f"mmap_lock of {whose} for {'reading' if mode & HELD_READ else 'writing'}")
    if int(cpu["percpu_read"]):
        held.append(f"mmu_notifier_lock of mm {mm_index} for reading")
    for i, mm in enumerate(segment.mms):
        if int(mm["page_table_lock"]) == me:
            held.append(f"page_table_lock of mm {i}")
        if int(mm["mmap_lock"][RWSEM.wait_lock // WORD]) == me:
            held.append(f"wait_lock of mm {i}'s mmap_lock")
    for frame in np.flatnonzero(segment.pages["ptl"] == me):
        held.append(f"the page-table lock of frame {frame}")
    for name in ("zone_lock", "vma_lock", "anon_vma_lock"):
        if int(segment.system[name]) == me:
            held.append(name)
    return held


def _word(param: int) -> int:
    return (param - CPU.workload) // WORD


def _errno_name(number: int) -> str:
    return f"{errno.errorcode.get(number, str(number))} ({os.strerror(number)})"


def _stopped_or_continued(pid: int) -> int | None:
    """Return the next of what has stopped (CLD_STOPPED) or continued a child; None if nothing."""
    with contextlib.suppress(ChildProcessError):
        found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        return None if found is None else found.si_code
    return None


def _how(group: _Group) -> str:
    """Say how a process ended."""
    code = group.process.exitcode
    if group.messages:
        return f"failed: {'; '.join(group.messages)}"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code in set(Bug):
        return f"stopped: kernel assertion {Bug(code).name} failed"
    if code == 0:
        return "left its loop before it was told to"
    return f"exited with status {code}"


# What follows runs in the worker processes.


def _process_main(
    workers: Workers, members: list[int], placement: list[int | None], pipe: Connection
) -> None:
    plan = workers.plan
    if plan.target == "host" and not plan.huge_pages:
        _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
    _populate(workers.segment)
    if plan.target == "emulator" or len(members) == 1:
        _run_worker(workers, members[0], placement[0], pipe)
        return
    threads = [
        threading.Thread(target=_run_worker, args=(workers, cpu, core, pipe))
        for cpu, core in zip(members, placement, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _populate(segment: Segment) -> None:
    """Fill this process's page table for the segment: fork does not copy shared mappings.

    A real fault in the measured loop costs as much as twenty emulated ones.
    """
    if _libc.madvise(segment.base, segment.size, _MADV_POPULATE_WRITE) != 0:
        # before Linux 5.14; a read maps a shared page writable
        segment.words[:: mmap.PAGESIZE // WORD].sum()


def _run_worker(workers: Workers, index: int, core: int | None, pipe: Connection) -> None:
    """One worker from pinning to the end; ends the process if anything goes wrong."""
    try:
        if core is not None:
            _pin(core)
        pipe.send((index, threading.get_native_id()))
        _work(workers, index)
    except KernelPanic as panic:
        os._exit(panic.code)
    except ResourceError as error:
        pipe.send(str(error))
        os._exit(_EXIT_FAILED)
    except Exception:  # noqa: BLE001  whatever it is, the parent has to hear of it
        pipe.send(traceback.format_exc(limit=-3).strip())
        os._exit(_EXIT_FAILED)


def _pin(core: int) -> None:
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise ResourceError(
            f"cannot pin a worker to CPU {core} ({error.strerror}): allow CPU affinity, for "
            "example in the container's settings"
        ) from error


def _work(workers: Workers, index: int) -> None:
    segment, engine = workers.segment, workers.engine
    cpu = segment.cpu(index)
    library = shims.load()
    system = segment.address["system"]
    ready, gate = system + SYSTEM.ready, system + SYSTEM.gate
    # set-ups one after another, so that what they map does not depend on timing
    while (turn := library.spf_smp_load_acquire(ready)) < index:
        library.spf_futex_wait(ready, turn, -1)
    result = engine.call("worker_setup", cpu)
    if isinstance(result, int) and result < 0:
        raise ResourceError(f"its set-up failed with {_errno_name(-result)}")
    library.spf_atomic_fetch_add(ready, 1)
    library.spf_futex_wake(ready, _EVERYBODY)
    while library.spf_smp_load_acquire(gate) == 0:
        library.spf_futex_wait(gate, 0, -1)
    host = workers.plan.target == "host"
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    engine.call("worker_loop", cpu)
    if host:
        faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - faults
        segment.cpus["event"][index, Event.PGFAULT] += faults
    # RCU callbacks are run only once nobody can queue more
    library.spf_atomic_fetch_add(ready, -1)
    while library.spf_smp_load_acquire(ready) > 0:
        segment.cpus["progress"][index] += 1
        time.sleep(0.0005)
    engine.call("worker_exit", cpu)
