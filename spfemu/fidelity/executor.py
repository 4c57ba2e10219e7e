# SPDX-License-Identifier: MIT
"""The two processes that run programs, each in compiled code, and how they are spoken to."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import re
import resource
import signal
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from spfemu import shims
from spfemu.engines.native import NativeEngine
from spfemu.fidelity.channel import (
    FILE_SIZES,
    MAX_OPERATIONS,
    MAX_UNMAP,
    OPERATION_WORDS,
    Channel,
    ChannelMemory,
)
from spfemu.host.calls import NO_FILE
from spfemu.layout import PAGE_MASK, PAGE_SIZE
from spfemu.measure import processes
from spfemu.mm.bug import Bug

HANG_SECONDS = 10.0
"""A request that takes longer hangs: it is a thousand operations of microseconds each."""
_WAIT_NS = 2_000_000
"""Between two looks at whether the process is still there: a dead one wakes nobody."""
_PR_SET_THP_DISABLE = 41
_CAPABILITY_VERSION_3 = 0x20080522
_NR_CAPSET = 126 if platform.machine() == "x86_64" else 91
_START_BRK_FIELD = 47  # of /proc/self/stat, counted from 1

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mapping:
    """One line of a maps file."""

    start: int
    end: int
    name: str
    accessible: bool = True


def read_maps(pid: int | str) -> list[Mapping]:
    """Return the mappings of a process in the user's half of the address space."""
    mappings = []
    text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.split("\n")[:-1]:
        fields = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if start < 1 << 63:
            name = fields[5] if len(fields) > 5 else ""
            mappings.append(Mapping(start, end, name, fields[1][:3] != "---"))
    return mappings


class ExecutorDied(Exception):  # noqa: N818 that is what it says
    """The process ended or hangs; the message says how, STREAM_END how far it came."""


class Executor(ABC):
    """A forked process that runs requests until it is killed.

    Leaving the context kills it.
    """

    def __init__(self, engine: NativeEngine) -> None:
        self.engine = engine
        self.channel = ChannelMemory()
        self._process: Any = None

    def __enter__(self) -> Self:
        """Start the process."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave no process behind."""
        self.kill()
        self.channel.close()

    @abstractmethod
    def _serve(self) -> NoReturn:
        """Run requests, in the child."""

    @property
    def pid(self) -> int:
        """The process, 0 if there is none."""
        return 0 if self._process is None else int(self._process.pid)

    def start(self) -> None:
        """Fork the process."""
        self.channel[Channel.REQUEST] = self.channel[Channel.REPLY] = 0
        with processes.uninterrupted():
            self._process = processes.start(type(self).__name__, self._serve)

    def kill(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def send(self, words: list[int]) -> None:
        """Have operations run; `receive` waits for the end."""
        count = len(words) // OPERATION_WORDS
        if count > MAX_OPERATIONS:
            raise ValueError(f"{count} operations are too many for one request")
        channel = self.channel
        channel.write(Channel.OPERATIONS, words)
        channel[Channel.NR_OPERATIONS] = count
        channel[Channel.STREAM_END] = channel.address + Channel.STREAM
        library = shims.load()
        # the release pairs with the acquire of `serve`
        library.spf_smp_store_release(
            channel.address + Channel.REQUEST, channel[Channel.REQUEST] + 1
        )
        library.spf_futex_wake(channel.address + Channel.REQUEST, 1)

    def receive(self, hang_seconds: float) -> NDArray[np.int64]:
        """Wait for the end of the request and return the records, a view of the channel.

        Raises ExecutorDied, after which the records that were finished can still be read.
        """
        library = shims.load()
        reply = self.channel.address + Channel.REPLY
        request = self.channel[Channel.REQUEST]
        deadline = time.monotonic() + hang_seconds
        while True:
            # pairs with the release of `serve`
            seen = library.spf_smp_load_acquire(reply)
            if seen == request:
                return self.channel.stream()
            library.spf_futex_wait(reply, seen, _WAIT_NS)
            self._check_alive()
            if time.monotonic() > deadline:
                self.kill()
                raise ExecutorDied(f"does not return within {hang_seconds:g} s")

    def _check_alive(self) -> None:
        assert self._process is not None
        code = self._process.exitcode
        if code is None:
            return
        self.kill()
        if code in set(Bug):
            raise ExecutorDied(f"stopped at the kernel assertion {Bug(code).name}")
        if code < 0:
            raise ExecutorDied(f"was killed by {signal.Signals(-code).name}")
        raise ExecutorDied(f"ended with status {code}")


class EmulatedExecutor(Executor):
    """Runs programs on the emulated kernel; `cpu` is the address of the CPU that it is."""

    def __init__(self, engine: NativeEngine, cpu: int) -> None:
        super().__init__(engine)
        self.cpu = cpu

    def _serve(self) -> NoReturn:
        # a wrong kernel function may crash: that is a difference, not a reason for a stack trace
        faulthandler.disable()
        self.engine.call("serve", self.cpu, self.channel.address)
        raise AssertionError("serve returned")


class HostExecutor(Executor):
    """Runs programs on the real kernel, in a process that has given up all that it can."""

    def _serve(self) -> NoReturn:
        self._renounce()
        channel = self.channel
        for offset, name in (
            (Channel.FD_MAPS, "maps"),
            (Channel.FD_PAGEMAP, "pagemap"),
            (Channel.FD_MEM, "mem"),
        ):
            channel[offset] = os.open(f"/proc/self/{name}", os.O_RDONLY)
        channel[Channel.START_BRK] = start_brk()
        channel.write(Channel.FILES, [NO_FILE, *map(make_file, FILE_SIZES)])
        serve = self.engine.compiled.function("serve_host")
        # resolves what is bound at the first call, while the dynamic linker is still there
        shims.load().spf_raw_syscall(-1, 0, 0, 0, 0, 0, 0)
        keep = [self.engine.compiled.entry("serve_host"), channel.address]
        ranges = [word for m in inherited(keep) for word in (m.start, m.end)]
        channel.write(Channel.UNMAP, [*ranges[: 2 * MAX_UNMAP], 0])
        serve(channel.address + Channel.CPU, channel.address)
        raise AssertionError("serve returned")

    def locked_bytes(self) -> int:
        """Return how much memory the kernel counts as locked by this process."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        found = re.search(r"^VmLck:\s*(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) << 10

    @staticmethod
    def _renounce() -> None:
        """Be a process like any other: no capabilities, no limits that could be lifted.

        Huge pages are off: the emulated machine has none.
        """
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard, hard))
        _libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        nothing = (ctypes.c_uint32 * 6)()
        if _libc.syscall(_NR_CAPSET, header, nothing) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "capset")


def make_file(size: int) -> int:
    """Return a descriptor of a new file in memory."""
    fd = os.memfd_create("spfemu-fidelity-file", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def start_brk() -> int:
    """Return where the heap of this process starts."""
    text = Path("/proc/self/stat").read_text(encoding="utf-8")
    # the second field is a name in parentheses that may hold anything
    return int(text.rpartition(")")[2].split()[_START_BRK_FIELD - 3])


def inherited(keep: list[int]) -> list[Mapping]:
    """Return the mappings of files that compiled code can do without.

    It needs the C library and the shim, and everything whose address is in `keep`.  Memory that
    is no file's is left alone: stacks, thread-local data and compiled code are in it.
    """
    mappings = read_maps("self")
    for address in (_address(_libc, "syscall"), shims.symbol_address("spf_raw_syscall")):
        keep = [*keep, address]
    kept = {m.name for m in mappings for address in keep if m.start <= address < m.end}
    heap = (start_brk() + PAGE_SIZE - 1) & PAGE_MASK
    return [
        m
        for m in mappings
        # what ends where the heap starts would grow with it
        if (m.name.startswith("/") and m.name not in kept) or m.end == heap
    ]


def _address(library: ctypes.CDLL, name: str) -> int:
    value = ctypes.cast(library[name], ctypes.c_void_p).value
    assert value is not None, name
    return value
