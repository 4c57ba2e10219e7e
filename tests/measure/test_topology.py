# SPDX-License-Identifier: MIT
"""Reading the machine's CPUs from saved trees."""

import os

from spfemu.measure.topology import Core, cores, smt_active, worker_order


def tree(root, *rows):
    """Save a tree: (cpu, package, core) each."""
    for cpu, package, core in rows:
        directory = root / f"cpu{cpu}" / "topology"
        directory.mkdir(parents=True)
        (directory / "physical_package_id").write_text(f"{package}\n")
        (directory / "core_id").write_text(f"{core}\n")


def test_siblings_come_last(tmp_path):
    tree(tmp_path, (0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1))
    found = cores(tmp_path, {0, 1, 2, 3})
    assert smt_active(found)
    assert worker_order(found) == [0, 2, 1, 3]


def test_packages_are_filled_one_after_another(tmp_path):
    tree(tmp_path, (0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1))
    found = cores(tmp_path, {0, 1, 2, 3})
    assert not smt_active(found)
    assert worker_order(found) == [0, 2, 1, 3]


def test_cpus_that_may_not_be_used_are_left_out(tmp_path):
    tree(tmp_path, (0, 0, 0), (1, 0, 1), (2, 0, 2))
    assert worker_order(cores(tmp_path, {2, 1})) == [1, 2]


def test_missing_files_make_every_cpu_a_core(tmp_path):
    assert cores(tmp_path, {3, 5}) == [Core(3, 0, 3), Core(5, 0, 5)]


def test_this_machine_has_cpus():
    assert set(worker_order(cores())) == os.sched_getaffinity(0)
