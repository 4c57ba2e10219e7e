# SPDX-License-Identifier: MIT
"""The record of the environment copes with everything that is missing."""

import subprocess

import pytest

from spfemu.measure import environment


def save(root, **files):
    """Save files below `root`; double underscores stand for slashes."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_nothing_is_there(tmp_path):
    found = environment.record(tmp_path)
    absent = (
        found.cpu_model,
        found.cpu_quota,
        found.smt,
        found.governor,
        found.turbo,
        found.isolated_cpus,
        found.numa_nodes,
        found.clocksource,
        found.virtualisation,
        found.transparent_hugepages,
    )
    assert absent == (None,) * len(absent)
    assert found.cores == len(found.cpus) > 0
    assert found.llvm
    assert found.cycles_per_second > 0


def test_this_machine():
    found = environment.record()
    assert found.kernel.startswith("Linux ")
    assert found.memory_available_bytes <= found.memory_bytes


def test_cpu_model_of_x86_and_arm(tmp_path):
    save(tmp_path, proc__cpuinfo="processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert environment.cpu_model(tmp_path) == "Some CPU @ 2 GHz"
    save(tmp_path, proc__cpuinfo="processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n")
    assert environment.cpu_model(tmp_path) == "implementer 0x41 part 0xd40"


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        *(("150000 100000", 1.5), ("max 100000", None), ("?", None), ("1 0", None)),
        *(("9" * 400 + " 1", None), ("9" * 5000 + " 1", None)),
    ],
)
def test_cpu_quota(tmp_path, text, quota):
    save(tmp_path, **{"sys__fs__cgroup__cpu.max": text})
    assert environment.cpu_quota(tmp_path) == quota


def test_turbo_of_both_drivers(tmp_path):
    assert environment.turbo(tmp_path) is None
    save(tmp_path, cpufreq__boost="1\n")
    assert environment.turbo(tmp_path) is True
    save(tmp_path, intel_pstate__no_turbo="1\n")
    assert environment.turbo(tmp_path) is False


def test_hypervisor_flag(tmp_path):
    save(tmp_path, proc__cpuinfo="flags\t\t: fpu hypervisor lm\n")
    assert environment.virtualisation(tmp_path) == "hypervisor"
    save(tmp_path, sys__class__dmi__id__sys_vendor="QEMU\n")
    assert environment.virtualisation(tmp_path) == "QEMU"


def test_transparent_hugepages(tmp_path):
    save(tmp_path, sys__kernel__mm__transparent_hugepage__enabled="always [madvise] never\n")
    assert environment.transparent_hugepages(tmp_path) == "madvise"


def test_revision_of_a_checkout(tmp_path):
    assert environment.revision(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    clean = environment.revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert environment.revision(tmp_path) == f"{clean}-dirty"
