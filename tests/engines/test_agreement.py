# SPDX-License-Identifier: MIT
"""The engines agree on the whole kernel: same operations, same memory, and side by side too."""

import importlib
import os
import pkgutil
import random
import signal
import time
import traceback

import pytest
from protocol_sets import GUARDED

import spfemu.mm
from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import StepEngine
from spfemu.events import Event
from spfemu.mm import worker
from spfemu.mm.flags import PMD_SIZE, Errno, Madv, Map, Prot
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

ENGINES = (NativeEngine, StepEngine, PlainEngine)
RW, READ = int(Prot.READ | Prot.WRITE), int(Prot.READ)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
PAGES = 24
SHARED = 1 << 40
OWN = SHARED + (1 << 30)
DEADLINE_SECONDS = 120


def whole_kernel(protocol):
    """Link everything but the worker's loop, which belongs to workloads."""
    names = [f"spfemu.mm.{m.name}" for m in pkgutil.iter_modules(spfemu.mm.__path__)]
    modules = [importlib.import_module(name) for name in names]
    layers = [functions_of(m) for m in modules if m is not worker]
    layers.append(protocol_functions(protocol))
    loop = functions_of(worker)
    layers.append({name: loop[name] for name in ("cpu_online", "cpu_offline")})
    return link(layers, {})


@pytest.fixture(scope="module", params=GUARDED)
def engines(own_cache, request):
    program = whole_kernel(request.param)
    return [engine(program) for engine in ENGINES]


class Thread:
    """A thread that makes random calls and knows what each has to do to its own area."""

    def __init__(self, engine, segment, index, seed):
        self.call = engine.call
        self.cpu = segment.cpu(index)
        self.index = index
        # the area straddles two page tables
        self.area = OWN + index * (1 << 30) + PMD_SIZE - PAGES // 2 * 4096
        self.choose = random.Random(seed)
        self.rights = [None] * PAGES
        self.values = [0] * PAGES
        self.call("cpu_online", self.cpu)

    def run(self, operations, stop=lambda: False):
        """Make calls until told to stop, with a quiescent point after each; then go offline."""
        for _ in range(operations):
            if stop():
                break
            name = self.choose.choice(["write"] * 6 + ["read"] * 4 + ["map", "unmap"] * 2
                                      + ["protect", "drop", "brk", "shared", "shared"])  # fmt: skip
            getattr(self, name)()
            self.call("cond_resched", self.cpu)
        self.call("cpu_offline", self.cpu)

    def some_pages(self):
        """Choose a range: first page, end page, address, length."""
        first, last = sorted(self.choose.sample(range(PAGES + 1), 2))
        return first, last, self.area + first * 4096, (last - first) * 4096

    def write(self):
        page, value = self.choose.randrange(PAGES), self.choose.getrandbits(60)
        result = self.call("user_write", self.cpu, self.area + page * 4096 + 8, value)
        if self.rights[page] == RW:
            assert result == 0
            self.values[page] = value
        else:
            assert result == -Errno.EFAULT

    def read(self):
        page = self.choose.randrange(PAGES)
        result = self.call("user_read", self.cpu, self.area + page * 4096 + 8)
        readable = self.rights[page] is not None
        assert result == ((0, self.values[page]) if readable else (-Errno.EFAULT, 0))

    def map(self):
        first, last, address, length = self.some_pages()
        rights = self.choose.choice([RW, RW, READ])
        assert self.call("sys_mmap", self.cpu, address, length, rights, FIXED) == address
        self.rights[first:last] = [rights] * (last - first)
        self.values[first:last] = [0] * (last - first)

    def unmap(self):
        first, last, address, length = self.some_pages()
        assert self.call("sys_munmap", self.cpu, address, length) == 0
        self.rights[first:last] = [None] * (last - first)
        self.values[first:last] = [0] * (last - first)

    def protect(self):
        first, last, address, length = self.some_pages()
        rights = self.choose.choice([RW, READ])
        result = self.call("sys_mprotect", self.cpu, address, length, rights)
        hole = next((i for i in range(first, last) if self.rights[i] is None), last)
        assert result == (0 if hole == last else -Errno.ENOMEM)
        self.rights[first:hole] = [rights] * (hole - first)

    def drop(self):
        first, last, address, length = self.some_pages()
        result = self.call("sys_madvise", self.cpu, address, length, Madv.DONTNEED)
        assert result == (-Errno.ENOMEM if None in self.rights[first:last] else 0)
        self.values[first:last] = [0] * (last - first)

    def brk(self):
        now = self.call("sys_brk", self.cpu, 0)
        wanted = now + self.choose.choice([-4096, 4096, 8192])
        assert self.call("sys_brk", self.cpu, wanted) in (wanted, now)

    def shared(self):
        """Use a page that others use and drop too: it holds 0 or what was meant for it."""
        page = self.choose.randrange(PAGES)
        address = SHARED + page * 4096
        if self.choose.random() < 0.1:
            length = min(4, PAGES - page) * 4096
            assert self.call("sys_madvise", self.cpu, address, length, Madv.DONTNEED) == 0
        elif self.choose.random() < 0.5:
            assert self.call("user_write", self.cpu, address, page + 1) == 0
        else:
            error, value = self.call("user_read", self.cpu, address)
            assert error == 0
            assert value in (0, page + 1)


@pytest.fixture
def segment():
    """A segment of two CPUs whose mm has threads enough to speculate."""
    made = Segment.create(Geometry(nr_cpus=2))
    start_over(made)
    yield made
    made.close()


def start_over(segment):
    """Put all of it, the frames too, into one initial state."""
    segment.words[:] = 0
    segment.reset()
    segment.mms["mm_users"] = 2


def map_shared(engine, segment):
    cpu = segment.cpu(0)
    engine.call("cpu_online", cpu)
    assert engine.call("sys_mmap", cpu, SHARED, PAGES * 4096, RW, FIXED) == SHARED
    engine.call("cpu_idle_enter", cpu)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_operations_leave_the_same_memory(engines, segment, seed):
    dumps = []
    for engine in engines:
        start_over(segment)
        map_shared(engine, segment)
        Thread(engine, segment, 0, seed).run(1000)
        dumps.append(segment.words.tobytes())
        assert check_segment(segment) == []
    assert dumps == dumps[:1] * 3


def finish(children):
    """Wait for forked workers; returns their exit codes, after killing them if one fails."""
    codes = {}
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(codes) < len(children):
        for child in children:
            if child not in codes and (found := os.waitpid(child, os.WNOHANG))[0]:
                codes[child] = os.waitstatus_to_exitcode(found[1])
        if any(codes.values()) or time.monotonic() > deadline:
            for child in set(children) - set(codes):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = "killed: did not end by itself"
        time.sleep(0.002)
    return [codes[child] for child in children]


def fork_worker(engine, segment, index, operations):
    """Fork a process that runs operations, and stops the others when it has made them all."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            Thread(engine, segment, index, index).run(operations, lambda: segment.system["stop"])
            segment.system["stop"] = 1
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    return child


def test_plain_and_native_workers_share_a_segment(engines, segment):
    native, _, plain = engines
    map_shared(native, segment)

    children = [
        fork_worker(plain, segment, 0, 1500),
        fork_worker(native, segment, 1, 10_000_000),
    ]

    assert finish(children) == [0, 0]
    assert check_segment(segment) == []
    # either has made the other flush
    assert segment.cpus["event"][:, Event.TLB_SHOOTDOWN_RECEIVED].min() > 0
    assert segment.cpus["event"][:, Event.TLB_SHOOTDOWN_SENT].min() > 0
