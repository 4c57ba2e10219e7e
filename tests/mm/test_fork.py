# SPDX-License-Identifier: MIT
"""fork, exec and exit: what parent and child see, and that nothing is lost or leaked."""

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from fork_machine import FORKER_CPU, MODEL_CPUS, RW, ForkMachine, Model, engine
from fork_ops import AREA, PAGES, Scratch, Wrong
from mm_machine import WorkersError, seeds
from protocol_sets import STORMED

from spfemu.events import Event
from spfemu.layout import GATHER_SHARED, MM, PAGE_SIZE, WORD
from spfemu.mm.flags import Errno, Madv, PageKind, Prot


@pytest.fixture
def make() -> Iterator[Callable[..., ForkMachine]]:
    """Return a function that makes machines: engine, protocol, scheme, mutant, geometry."""
    made: list[ForkMachine] = []

    def make_machine(*kind: str, **geometry: int) -> ForkMachine:
        made.append(ForkMachine(engine(*kind), **geometry))
        return made[-1]

    yield make_machine
    for machine in made:
        machine.close()


@pytest.fixture
def machine(make: Callable[..., ForkMachine]) -> ForkMachine:
    return make("native")


engines = pytest.mark.parametrize("name", ["native", "plain"])


# One parent, one child


@engines
def test_child_sees_what_the_parent_had_and_neither_sees_the_other(make, name) -> None:
    machine = make(name)
    parent = machine.segment.mm(0)
    machine.map(6)
    for page in range(3):
        machine.write(page, 10 + page)
    assert machine.read(4) == 0
    child = machine.fork()
    assert machine.violations() == []
    machine.write(0, 20)
    machine.on(0, "switch_mm", child)
    assert [machine.read(page) for page in range(6)] == [10, 11, 12, 0, 0, 0]
    machine.write(1, 31)
    machine.write(4, 34)
    machine.on(0, "switch_mm", parent)
    assert [machine.read(page) for page in range(6)] == [20, 11, 12, 0, 0, 0]
    assert machine.violations() == []
    machine.on(0, "switch_mm", child)
    assert [machine.read(page) for page in range(6)] == [10, 31, 12, 0, 34, 0]
    machine.on(0, "exit_mm", parent)
    assert machine.violations() == []
    assert [machine.read(page) for page in range(6)] == [20, 11, 12, 0, 0, 0]


def test_fork_copies_nothing_and_the_last_sharer_reuses(machine: ForkMachine) -> None:
    machine.map(2)
    machine.write(0, 1)
    frames = machine.free()["frames"]
    child = machine.fork()
    assert frames - machine.free()["frames"] == 4  # the child's page tables
    machine.write(0, 2)
    assert machine.event(0, Event.WP_COPY) == 1
    machine.on(0, "switch_mm", child)
    machine.write(0, 3)
    assert machine.event(0, Event.WP_COPY) == 1
    assert machine.event(0, Event.WP_REUSE) == 1
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert machine.read(0) == 2
    assert machine.violations() == []


def test_child_counts_its_own(machine: ForkMachine) -> None:
    machine.map(5)
    for page in range(3):
        machine.write(page, 1)
    child = (machine.fork() - machine.segment.mm(0)) // MM.SIZE
    mms = machine.segment.mms
    assert mms["rss_anon"][child] == 3
    assert mms["total_vm"][child] == mms["map_count"][child] * 5 == 5
    assert mms["mm_users"][child] == 1
    for field in ("brk", "start_brk", "mmap_base", "task_size", "highest_vm_end"):
        assert mms[field][child] == mms[field][0], field


def test_areas_without_pages_are_copied_without_tables(machine: ForkMachine) -> None:
    machine.map(5)
    assert machine.read(0) == 0
    child = (machine.fork() - machine.segment.mm(0)) // MM.SIZE
    assert machine.segment.mms["pgtables"][child] == 1
    assert machine.violations() == []


def test_rights_are_kept(machine: ForkMachine) -> None:
    machine.map(4)
    for page in range(4):
        machine.write(page, page)
    assert machine.on(0, "sys_mprotect", AREA, PAGE_SIZE, int(Prot.READ)) == 0
    assert machine.on(0, "sys_mprotect", AREA + PAGE_SIZE, PAGE_SIZE, int(Prot.NONE)) == 0
    child = machine.fork()
    assert machine.violations() == []
    machine.on(0, "switch_mm", child)
    assert machine.on(0, "user_write", AREA, 1) == -Errno.EFAULT
    assert machine.on(0, "user_read", AREA + PAGE_SIZE)[0] == -Errno.EFAULT
    assert machine.on(0, "sys_mprotect", AREA, 4 * PAGE_SIZE, RW) == 0
    assert [machine.read(page) for page in range(4)] == [0, 1, 2, 3]
    machine.write(0, 9)
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert machine.read(0) == 0
    assert machine.violations() == []


def test_a_failed_wait_for_the_lock_leaves_no_child(machine: ForkMachine) -> None:
    machine.map(1)
    before = machine.free()
    machine.segment.cpus["fatal_signal"][0] = 1
    lock = machine.segment.mm(0) + MM.mmap_lock
    machine.call("down_write", machine.cpu(0), lock)
    assert machine.on(0, "sys_fork") == -Errno.EINTR
    machine.call("up_write", machine.cpu(0), lock)
    machine.segment.cpus["fatal_signal"][0] = 0
    assert machine.free() == before
    assert machine.violations() == []


# The end of an mm


@engines
def test_exit_frees_everything(make, name) -> None:
    machine = make(name)
    parent = machine.segment.mm(0)
    machine.map(GATHER_SHARED * 2 + 5)
    for page in range(GATHER_SHARED * 2 + 3):
        machine.write(page, page)
    before = machine.free()
    child = machine.fork()
    machine.on(0, "switch_mm", child)
    grandchild = machine.fork()
    machine.map(3, AREA + (1 << 32))
    assert machine.on(0, "user_write", AREA + (1 << 32), 1) == 0
    machine.on(0, "exit_mm", grandchild)
    machine.write(1, 7)
    assert machine.violations() == []
    machine.on(0, "exit_mm", parent)
    assert machine.free() == before
    assert machine.violations() == []


def test_the_last_user_takes_the_mm_down(make) -> None:
    machine = make("native", nr_cpus=2)
    machine.map(1)
    machine.write(0, 5)
    child = machine.fork()
    index = (child - machine.segment.mm(0)) // MM.SIZE
    for cpu in (0, 1):
        machine.on(cpu, "switch_mm", child)
    machine.call("mmget", child)
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert machine.segment.mms["in_use"][index] == 1
    assert machine.read(0, cpu=1) == 5
    machine.on(1, "exit_mm", machine.segment.mm(0))
    assert machine.segment.mms["in_use"][index] == 0
    assert machine.violations() == []


def test_exec_gives_a_fresh_mm(machine: ForkMachine) -> None:
    machine.map(3)
    machine.write(0, 5)
    child = machine.fork()
    machine.on(0, "switch_mm", child)
    assert machine.on(0, "exec_mmap") == 0
    fresh = int(machine.segment.cpus["mm"][0])
    assert fresh != child
    assert machine.on(0, "user_read", AREA)[0] == -Errno.EFAULT
    machine.map(3)
    assert machine.read(0) == 0
    index = (child - machine.segment.mm(0)) // MM.SIZE
    assert machine.segment.mms["in_use"][index] == 0
    machine.on(0, "exit_mm", machine.segment.mm(0))
    assert machine.read(0) == 5
    assert machine.violations() == []


def test_exec_without_a_spare_mm_keeps_the_old_one(make) -> None:
    machine = make("native", nr_spare_mms=0)
    machine.map(1)
    machine.write(0, 5)
    assert machine.on(0, "exec_mmap") == -Errno.ENOMEM
    assert machine.read(0) == 5
    assert machine.violations() == []


# anon_vmas


def test_chains_do_not_grow_with_the_line_of_forks(machine: ForkMachine) -> None:
    """Each child outlives its parent and forks again."""
    machine.map(2)
    machine.write(0, 0)
    for generation in range(1, 30):
        child = machine.fork()
        machine.on(0, "exit_mm", child)
        machine.write(1, generation)
        assert machine.read(0) == 0
        assert machine.violations() == []
        assert machine.segment.anon_vmas["in_use"].sum() <= 4


def test_what_a_child_has_inherited_is_not_merged(machine: ForkMachine) -> None:
    machine.map(2)
    machine.write(0, 1)
    child = machine.fork()
    machine.on(0, "switch_mm", child)
    machine.map(2, AREA + 2 * PAGE_SIZE)
    machine.write(2, 2)
    machine.write(1, 3)
    index = (child - machine.segment.mm(0)) // MM.SIZE
    assert machine.segment.mms["map_count"][index] == 2
    vmas = machine.segment.vmas
    of_child = vmas[(vmas["vm_mm"] == child) & (vmas["slab_state"] == 1)]
    assert len(np.unique(of_child["anon_vma"])) == 2
    assert machine.violations() == []


def test_split_and_merge_of_what_was_inherited(machine: ForkMachine) -> None:
    machine.map(8)
    for page in range(8):
        machine.write(page, page)
    child = machine.fork()
    machine.on(0, "switch_mm", child)
    grandchild = machine.fork()
    machine.on(0, "switch_mm", grandchild)
    for rights in (int(Prot.READ), RW):
        assert machine.on(0, "sys_mprotect", AREA + PAGE_SIZE, 3 * PAGE_SIZE, rights) == 0
        assert machine.violations() == []
    index = (grandchild - machine.segment.mm(0)) // MM.SIZE
    assert machine.segment.mms["map_count"][index] == 1
    assert machine.on(0, "sys_munmap", AREA + 2 * PAGE_SIZE, PAGE_SIZE) == 0
    assert machine.violations() == []
    assert [machine.read(page) for page in (0, 1, 3, 7)] == [0, 1, 3, 7]


# Out of memory, at each allocation in turn


TAKE: dict[str, tuple[str, tuple[int, ...], str]] = {
    "frames": ("alloc_page", (int(PageKind.ANON),), "put_page"),
    "vmas": ("vma_slab_alloc", (), "vm_area_free_rcu"),
    "anon_vmas": ("anon_vma_alloc", (), "anon_vma_free"),
    "chains": ("anon_vma_chain_alloc", (), "anon_vma_chain_free"),
    "mms": ("mm_slot_alloc", (), "mm_slot_free"),
}


def take_all_but(machine: ForkMachine, what: str, left: int) -> list[int]:
    """Leave `left` of something free; returns what was taken."""
    allocate, arguments, free = TAKE[what]
    taken = []
    while (slot := machine.on(0, allocate, *arguments)) != 0:
        taken.append(slot)
    for _ in range(left):
        machine.on(0, free, taken.pop())
    return taken


@pytest.mark.parametrize("protocol", ["classic", "vma_lock", "vma_refcount"])
@pytest.mark.parametrize("what", TAKE)
def test_out_of_memory_undoes_everything(make, what: str, protocol: str) -> None:
    machine = make("native", protocol, nr_frames=200, nr_vmas=60, nr_anon_vmas=60, nr_avcs=60)
    parent = machine.segment.mm(0)
    # three VMAs far apart, of a process that has inherited from another
    for area in range(3):
        machine.map(3, AREA + (area << 40))
        assert machine.on(0, "user_write", AREA + (area << 40), area) == 0
    machine.on(0, "switch_mm", machine.fork())
    for area in range(3):
        assert machine.on(0, "user_write", AREA + (area << 40), 5 + area) == 0
    before = machine.free()
    failures = 0
    for left in range(100):
        taken = take_all_but(machine, what, left)
        child = machine.on(0, "sys_fork")
        if child > 0:
            machine.call("mmput", machine.cpu(0), child)
        for slot in taken:
            machine.on(0, TAKE[what][2], slot)
        assert machine.free() == before, left
        assert machine.violations() == [], left
        for area in range(3):
            assert machine.on(0, "user_read", AREA + (area << 40)) == (0, 5 + area)
            assert machine.on(0, "user_write", AREA + (area << 40), 5 + area) == 0
        if child > 0:
            break
        assert child == -Errno.ENOMEM
        failures += 1
    # per VMA a table at each level below the top, a VMA, an anon_vma, a chain for each ancestor
    assert failures == {"frames": 10, "vmas": 3, "anon_vmas": 3, "chains": 6, "mms": 1}[what]
    machine.on(0, "exit_mm", parent)
    assert machine.violations() == []


# The switch


def test_switch_leaves_no_translation_and_no_cached_vma(machine: ForkMachine) -> None:
    machine.map(1)
    machine.write(0, 1)
    child = machine.fork()
    machine.on(0, "switch_mm", child)
    assert machine.on(0, "sys_munmap", AREA, PAGE_SIZE) == 0
    machine.on(0, "switch_mm", machine.segment.mm(0))
    assert machine.read(0) == 1
    machine.on(0, "switch_mm", child)
    assert machine.on(0, "user_read", AREA)[0] == -Errno.EFAULT
    assert machine.violations() == []


def test_switch_settles_the_resident_set(machine: ForkMachine) -> None:
    machine.map(3)
    child = machine.fork()
    machine.write(0, 1)
    machine.on(0, "switch_mm", child)
    assert machine.segment.mms["rss_anon"][0] == 1
    assert machine.violations() == []


def test_a_cpu_that_left_is_not_interrupted(make) -> None:
    machine = make("native", nr_cpus=2)
    machine.map(1)
    child = machine.fork()
    machine.on(1, "switch_mm", child)
    machine.call("cpu_idle_exit", machine.cpu(1))
    machine.write(0, 1)
    assert machine.on(0, "sys_madvise", AREA, PAGE_SIZE, int(Madv.DONTNEED)) == 0
    machine.call("cpu_idle_enter", machine.cpu(1))
    assert machine.total(Event.TLB_SHOOTDOWN_SENT) == 0


# Random programs of several processes against a model


@pytest.mark.parametrize("scheme", ["rcu", "irq"])
@pytest.mark.parametrize("protocol", STORMED)
def test_random_programs_of_processes(make, protocol: str, scheme: str) -> None:
    machine = make("native", protocol, scheme, nr_cpus=MODEL_CPUS, nr_spare_mms=4, nr_avcs=2000)
    for seed in seeds(6):
        run_model(machine, seed, 300)


def test_random_programs_of_processes_on_the_plain_engine(make) -> None:
    machine = make("plain", "spf", nr_cpus=MODEL_CPUS, nr_spare_mms=4, nr_avcs=2000)
    for seed in seeds(2):
        run_model(machine, seed, 100)


def run_model(machine: ForkMachine, seed: int, steps: int) -> None:
    machine.reset(seed)
    model = Model(machine, seed)
    try:
        for step in range(steps):
            model.step()
            if step % 10 == 9:
                model.check()
    except AssertionError as error:
        error.add_note(f"seed {seed}, step {step}")
        raise


def test_the_model_finds_pages_left_writable(make) -> None:
    machine = make(
        "native", "spf", "rcu", "never write-protect", nr_cpus=MODEL_CPUS, nr_spare_mms=4
    )
    with pytest.raises(AssertionError):
        run_model(machine, 1, 300)


# Threads that write while another one forks, in processes


def run_threads(machine: ForkMachine, seed: int, rounds: int, watchdog: float = 60.0) -> list[str]:
    machine.reset(seed)
    machine.map(PAGES)
    with machine.workers(watchdog) as workers:
        workers.start_gated(
            {
                0: ("fork_writer", machine.cpu(0)),
                1: ("fork_writer", machine.cpu(1)),
                FORKER_CPU: ("fork_forker", machine.cpu(FORKER_CPU), rounds),
            }
        )
        workers.join()
    return noted(machine) + machine.violations()


def noted(machine: ForkMachine) -> list[str]:
    words = [
        machine.segment.word(machine.segment.scratch(offset // WORD))
        for offset in (Scratch.FAILED, Scratch.ADDRESS, Scratch.EXPECTED, Scratch.FOUND)
    ]
    if not words[0]:
        return []
    return [f"{Wrong(words[0]).name} at {words[1]:#x}: {words[3]} instead of {words[2]}"]


@pytest.mark.parametrize("scheme", ["rcu", "irq"])
@pytest.mark.parametrize("protocol", STORMED)
def test_threads_write_while_another_forks(make, protocol: str, scheme: str) -> None:
    machine = make("native", protocol, scheme, nr_cpus=3)
    for seed in seeds(2):
        assert run_threads(machine, seed, 60) == [], seed
        assert machine.total(Event.WP_COPY) > 100
        if protocol == "spf":
            assert machine.total(Event.SPF_ATTEMPT_WP) > 0


@pytest.mark.parametrize("mutant", ["never write-protect", "no flush"])
def test_threads_find(make, mutant: str) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: CPUs that never run at once do not race")
    machine = make("native", "spf", "rcu", mutant, nr_cpus=3)
    assert any(_run_or_die(machine, seed) for seed in seeds(20))


def _run_or_die(machine: ForkMachine, seed: int) -> list[str]:
    try:
        return run_threads(machine, seed, 400, watchdog=10.0)
    except WorkersError as failure:
        return [str(failure)]


# Unmapping of shared pages by several processes at once


def drop_at_once(machine: ForkMachine, seed: int) -> list[str]:
    machine.reset(seed)
    pages = GATHER_SHARED + 20
    child = machine.on(0, "fork_share", pages)
    machine.on(1, "switch_mm", child)
    with machine.workers() as workers:
        workers.start_gated({i: ("fork_drop_often", machine.cpu(i), pages, 300) for i in range(2)})
        assert workers.join() == {0: 0, 1: 0}
    return machine.violations()


def test_two_processes_unmap_the_same_pages(make) -> None:
    machine = make("native", "classic", "rcu", nr_cpus=2)
    for seed in seeds(2):
        assert drop_at_once(machine, seed) == []
