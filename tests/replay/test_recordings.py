# SPDX-License-Identifier: MIT
"""Recordings of real programs, replayed: their final maps are the recorded ones.

tests/trace/data holds what `spfemu record` wrote of gcc -c, python3 importing NumPy, a program
whose four threads allocate, git status, sort, tar with gzip, and xz with two threads, on Linux
6.18.  Numbers of inodes and devices were replaced.
"""

from pathlib import Path

import pytest

from spfemu.replay.run import replay

DATA = Path(__file__).resolve().parents[1] / "trace" / "data"
PROGRAMS = {
    # processes, threads, final maps
    "gcc": (3, 3, 3),
    "git": (1, 1, 1),
    "python": (1, 2, 1),
    "sort": (1, 1, 1),
    "tar": (3, 3, 3),
    "threads": (1, 5, 1),
    "xz": (1, 3, 1),
}


def replayed(name, protocol="spf", touch="once", workers=None):
    return replay(
        str(DATA / f"{name}.trace"),
        protocol,
        touch=touch,
        workers=workers,
        initial=(),
        overrides=(),
        progress=lambda *_: None,
    )


def check(outcome, name):
    processes, threads, maps = PROGRAMS[name]
    assert outcome.problems == []
    assert outcome.violations == []
    assert outcome.differences == []
    assert (outcome.processes, outcome.threads) == (processes, threads)
    assert len(outcome.compared) == maps
    assert [f.difference.lines() for f in outcome.disagreeing] == []


def test_every_recording_is_known():
    assert {path.stem for path in DATA.glob("*.trace")} == set(PROGRAMS)


@pytest.mark.parametrize("touch", ["none", "once", "all"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_final_maps_are_the_recorded_ones(name, touch):
    outcome = replayed(name, touch=touch)

    check(outcome, name)
    assert outcome.calls["mmap"] > 20
    assert outcome.touch_failed == 0
    assert outcome.events["PGFAULT"] >= (outcome.calls["mmap"] if touch != "none" else 0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_kernel_chooses_the_same_places(name):
    outcome = replayed(name, touch="none")

    assert outcome.chosen > 10
    # overlapping calls of threads; files of a file system that aligns them to huge pages
    assert outcome.moved <= {"threads": 13, "python": 4, "gcc": 1}.get(name, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_threads_share_emulated_cpus(workers):
    check(replayed("threads", workers=workers), "threads")
    check(replayed("tar", workers=workers), "tar")


@pytest.mark.parametrize("protocol", ["classic", "vma-lock"])
def test_protocols_differ_in_how_faults_are_handled_only(protocol):
    spf, other = replayed("threads"), replayed("threads", protocol)

    check(other, "threads")
    assert other.calls == spf.calls
    assert [f.mappings for f in other.finals] == [f.mappings for f in spf.finals]
    assert other.events["PGFAULT"] >= other.calls["mmap"]
    assert (other.speculation is None) == (protocol == "classic")
