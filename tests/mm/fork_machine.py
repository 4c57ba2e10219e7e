# SPDX-License-Identifier: MIT
"""A machine whose processes fork, and a model of what they must see."""

import functools
import random
from importlib import import_module

import fork_ops
import numpy as np
from fork_ops import AREA
from mm_machine import Layer, Machine, renamed
from whole_kernel import MODULES, SCHEMES, KernelMachine

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Errno, Madv, Map, Prot
from spfemu.protocols import protocol_functions
from spfemu.segment import Geometry, Segment

RW = int(Prot.READ | Prot.WRITE)
FIXED = int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
FORKER_CPU = 2
_OPS = functions_of(fork_ops)
MUTANTS: dict[str, Layer] = {
    "": {},
    "never write-protect": renamed(_OPS, is_cow_mapping="mutant_never_write_protect"),
    "no flush": renamed(_OPS, dup_mmap_unlock="mutant_no_flush"),
}


@functools.cache
def engine(
    name: str, protocol: str = "classic", scheme: str = "rcu", mutant: str = ""
) -> NativeEngine | PlainEngine:
    modules = [functions_of(import_module("spfemu.mm." + module)) for module in MODULES]
    layers = [*modules, _OPS, protocol_functions(protocol), MUTANTS[mutant]]
    config = {"CONFIG_MMU_GATHER_RCU_TABLE_FREE": SCHEMES[scheme]}
    program = link(layers, config)
    return NativeEngine(program) if name == "native" else PlainEngine(program)


class ForkMachine(KernelMachine):
    """A machine with spare mms."""

    def __init__(self, kernel: NativeEngine | PlainEngine, **geometry: int) -> None:
        given = {"nr_cpus": 1, "nr_frames": 1500, "nr_vmas": 500, "nr_spare_mms": 8} | geometry
        Machine.__init__(self, kernel, Segment.create(Geometry(**given)))
        self.reset()

    def map(self, pages: int, address: int = AREA, cpu: int = 0) -> None:
        assert self.on(cpu, "sys_mmap", address, pages * PAGE_SIZE, RW, FIXED) == address

    def write(self, page: int, value: int, cpu: int = 0) -> None:
        assert self.on(cpu, "user_write", AREA + page * PAGE_SIZE, value) == 0

    def read(self, page: int, cpu: int = 0) -> int:
        error, value = self.on(cpu, "user_read", AREA + page * PAGE_SIZE)
        assert error == 0
        return value

    def fork(self, cpu: int = 0) -> int:
        child = self.on(cpu, "sys_fork")
        assert child > 0
        return child

    def free(self) -> dict[str, int]:
        """How many of everything are free."""
        segment, system = self.segment, self.segment.system
        for index in range(segment.geometry.nr_cpus):
            self.on(index, "rcu_barrier")
        cpus = segment.cpus
        return {
            "frames": int(
                system["zone_free"] + (cpus["pcp_count"] + cpus["pcp_spare_count"]).sum()
            ),
            "vmas": int((segment.vmas["slab_state"] == 0).sum()),
            "anon_vmas": int((segment.anon_vmas["in_use"] == 0).sum()),
            "chains": self._chains(),
            "mms": int((segment.mms["in_use"] == 0).sum()),
        }

    def _chains(self) -> int:
        count, address = 0, int(self.segment.system["avc_free"])
        while address:
            count += 1
            address = int(self.segment.avcs[self._avc(address)]["same_vma"])
        return count

    def _avc(self, address: int) -> int:
        return (address - self.segment.address["avcs"]) // self.segment.avcs.dtype.itemsize


MODEL_PAGES = 10
MODEL_CPUS = 3


class Model:
    """What each process has in each page: rights and value; drives a machine beside it."""

    def __init__(self, machine: ForkMachine, seed: int) -> None:
        self.machine = machine
        self.random = random.Random(seed)
        first = machine.segment.mm(0)
        self.pages: dict[int, dict[int, tuple[int, int]]] = {first: {}}
        self.users = {first: MODEL_CPUS}
        self.runs = [first] * MODEL_CPUS

    def step(self) -> None:
        """Let a CPU do something; all results must be as the model says."""
        cpu = self.random.randrange(MODEL_CPUS)
        weights = {
            "read": 8,
            "write": 12,
            "fork": 3,
            "leave": 3,
            "exec": 1,
            "map": 3,
            "unmap": 2,
            "protect": 3,
            "drop": 1,
        }
        name = self.random.choices(list(weights), list(weights.values()))[0]
        getattr(self, name)(cpu)

    def some_range(self) -> range:
        first = self.random.randrange(MODEL_PAGES)
        return range(first, self.random.randint(first + 1, MODEL_PAGES))

    def call(self, cpu: int, name: str, pages: range, *arguments: int) -> int:
        address, length = AREA + pages[0] * PAGE_SIZE, len(pages) * PAGE_SIZE
        return self.machine.on(cpu, name, address, length, *arguments)

    def read(self, cpu: int) -> None:
        page = self.random.randrange(MODEL_PAGES)
        rights, value = self.pages[self.runs[cpu]].get(page, (0, 0))
        expected = (0, value) if rights else (-Errno.EFAULT, 0)
        assert self.machine.on(cpu, "user_read", AREA + page * PAGE_SIZE) == expected

    def write(self, cpu: int) -> None:
        page = self.random.randrange(MODEL_PAGES)
        pages = self.pages[self.runs[cpu]]
        rights, _ = pages.get(page, (0, 0))
        value = self.random.randrange(1 << 40)
        result = self.machine.on(cpu, "user_write", AREA + page * PAGE_SIZE, value)
        assert result == (0 if rights & Prot.WRITE else -Errno.EFAULT)
        if rights & Prot.WRITE:
            pages[page] = (rights, value)

    def map(self, cpu: int) -> None:
        pages = self.some_range()
        assert self.call(cpu, "sys_mmap", pages, RW, FIXED) > 0
        self.pages[self.runs[cpu]].update(dict.fromkeys(pages, (RW, 0)))

    def unmap(self, cpu: int) -> None:
        pages = self.some_range()
        assert self.call(cpu, "sys_munmap", pages) == 0
        for page in pages:
            self.pages[self.runs[cpu]].pop(page, None)

    def protect(self, cpu: int) -> None:
        pages, rights = self.some_range(), self.random.choice([0, int(Prot.READ), RW, RW])
        known = self.pages[self.runs[cpu]]
        whole = all(page in known for page in pages)
        result = self.call(cpu, "sys_mprotect", pages, rights)
        assert result == (0 if whole else -Errno.ENOMEM)
        for page in pages:
            if page not in known:
                break
            known[page] = (rights, known[page][1])

    def drop(self, cpu: int) -> None:
        pages = self.some_range()
        self.call(cpu, "sys_madvise", pages, int(Madv.DONTNEED))
        known = self.pages[self.runs[cpu]]
        known.update({page: (known[page][0], 0) for page in pages if page in known})

    def fork(self, cpu: int) -> None:
        """Another CPU goes over to the child if it can leave its own mm, else this one."""
        if len(self.users) > self.machine.segment.geometry.nr_spare_mms:
            assert self.machine.on(cpu, "sys_fork") == -Errno.ENOMEM
            return
        child = self.machine.fork(cpu)
        self.pages[child] = dict(self.pages[self.runs[cpu]])
        self.users[child] = 1
        self.go(self.random.randrange(MODEL_CPUS), child)

    def go(self, cpu: int, mm: int) -> None:
        """Let a CPU run another mm, with the reference that the caller has to it."""
        self.machine.on(cpu, "exit_mm", mm)
        self.put(self.runs[cpu])
        self.runs[cpu] = mm

    def put(self, mm: int) -> None:
        self.users[mm] -= 1
        if self.users[mm] == 0:
            del self.users[mm], self.pages[mm]

    def leave(self, cpu: int) -> None:
        """Become a thread of a process that another CPU runs."""
        mm = self.random.choice(self.runs)
        if mm != self.runs[cpu]:
            self.machine.call("mmget", mm)
            self.users[mm] += 1
            self.go(cpu, mm)

    def exec(self, cpu: int) -> None:
        if len(self.users) > self.machine.segment.geometry.nr_spare_mms:
            return
        assert self.machine.on(cpu, "exec_mmap") == 0
        fresh = int(self.machine.segment.cpus["mm"][cpu])
        self.put(self.runs[cpu])
        self.runs[cpu] = fresh
        self.users[fresh], self.pages[fresh] = 1, {}

    def check(self) -> None:
        """Compare everything, at rest."""
        assert self.machine.violations() == []
        in_use = np.flatnonzero(self.machine.segment.mms["in_use"])
        assert {self.machine.segment.mm(int(i)) for i in in_use} == set(self.users)
        for cpu, mm in enumerate(self.runs):
            for page, (rights, value) in self.pages[mm].items():
                if rights:
                    assert self.machine.read(page, cpu=cpu) == value
