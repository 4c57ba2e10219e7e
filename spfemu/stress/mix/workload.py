# SPDX-License-Identifier: MIT
"""Random accesses and calls over the whole surface that know what every one of them must give.

Workers mostly access memory, writers mostly change mappings.  See `spfemu.stress.mix.model` for
what is judged and how.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SIZE
from spfemu.mm.file_table import sys_create
from spfemu.mm.flags import Errno, FileOps
from spfemu.mm.sched import cond_resched, cpu_idle_enter, cpu_idle_exit
from spfemu.mm.worker import worker_operation
from spfemu.primitives import load, store
from spfemu.stress.mix.access import owned_access, racing_access
from spfemu.stress.mix.calls import owned_call
from spfemu.stress.mix.mlockall import mlockall_call
from spfemu.stress.mix.model import (
    HUGE_UNIT_PAGES,
    NOT_MAPPED,
    NR_AREAS,
    UNITS,
    Area,
    AreaWord,
    UnitWord,
    area_trylock,
    area_unlock,
    may_wait_begin,
    may_wait_end,
    mix_join,
    model_area,
    model_unit,
    model_words,
    random_area,
)
from spfemu.stress.mix.served import mix_leave, serve_message, served_setup
from spfemu.stress.mix.wild import ANYWHERE_PAGES, wild_call
from spfemu.workloads.common import random_below
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters()
FORKS = True
PAGES_SHARED = True
LOCKED_FAULTS = True
ON_HOST = False
PARTS = ("model", "access", "files", "watchers", "served", "calls", "wild", "mlockall")
"""The modules of this package that it is made of."""
UFFDS = 4
"""One is open at a time; others may wait for the last of their faults to leave."""
SERVE_EVERY = 4
ACCESSES = 4
"""Accesses of an operation on an owned area."""


def needs(parameters: Parameters) -> Needs:
    """All areas for the process and a child per CPU, which may exec, with the page cache.

    And for each CPU what it maps anywhere, and what a monitor copies.
    """
    users = 1 + parameters.workers + parameters.writers
    pages = UNITS * (HUGE_UNIT_PAGES + NR_AREAS + 1) + ANYWHERE_PAGES + 1
    frames = users * (pages + table_frames(pages, NR_AREAS + 2))
    vmas = users * (NR_AREAS * UNITS + 3)
    return Needs(
        frames,
        vmas,
        mms=2 * users,
        chains=4 * vmas,
        files=256 * users,
        cached=2 * UNITS,
        uffds=UFFDS,
        model=model_words(parameters.workers + parameters.writers),
    )


def iterations(_parameters: Parameters) -> int:
    """One access or call."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Begin with nothing mapped, files of full length, and one area in which CPUs meet."""
    if load(cpu + Param.LEADER) != cpu:
        return 0
    store(cpu + State.AREA, random_below(cpu, NR_AREAS))
    for area in range(NR_AREAS):
        for unit in range(UNITS):
            store(model_unit(cpu, area, unit) + UnitWord.RIGHTS, NOT_MAPPED)
    for area in range(Area.SHARED_FILE, Area.PRIVATE_FILE + 1):
        file = sys_create(cpu, UNITS * PAGE_SIZE, FileOps.GENERIC)
        if file < 0:
            return file
        store(model_area(cpu, area) + AreaWord.FILE, file)
        store(model_area(cpu, area) + AreaWord.LENGTH, UNITS)
    return served_setup(cpu)


@kernel
def writer_setup(cpu: int) -> int:
    """See that the leader has made what all share."""
    return 0 if load(load(cpu + Param.LEADER) + CPU.failed) == 0 else -Errno.ENOMEM


@kernel
def workload_op(cpu: int) -> int:
    """Mostly access memory."""
    result = monitor_op(cpu)
    if result != 0:
        return result
    kind = random_below(cpu, 64)
    if kind < 52:
        return racing_access(cpu)
    return owned_op(cpu, kind >= 60)


@kernel
def writer_op(cpu: int) -> int:
    """Mostly change mappings."""
    result = monitor_op(cpu)
    if result != 0:
        return result
    kind = random_below(cpu, 64)
    if kind < 12:
        return wild_call(cpu)
    if kind == 12:
        return mlockall_call(cpu)
    return owned_op(cpu, kind < 52)


@kernel
def stress_operations(cpu: int, count: int) -> int:
    """Do some operations of this CPU's role, for a schedule; 0 or the first failure."""
    cpu_idle_exit(cpu)
    result = 0
    for _ in range(count):
        if result >= 0:
            result = worker_operation(cpu)
            cond_resched(cpu)
    left = mix_leave(cpu)
    cpu_idle_enter(cpu)
    return left if result == 0 else result


@kernel
def monitor_op(cpu: int) -> int:
    """Be the monitor for a message, sometimes."""
    mix_join(cpu)
    return serve_message(cpu) if random_below(cpu, SERVE_EVERY) == 0 else 0


@kernel
def workload_leave(cpu: int) -> None:
    """Let nobody wait for ever."""
    result = mix_leave(cpu)
    if result < 0:
        store(cpu + CPU.failed, -result)


@kernel
def writer_leave(cpu: int) -> None:
    """Let nobody wait for ever."""
    workload_leave(cpu)


@kernel
def owned_op(cpu: int, call: int) -> int:
    """Take a random area if it is free; change it if asked to, and access it a few times."""
    area = random_area(cpu)
    if area == Area.WILD or (area == Area.SERVED and may_wait_begin(cpu) == 0):
        return 0
    result = 0
    if area_trylock(cpu, area):
        result = owned_call(cpu, area) if call else 0
        for _ in range(ACCESSES):
            if result == 0:
                result = owned_access(cpu, area)
        area_unlock(cpu, area)
    if area == Area.SERVED:
        may_wait_end(cpu)
    return result
