# SPDX-License-Identifier: MIT
"""Mappings of files: what mmap allows, what is one VMA, who refers to a file and how long."""

from collections.abc import Iterator

import pytest
from file_machine import PRIVATE, READ, RW, SHARED, SHARED_ANON, WRITE, FileMachine, page

from spfemu.layout import PAGE_SIZE
from spfemu.mm.flags import Errno, FileOps, Fmode, Map, Mremap, Prot, Pte, Vm

LENGTH = 8 * PAGE_SIZE
VALIDATE = int(Map.SHARED_VALIDATE | Map.FIXED)
MAYMOVE = int(Mremap.MAYMOVE)


@pytest.fixture(
    params=[("native", "classic"), ("native", "spf"), ("plain", "classic")], ids=" ".join
)
def machine(request: pytest.FixtureRequest) -> Iterator[FileMachine]:
    """A machine whose segment is checked when the test has ended."""
    made = FileMachine(*request.param)
    yield made
    found = made.violations()
    made.close()
    assert found == []


def free_files(machine: FileMachine) -> tuple[int, int]:
    """How many open files and files there are."""
    segment = machine.segment
    return int((segment.files["f_count"] != 0).sum()), int((segment.mappings["i_count"] != 0).sum())


def references(machine: FileMachine, file: int) -> int:
    """How many refer to an open file, once those that wait for a grace period have let go."""
    machine.on(0, "rcu_barrier")
    return int(machine.file(file)["f_count"])


@pytest.mark.parametrize("kind", ["file", "shmem"])
def test_shared_and_private_mappings_have_their_flags(machine, kind):
    file = machine.create(kind=kind)
    machine.map(file, 0, 2, flags=SHARED)
    machine.map(file, 4, 2, flags=PRIVATE, at=4)
    shared, private = machine.vmas()
    both = int(Vm.READ | Vm.WRITE | Vm.MAYREAD | Vm.MAYWRITE | Vm.MAYEXEC)
    assert shared["vm_flags"] == both | Vm.SHARED | Vm.MAYSHARE
    assert private["vm_flags"] == both | Vm.ACCOUNT
    assert shared["vm_file"] == private["vm_file"] == file
    assert (shared["vm_pgoff"], private["vm_pgoff"]) == (0, 4)
    assert shared["vm_ops"] == private["vm_ops"] != 0
    assert not private["vm_page_prot"] & Pte.RW
    # a write to a shared file has to be noticed, one to shared memory has not
    assert bool(shared["vm_page_prot"] & Pte.RW) == (kind == "shmem")


def test_shared_anonymous_memory_has_a_file_of_its_own(machine):
    for at in (0, 8):
        address = page(at)
        assert machine.on(0, "sys_mmap", address, LENGTH, RW, SHARED_ANON) == address
    first, second = machine.vmas()
    assert first["vm_file"] != second["vm_file"]
    assert first["vm_ops"] == second["vm_ops"] == FileOps.SHMEM
    assert first["vm_pgoff"] == second["vm_pgoff"] == 0
    assert machine.mapping(int(first["vm_file"]))["i_size"] == LENGTH
    assert free_files(machine) == (2, 2)
    machine.unmap(0, 16)
    machine.violations()
    assert free_files(machine) == (0, 0)


def test_out_of_files_is_out_of_memory(machine):
    count = machine.segment.geometry.nr_files
    for at in range(count):
        machine.on(0, "sys_mmap", page(at), PAGE_SIZE, RW, SHARED_ANON)
    assert machine.on(0, "sys_mmap", page(count), PAGE_SIZE, RW, SHARED_ANON) == -Errno.ENOMEM
    assert machine.on(0, "sys_create", 0, int(FileOps.GENERIC)) == -Errno.ENFILE
    assert len(machine.vmas()) == count


# Errors.

READ_ONLY, WRITE_ONLY, BOTH = (int(m) for m in (Fmode.READ, Fmode.WRITE, Fmode.READ | Fmode.WRITE))
ERRORS = {
    "writable and shared, opened for reading": (READ_ONLY, RW, SHARED, 0, -Errno.EACCES),
    "the same with MAP_SHARED_VALIDATE": (READ_ONLY, RW, VALIDATE, 0, -Errno.EACCES),
    "writable and private, opened for reading": (READ_ONLY, RW, PRIVATE, 0, page(0)),
    "readable and shared, opened for reading": (READ_ONLY, READ, SHARED, 0, page(0)),
    "private, not opened for reading": (WRITE_ONLY, READ, PRIVATE, 0, -Errno.EACCES),
    "shared, not opened for reading": (WRITE_ONLY, WRITE, SHARED, 0, -Errno.EACCES),
    "offset within a page": (BOTH, RW, SHARED, 100, -Errno.EINVAL),
    "offset of 2**63 or more": (BOTH, RW, SHARED, -PAGE_SIZE, -Errno.EOVERFLOW),
    "end beyond 2**63": (BOTH, RW, SHARED, (1 << 63) - LENGTH, -Errno.EOVERFLOW),
    "neither shared nor private": (BOTH, RW, int(Map.FIXED), 0, -Errno.EINVAL),
    "a stack": (BOTH, RW, PRIVATE | Map.GROWSDOWN, 0, -Errno.EINVAL),
    "unknown flag, validated": (BOTH, RW, VALIDATE | 0x80000, 0, -Errno.EOPNOTSUPP),
    "unknown flag, not validated": (BOTH, RW, SHARED | 0x80000, 0, page(0)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_mmap_of_a_file_checks_its_arguments(machine, case):
    mode, prot, flags, offset, expected = ERRORS[case]
    created = machine.create()
    file = machine.on(0, "sys_open", created, mode)
    call = (page(0), LENGTH, prot, int(flags), file, offset)
    assert machine.on(0, "sys_mmap_file", *call) == expected
    assert len(machine.vmas()) == (expected > 0)


def test_mmap_wants_a_file_that_can_be_mapped(machine):
    pipe = machine.on(0, "sys_create", 0, int(FileOps.NO_MMAP))
    call = (page(0), LENGTH, RW, SHARED)
    assert machine.on(0, "sys_mmap_file", *call, pipe, 0) == -Errno.ENODEV
    assert machine.on(0, "sys_mmap_file", *call, 0, 0) == -Errno.EBADF
    anonymous = int(SHARED_ANON)
    assert machine.on(0, "sys_mmap_file", *call[:3], anonymous, pipe, PAGE_SIZE) == page(0)
    assert machine.vmas()[0]["vm_file"] not in (0, pipe)


@pytest.mark.parametrize(
    "flags", [Map.SHARED_VALIDATE, 0, Map.SHARED | Map.GROWSDOWN], ids=["validate", "none", "stack"]
)
def test_anonymous_memory_is_shared_or_private(machine, flags):
    flags = int(flags | Map.ANONYMOUS)
    assert machine.on(0, "sys_mmap", 0, LENGTH, RW, flags) == -Errno.EINVAL


def test_a_file_opened_for_reading_cannot_become_writable(machine):
    created = machine.create()
    file = machine.on(0, "sys_open", created, READ_ONLY)
    machine.map(file, prot=READ, flags=SHARED)
    assert machine.on(0, "sys_mprotect", page(0), LENGTH, RW) == -Errno.EACCES
    machine.map(file, prot=READ, flags=PRIVATE)
    assert machine.on(0, "sys_mprotect", page(0), LENGTH, RW) == 0


def test_mprotect_of_shared_memory_gives_the_right_to_write_at_once(machine):
    file = machine.create(kind="shmem")
    machine.map(file, prot=READ, flags=SHARED)
    assert not machine.vmas()[0]["vm_page_prot"] & Pte.RW
    assert machine.on(0, "sys_mprotect", page(0), LENGTH, RW) == 0
    assert machine.vmas()[0]["vm_page_prot"] & Pte.RW
    assert not machine.vmas()[0]["vm_flags"] & Vm.ACCOUNT


# What is one VMA.


def test_neighbours_in_file_and_memory_are_one(machine):
    file = machine.create()
    machine.map(file, 0, 2, at=0)
    machine.map(file, 4, 2, at=4)
    machine.map(file, 2, 2, at=2)
    assert machine.ranges() == [(0, 6, 0)]
    assert references(machine, file) == 2


@pytest.mark.parametrize("case", ["offset", "file", "opened twice", "private", "rights"])
def test_what_differs_is_not_merged(machine, case):
    file = machine.create()
    other = {
        "file": machine.create,
        "opened twice": lambda: machine.on(0, "sys_open", file, BOTH),
    }.get(case, lambda: file)()
    machine.map(file, 0, 2, at=0)
    machine.map(
        other,
        3 if case == "offset" else 2,
        2,
        at=2,
        flags=PRIVATE if case == "private" else SHARED,
        prot=READ if case == "rights" else RW,
    )
    assert [r[:2] for r in machine.ranges()] == [(0, 2), (2, 4)]


def test_a_hole_splits_and_keeps_offsets(machine):
    file = machine.create()
    machine.map(file, 1, 6)
    machine.unmap(2, 2)
    assert machine.ranges() == [(0, 2, 1), (4, 6, 5)]
    assert references(machine, file) == 3
    machine.map(file, 3, 2, at=2)
    assert machine.ranges() == [(0, 6, 1)]
    assert machine.on(0, "sys_mprotect", page(1), 2 * PAGE_SIZE, READ) == 0
    assert machine.ranges() == [(0, 1, 1), (1, 3, 2), (3, 6, 4)]
    assert machine.on(0, "sys_mprotect", page(0), 6 * PAGE_SIZE, Prot.NONE) == 0
    assert machine.ranges() == [(0, 6, 1)]


def test_mremap_takes_file_and_offset_along(machine):
    file = machine.create()
    machine.map(file, 1, 2)
    fixed = int(Mremap.MAYMOVE | Mremap.FIXED)
    moved = machine.on(0, "sys_mremap", page(0), 2 * PAGE_SIZE, 4 * PAGE_SIZE, fixed, page(20))
    assert moved == page(20)
    assert machine.ranges() == [(20, 24, 1)]
    # of a shared mapping, length 0 makes a second one of the same pages
    again = machine.on(0, "sys_mremap", page(21), 0, 2 * PAGE_SIZE, fixed, page(0))
    assert again == page(0)
    assert machine.ranges() == [(0, 2, 2), (20, 24, 1)]


# References.


def test_a_mapping_keeps_the_file(machine):
    file = machine.create()
    machine.map(file)
    assert machine.on(0, "sys_close", file) == 0
    assert free_files(machine) == (1, 1)
    machine.unmap()
    machine.violations()
    assert free_files(machine) == (0, 0)


def test_after_munmap_the_file_is_kept_for_a_grace_period(machine):
    """A speculative fault may still be using it; seen from outside, the file stays busy (M05)."""
    file = machine.create()
    machine.map(file)
    machine.on(0, "sys_close", file)
    machine.unmap()
    assert free_files(machine) == (1, 1)
    machine.on(0, "rcu_barrier")
    assert free_files(machine) == (0, 0)


def test_a_single_thread_frees_the_file_at_once(machine):
    machine.mm["mm_users"] = 1
    file = machine.create()
    machine.map(file)
    machine.on(0, "sys_close", file)
    machine.unmap()
    assert free_files(machine) == (0, 0)


def test_a_file_is_there_while_it_is_open_anywhere(machine):
    file = machine.create()
    other = machine.on(0, "sys_open", file, BOTH)
    machine.on(0, "sys_close", file)
    assert free_files(machine) == (1, 1)
    machine.on(0, "sys_close", other)
    assert free_files(machine) == (0, 0)


def test_a_child_maps_the_same_file(machine):
    file = machine.create()
    machine.map(file, 0, 4)
    machine.map(file, 4, 2, flags=PRIVATE, at=10)
    child = machine.fork()
    assert machine.ranges(1) == machine.ranges(0)
    assert references(machine, file) == 5
    machine.on(0, "mmput", child)
    assert references(machine, file) == 3


def test_a_child_stands_behind_its_parent_in_the_list_of_mappings(machine):
    file = machine.create()
    machine.map(file, 0, 2)
    machine.map(file, 4, 2, at=10)
    child = machine.fork()
    order, address = [], int(machine.mapping(file)["i_mmap"])
    vmas = machine.segment.vmas
    while address:
        vma = vmas[(address - machine.segment.address["vmas"]) // vmas.dtype.itemsize]
        order.append((int(vma["vm_start"]), int(vma["vm_mm"]) == child))
        address = int(vma["shared_next"])
    for start in (page(0), page(10)):
        assert order.index((start, True)) == order.index((start, False)) + 1
    machine.on(0, "mmput", child)
