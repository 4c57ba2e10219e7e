# SPDX-License-Identifier: MIT
"""The doctor: what is a disturbance on machines of all kinds."""

import json
import os

import pytest
from msgspec.structs import replace

from spfemu.cli import machine
from spfemu.errors import ExitCode

QUIET = machine.Setting(
    missing_counters={},
    compiler="/usr/bin/cc",
    can_pin=True,
    cache_directory="/cache",
    cache_objects=3,
    cache_bytes=1 << 20,
    cache_writable=True,
)


@pytest.fixture
def quiet_machine(scale_report):
    return replace(
        scale_report.environment,
        governor="performance",
        turbo=False,
        numa_nodes=1,
        clocksource="tsc",
        perf_counters=["cycles"],
    )


def finding(found, name):
    (chosen,) = [f for f in found if f.name == name]
    return chosen


def test_a_quiet_machine_has_nothing_to_advise(quiet_machine):
    found = machine.examine(quiet_machine, QUIET)
    assert {f.level for f in found} == {"ok"}
    assert all(f.action is None for f in found)


@pytest.mark.parametrize(
    ("changed", "name", "level", "action"),
    [
        ({"cores": 1}, "cores", "warning", "taskset"),
        ({"cpu_quota": 1.5}, "CPU quota", "warning", "at most 1 workers"),
        ({"smt": True}, "SMT", "advice", "smt/control"),
        ({"governor": "powersave"}, "frequency governor", "advice", "cpupower"),
        ({"turbo": True}, "turbo", "advice", "no_turbo"),
        ({"load_1min": 1.0}, "load", "warning", "stop them"),
        ({"numa_nodes": 2}, "NUMA nodes", "advice", "numactl"),
        ({"clocksource": "hpet"}, "clock source", "warning", "latencies"),
        ({"virtualisation": "KVM"}, "virtualisation", "advice", "intervals"),
        ({"memory_available_bytes": 1 << 29}, "memory", "warning", "--size"),
    ],
)
def test_each_disturbance_is_named_with_what_to_do(quiet_machine, changed, name, level, action):
    found = finding(machine.examine(replace(quiet_machine, **changed), QUIET), name)
    assert found.level == level
    assert action in found.action


@pytest.mark.parametrize(
    ("changed", "name", "level", "action"),
    [
        ({"can_pin": False}, "pinning", "warning", "sched_setaffinity"),
        ({"missing_counters": {"cycles": "no such"}}, "hardware counters", "advice", "no such"),
        ({"compiler": None}, "C compiler", "advice", "apt install gcc"),
        ({"cache_writable": False}, "cache of compiled code", "advice", "SPFEMU_CACHE_DIR"),
    ],
)
def test_each_missing_tool_is_named(quiet_machine, changed, name, level, action):
    found = finding(machine.examine(quiet_machine, replace(QUIET, **changed)), name)
    assert found.level == level
    assert action in found.action


def test_what_a_machine_does_not_tell_is_not_known(quiet_machine):
    silent = replace(
        quiet_machine, cpu_model=None, smt=None, governor=None, turbo=None, numa_nodes=None,
        clocksource=None, transparent_hugepages=None,
    )  # fmt: skip
    found = machine.examine(silent, QUIET)
    assert {f.level for f in found} == {"ok"}
    for name in ("SMT", "frequency governor", "turbo", "clock source"):
        assert finding(found, name).state == "not known"


def test_the_cache_is_looked_at_and_left_alone(tmp_path, monkeypatch):
    directory = tmp_path / "none" / "yet"
    monkeypatch.setenv("SPFEMU_CACHE_DIR", str(directory))
    setting = machine.look_around()
    assert (setting.cache_objects, setting.cache_bytes, setting.cache_writable) == (0, 0, True)
    assert list(tmp_path.iterdir()) == []

    directory.mkdir(parents=True)
    (directory / "a.o").write_bytes(b"x" * 10)
    setting = machine.look_around()
    assert (setting.cache_objects, setting.cache_bytes) == (1, 10)


def test_the_affinity_is_as_before():
    before = os.sched_getaffinity(0)
    assert machine.look_around().can_pin
    assert os.sched_getaffinity(0) == before


def test_doctor_prints_state_advice_and_warnings(spfemu, monkeypatch, quiet_machine):
    from spfemu.measure import environment

    monkeypatch.setattr(machine, "look_around", lambda: QUIET)
    monkeypatch.setattr(environment, "record", lambda: quiet_machine)
    answer = spfemu("doctor")
    assert answer.exit_code == ExitCode.OK
    assert answer.stdout.endswith("Nothing that would disturb a measurement was seen.\n")

    noisy = replace(quiet_machine, smt=True, load_1min=2.0)
    monkeypatch.setattr(environment, "record", lambda: noisy)
    sections = spfemu("doctor").stdout.split("\n\n")
    assert sections[1].startswith("Advice\n  SMT: ")
    assert sections[2].startswith("Warnings\n  load: ")


def test_doctor_of_this_machine_as_json(spfemu):
    document = json.loads(spfemu("doctor", "--json").stdout)
    assert list(document) == ["schema", "environment", "findings"]
    assert document["schema"] == "spfemu-doctor-1"
    names = {entry["name"] for entry in document["findings"]}
    assert names >= {"cores", "SMT", "load", "memory", "hardware counters", "C compiler"}
