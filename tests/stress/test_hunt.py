# SPDX-License-Identifier: MIT
"""The hunt: clean on every protocol that claims to be safe, and it catches what is planted."""

import dataclasses
import json
import os
import signal
from collections import Counter

import pytest
from click.testing import CliRunner

from spfemu.cli.app import cli
from spfemu.errors import UsageError, WorkerKilledError
from spfemu.measure.workers import Workers
from spfemu.stress import hunt as hunts
from spfemu.stress import report
from spfemu.stress.hunt import HuntPlan, hunt
from spfemu.stress.promises import Promise

HUNTED = ("spf", "vma-refcount")
"""A few seconds of what .ci/run does for a minute in every protocol."""
KERNEL = "from spfemu.kernel import kernel, slowpath\nfrom spfemu.primitives import *\n"


@pytest.fixture
def override(tmp_path):
    """Return a function that writes an override file."""

    def write(text, name="mutant.py"):
        path = tmp_path / name
        path.write_text(KERNEL + text)
        return str(path)

    return write


@pytest.mark.parametrize("protocol", HUNTED)
def test_nothing_is_found_in_what_is_sound(protocol):
    result = hunt(HuntPlan(protocol, seconds=2.0, hang_seconds=60.0))

    assert result.violation is None, (hex(result.seed), str(result.violation))
    assert result.operations > 0
    assert result.rounds > 0


UNLOCKED = """
from spfemu.layout import VMA
from spfemu.mm.bug import Bug

@kernel
def mmap_seq_write_leave(mm: int) -> None:
    return
"""


def test_a_count_that_stays_odd_is_found_by_the_oracle_of_the_sequence(override):
    result = hunt(HuntPlan("spf", seconds=60.0, overrides=(override(UNLOCKED),)))

    assert result.violation is not None
    assert result.violation.promise is Promise.SEQUENCE
    assert "mmap" in result.violation.history


NO_DROP = """
from spfemu.layout import CPU

@kernel
def flush_tlb_others(cpu: int, mm: int) -> None:
    return
"""


def test_a_missing_flush_is_found(override):
    result = hunt(HuntPlan("classic", seconds=120.0, overrides=(override(NO_DROP),)))

    assert result.violation is not None
    assert result.violation.promise in (Promise.DATA, Promise.OUTCOME, Promise.USE_AFTER_FREE)


def test_a_report_repeats_the_round_and_loads_no_override_by_itself(override, tmp_path):
    path = override(UNLOCKED)
    found = tmp_path / "report.json"
    arguments = ["stress", "--seconds", "60", "--report", str(found), "-q"]
    first = CliRunner().invoke(cli, [*arguments, "--override", path])
    assert first.exit_code == 1, first.output
    again = ["stress", "--replay", str(found), "--report", str(found), "--seconds", "60", "-q"]

    refused = CliRunner().invoke(cli, again)
    repeated = CliRunner().invoke(cli, [*again, "--override", path])

    assert refused.exit_code == 2
    assert "was made with other overrides" in refused.output
    assert repeated.exit_code == 1
    assert "SEQUENCE" in repeated.output
    plan = report.read(str(found), (path,), 1.0)
    assert plan.seed == json.loads(found.read_text())["violation"]["round_seed"]


def test_what_is_no_report_is_refused(tmp_path):
    path = tmp_path / "x.json"
    for text in (b"", b"{", b'{"schema": 1}', b"\xff\xfe"):
        path.write_bytes(text)
        with pytest.raises(UsageError, match="is no report of spfemu stress"):
            report.read(str(path), (), 1.0)


def test_a_hunt_without_torn_copies_is_too_weak():
    result = hunts.HuntResult("spf", 1, operations=10, copies=5)

    assert "no copy of 5 was torn" in result.too_weak
    assert dataclasses.replace(result, torn=1).too_weak is None


def test_bare_is_refused():
    with pytest.raises(UsageError, match="keeps no promise"):
        HuntPlan("bare")


def test_a_worker_that_somebody_kills_has_broken_no_promise(monkeypatch):
    def kill_one(workers, _seconds):
        os.kill(workers.threads[0][0], signal.SIGKILL)
        watch(workers, 60)

    watch = Workers.watch
    monkeypatch.setattr(Workers, "watch", kill_one)
    with pytest.raises(WorkerKilledError, match=r"worker 0 \(pid \d+\) was killed by SIGKILL"):
        hunt(HuntPlan("classic", seconds=60.0, hang_seconds=60.0))


def test_races_are_told_by_kind():
    events = Counter(SPF_ABORT_ODD=3, SPF_ABORT_PTE_MAP_LOCK_SEQ2=5, SPF_ABORT_ANON_VMA=7)
    result = hunts.HuntResult("spf", 1, events=events)

    assert result.races() == {"ODD": 3, "SEQ2": 5}
