# SPDX-License-Identifier: MIT
"""Faults under the lock of a VMA, or with a reference to it, and writers that want it."""

import contextlib

from spfemu.engines.script import ScriptStuckError, after, before
from spfemu.mm.flags import Errno, Mremap, Prot
from spfemu.segment import Geometry
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.process import Process, Threads
from spfemu.stress.schedules.schedule import expect, finish_beside, schedule, tries_until

AREA = 1 << 40
PAGE = AREA + 4096
ELSEWHERE = 1 << 41
LENGTH = 16 << 12
MOVE = int(Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP)
EFAULT = int(Errno.EFAULT)
COMMITS = before("pte_map_lock", inside="do_anonymous_write")


@schedule()
def a_locked_vma_beside_munmap(process: Process, seed: int) -> None:
    """A fault has locked its VMA and is about to commit when a writer comes."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(COMMITS)
        b.runs_until(before("free_pgtables"), letting=[a])
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))


@schedule()
def lock_of_a_vma_beside_munmap(process: Process, seed: int) -> None:
    """A fault has found its VMA unlocked and takes the lock after a writer has."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("down_read_trylock", inside="vma_start_read"))
        b.runs_until(before("detach_vmas_to_be_unmapped"))
        tries_until(a, COMMITS)
        b.runs_until(before("free_pgtables"), letting=[a])
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))


@schedule()
def lock_of_a_detached_vma(process: Process, seed: int) -> None:
    """A fault has found its VMA unlocked and takes the lock after it was unmapped."""
    process.map(AREA, 16)
    process.write(AREA, 1)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "munmap", AREA, LENGTH)
        a.runs_until(before("down_read_trylock", inside="vma_start_read"))
        b.runs_until(before("unlink_anon_vma_list"))
        a.runs_to_end(letting=[b])
        b.runs_to_end(letting=[a])
    expect("a read of what was unmapped", process.call("read", PAGE), (-EFAULT, 0))


@schedule()
def anon_vma_beside_mremap(process: Process, seed: int) -> None:
    """A fault is about to lock its VMA when the pages move away, and then their new place goes."""
    process.map(AREA, 8)
    process.write(AREA, 1)
    assert process.call("mprotect", AREA + (4 << 12), 4 << 12, int(Prot.READ)) == 0
    moves = ("mremap", AREA, 4 << 12, 4 << 12, MOVE, ELSEWHERE)
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        a.runs_until(before("vma_start_read"))
        finish_beside(process, threads.thread("B", *moves))
        tries_until(a, after("find_mergeable_anon_vma"))
        cpu = process.segment.cpu(1)
        d = threads.cpu("D", "thread_munmap", cpu, ELSEWHERE, 4 << 12)
        with contextlib.suppress(ScriptStuckError):  # the fault may have the mmap lock
            finish_beside(process, d)
            e = threads.cpu("E", "thread_munmap", cpu, AREA + (4 << 12), 4 << 12)
            finish_beside(process, e)
        a.runs_to_end(letting=[d])
        d.runs_to_end(letting=[a])


@schedule(Geometry(nr_cpus=3, nr_mms=2))
def a_vma_that_goes_to_another_process(process: Process, seed: int) -> None:
    """A fault has looked its VMA up, which is freed and used again by another process."""
    assert process.call("mmap", AREA, LENGTH, RW, FIXED, cpu=0) == AREA
    with Threads(process) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        a.runs_until(after("__find_vma", inside="lock_vma_under_rcu"))
        assert process.call("munmap", AREA, LENGTH, cpu=1) == 0
        process.engine.call("switch_mm", process.segment.cpu(1), process.segment.mm(1))
        assert process.call("mmap", AREA, LENGTH, RW, FIXED, cpu=1) == AREA
        expect("the write to what was unmapped", a.runs_to_end(), -EFAULT)
