# SPDX-License-Identifier: MIT
"""Kernel functions that publish, read and free objects under RCU, and broken variants of RCU."""

import sys

import lock_storm
import pytest
from lock_storm import random_next
from mm_machine import renamed

from spfemu.engines.source import functions_of
from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, PAGE, RCU_QUEUE, SYSTEM, VMA, WORD
from spfemu.mm.irq import CpuState, cpu_relax_poll
from spfemu.mm.rcu import call_rcu, rcu_read_lock, rcu_read_unlock, rcu_report_qs, synchronize_rcu
from spfemu.mm.sched import cond_resched, cpu_idle_enter, cpu_sleep
from spfemu.primitives import load, read_once, smp_load_acquire, smp_mb, store, write_once, xchg
from spfemu.segment import Segment

TABLE_ENTRIES = 4
VIOLATIONS = TABLE_ENTRIES * WORD
"""Byte offset, in the table, of the count of what should not have been seen."""
SLEEP = VIOLATIONS + WORD
ALIVE = 77
DEAD = 66


# Objects: a pool per CPU, linked by their last word


@kernel
def object_state(cpu: int, obj: int) -> int:
    """Return the address of the word that says ALIVE or DEAD."""
    return obj + VMA.vm_flags if obj < load(cpu + CPU.vma_slab_end) else obj + PAGE.mapping


@kernel
def object_generation(cpu: int, obj: int) -> int:
    """Return the address of the word that counts how often the object was handed out."""
    return obj + VMA.generation if obj < load(cpu + CPU.vma_slab_end) else obj + PAGE.index


@kernel
def object_alloc(cpu: int) -> int:
    """Take an object from the CPU's pool; 0 if it is empty."""
    obj = load(cpu + CPU.vma_list)
    if obj:
        store(cpu + CPU.vma_list, load(object_state(cpu, obj) - WORD))
        generation = object_generation(cpu, obj)
        store(generation, load(generation) + 1)
        store(object_state(cpu, obj), ALIVE)
    return obj


@kernel
def object_free(cpu: int, obj: int) -> None:
    """Poison an object and put it into the CPU's pool."""
    store(object_state(cpu, obj), DEAD)
    store(object_state(cpu, obj) - WORD, load(cpu + CPU.vma_list))
    store(cpu + CPU.vma_list, obj)


@kernel
def vm_area_free_rcu(cpu: int, vma: int) -> None:
    """Be the callback of VMAs."""
    object_free(cpu, vma)


@kernel
def free_table_now(cpu: int, page: int) -> None:
    """Be the callback of page tables."""
    object_free(cpu, page)


# What CPUs do with them


@kernel
def linger(cpu: int) -> None:
    """Stay for a random while, seldom a long one."""
    choice = random_next(cpu)
    turns = choice % 8
    if (choice >> 8) % 16 == 0:
        turns = choice % 256
    while turns > 0:
        cpu_relax_poll(cpu)
        turns -= 1


@kernel
def table_entry(cpu: int, table: int) -> int:
    """Return the address of a random entry."""
    return table + random_next(cpu) % TABLE_ENTRIES * WORD


@kernel
def read_entry(cpu: int, entry: int, violations: int) -> None:
    """Look an object up and use it for a while in a read-side section."""
    rcu_read_lock(cpu)
    obj = smp_load_acquire(entry)
    if obj:
        generation = load(object_generation(cpu, obj))
        wrong = load(object_state(cpu, obj)) != ALIVE
        linger(cpu)
        wrong = wrong or load(object_state(cpu, obj)) != ALIVE
        if wrong or load(object_generation(cpu, obj)) != generation:
            write_once(violations, 1)
    rcu_read_unlock(cpu)


@kernel
def replace_entry(cpu: int, entry: int, wait: int) -> int:
    """Replace an object by a new one; returns 1 if the old one was handed to call_rcu.

    With `wait` it is freed here, after synchronize_rcu.
    """
    new = object_alloc(cpu)
    if new == 0:
        return 0
    old = xchg(entry, new)
    if old == 0:
        return 0
    if wait:
        synchronize_rcu(cpu)
        object_free(cpu, old)
        return 0
    call_rcu(cpu, old)
    return 1


@kernel
def rcu_storm(cpu: int, table: int, rounds: int, updates: int) -> int:
    """Look objects up `rounds` times, `updates` of 16 times replace one; returns callbacks."""
    queued = 0
    for _ in range(rounds):
        choice = random_next(cpu)
        if choice % 16 < updates:
            queued += replace_entry(cpu, table_entry(cpu, table), (choice >> 8) % 16 == 0)
        else:
            read_entry(cpu, table_entry(cpu, table), table + VIOLATIONS)
        if (choice >> 16) % 64 == 0:
            cpu_sleep(cpu, table + SLEEP, 0, 20_000)
        cond_resched(cpu)
    cpu_idle_enter(cpu)
    return queued


# Broken variants


@kernel
def broken_cpu_quiescent_ignores_one(target: int, gp: int) -> int:
    """Forget CPU 1."""
    if load(target + CPU.id) == 1:
        return 1
    if smp_load_acquire(target + CPU.rcu_qs) >= gp:
        return 1
    return smp_load_acquire(target + CPU.state) != CpuState.RUNNING


@kernel
def broken_next_gp_is_the_running_one(cpu: int) -> int:
    """Wait for the end of a grace period that may have begun before the object was unlinked."""
    smp_mb()
    return read_once(load(cpu + CPU.system) + SYSTEM.rcu_gp)


@slowpath
def broken_try_end_gp_asks_nobody(cpu: int) -> None:
    """End the grace period without a look at the other CPUs."""
    system = load(cpu + CPU.system)
    gp = read_once(system + SYSTEM.rcu_gp)
    if read_once(cpu + CPU.rcu_qs) >= gp:
        write_once(system + SYSTEM.rcu_gp, gp + 1)


@kernel
def broken_quiescent_never_says_so(cpu: int) -> None:
    """Report nothing."""
    return


@slowpath
def broken_core_drops(cpu: int) -> None:
    """Forget what is queued."""
    store(cpu + CPU.rcu + RCU_QUEUE.head, 0)
    store(cpu + CPU.rcu + RCU_QUEUE.tail, 0)
    store(cpu + CPU.rcu + RCU_QUEUE.nr, 0)
    rcu_report_qs(cpu, read_once(load(cpu + CPU.system) + SYSTEM.rcu_gp))


OWN = functions_of(sys.modules[__name__])
STORM = functions_of(lock_storm)
IGNORES_ONE = renamed(OWN, rcu_cpu_quiescent="broken_cpu_quiescent_ignores_one")
RUNNING_ONE = renamed(OWN, rcu_next_gp="broken_next_gp_is_the_running_one")
ASKS_NOBODY = renamed(OWN, rcu_try_end_gp="broken_try_end_gp_asks_nobody")
NEVER_SAYS_SO = renamed(OWN, rcu_quiescent="broken_quiescent_never_says_so")
DROPS = renamed(OWN, rcu_core="broken_core_drops")
EARLY = pytest.mark.parametrize(
    "layer", [IGNORES_ONE, RUNNING_ONE, ASKS_NOBODY], ids=["one", "gp", "nobody"]
)


class Objects:
    """The pools and the table of a segment; half of the objects are PAGEs."""

    def __init__(self, segment: Segment, seed: int = 1) -> None:
        self.segment = segment
        self.table = segment.scratch(0)
        segment.reset(seed)
        nr_cpus = segment.geometry.nr_cpus
        self.all = [segment.address["vmemmap"] + i * PAGE.SIZE for i in range(8 * nr_cpus)]
        self.all += [segment.address["vmas"] + i * VMA.SIZE for i in range(8 * nr_cpus)]
        for i, obj in enumerate(self.all):
            cpu = segment.cpus[i % nr_cpus]
            self._set(self.state(obj), DEAD)
            self._set(self.state(obj) - WORD, int(cpu["vma_list"]))
            cpu["vma_list"] = obj

    def _set(self, address: int, value: int) -> None:
        self.segment.words[(address - self.segment.base) // WORD] = value

    def state(self, obj: int) -> int:
        """Address of an object's ALIVE or DEAD."""
        is_vma = obj < self.segment.address["vmemmap"]
        return obj + (VMA.vm_flags if is_vma else PAGE.mapping)

    def alive(self, obj: int) -> bool:
        """Tell whether its callback has not run."""
        return self.segment.word(self.state(obj)) == ALIVE

    def published(self) -> list[int]:
        """Objects in the table."""
        entries = [self.segment.word(self.table + i * WORD) for i in range(TABLE_ENTRIES)]
        return [obj for obj in entries if obj]

    def free(self) -> list[int]:
        """Objects in the pools."""
        found = []
        for first in map(int, self.segment.cpus["vma_list"]):
            obj = first
            while obj:
                found.append(obj)
                obj = self.segment.word(self.state(obj) - WORD)
        return found

    def queue(self, index: int) -> dict[str, int]:
        """Words of a CPU's RCU_QUEUE."""
        at = self.segment.cpu(index) + CPU.rcu
        return {f.name: self.segment.word(at + f.offset) for f in RCU_QUEUE.FIELDS}

    @property
    def violated(self) -> bool:
        """Whether a reader saw what it should not."""
        return self.segment.word(self.table + VIOLATIONS) != 0

    def assert_complete(self) -> None:
        """Check that nothing is queued and no object is lost or in two places."""
        for index in range(self.segment.geometry.nr_cpus):
            queue = self.queue(index)
            assert not any(queue[name] for name in ("head", "tail", "wait_head", "nr"))
        assert sorted(self.free() + self.published()) == sorted(self.all)
        assert all(self.alive(obj) for obj in self.published())
