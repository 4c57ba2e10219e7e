# SPDX-License-Identifier: MIT
"""What oracles cost: what is compared, and what is said of it."""

import numpy as np
import pytest
from click.testing import CliRunner

from spfemu.errors import ExitCode
from spfemu.measure import build
from spfemu.measure.compare import Rounds
from spfemu.measure.probe import Probe
from spfemu.measure.run import Histogram, Sample
from spfemu.results import Partial
from spfemu.stress import cost
from spfemu.stress.hunt import HuntPlan

STEADY, MOVED = Probe(50.0, 3.0), Probe(150.0, 3.0)
EMPTY = Histogram(np.zeros(1, np.int64), 0)


def sample(operations, probe=STEADY, violations=()):
    """Return a sample of two seconds; a third of the operations are the writers'."""
    return Sample(
        seconds=2.0, faults=0, operations=2 * operations // 3, writer_operations=operations // 3,
        events={}, fault_latency=EMPTY, writer_latency=EMPTY, hardware=None, idle_percent=None,
        waited_percent=None, violations=list(violations), probes=(STEADY, probe),
    )  # fmt: skip


class Cell:
    """Stands for something prepared: nobody has a CPU to himself."""

    class plan:  # noqa: N801
        nr_tasks = 2

        @staticmethod
        def placement():
            return [0, 0]


def rounds(probe=STEADY, **last):
    found = Rounds([Cell, Cell, Cell])
    for scale in (1, 2, 3):
        for column, operations in zip(found.taken, (6000, 3000, 1500), strict=True):
            column.append(sample(scale * operations, probe))
    found.taken[2][2] = sample(3 * 1500, probe, **last)
    return found


def test_ratios_are_made_round_by_round_of_what_all_cpus_did():
    plain, oracles, delays, *ratios = cost.table(rounds())
    assert plain.split(maxsplit=1) == ["plain", "6,000 operations/s [3,000, 9,000]"]
    assert "3,000 operations/s [1,500, 4,500]" in oracles
    assert "1,500 operations/s [750, 2,250]" in delays
    assert [line.split("  ")[1] for line in ratios] == [
        "oracles / plain", "oracles and delays / plain", "oracles and delays / oracles",
    ]  # fmt: skip
    assert [line.split("  ")[-1].strip() for line in ratios] == [
        "0.500x [0.500, 0.500]", "0.250x [0.250, 0.250]", "0.500x [0.500, 0.500]",
    ]  # fmt: skip


def test_a_machine_that_changed_makes_a_ratio_doubtful():
    for line in cost.table(rounds(MOVED))[3:]:
        assert "inconclusive: only 0 of 3 rounds can be used: in 3 the probe moved" in line


def test_without_oracles_it_is_the_same_mix_and_only_yields(monkeypatch):
    monkeypatch.setattr(build, "make_engine", lambda _name, _program: None)
    plan = HuntPlan("spf").plan(1)
    program = cost._plain(plan).program
    oracles = {f.file for f in program.functions.values() if "/oracles/" in f.file}
    assert [file.rpartition("/")[2] for file in oracles] == ["yielding.py"]
    assert {"wild_call", "owned_call"} <= {f.tree.name for f in program.functions.values()}


@pytest.mark.parametrize(
    ("found", "partial", "status", "last"),
    [
        (rounds(), None, ExitCode.OK, "oracles / plain"),
        (rounds(violations=["It is lost"]), None, ExitCode.VIOLATION, "violation: It is lost"),
        (
            *(rounds(), Partial(status=ExitCode.WORKER_DIED, reason="worker 0 died")),
            *(ExitCode.WORKER_DIED, "partial: worker 0 died"),
        ),
    ],
)
def test_it_ends_as_commands_do(monkeypatch, found, partial, status, last):
    found.partial = partial
    monkeypatch.setattr(cost, "measure", lambda _plan, _rounds, _show: found)
    answer = CliRunner().invoke(cost.main, ["--protocols", "spf"])
    assert answer.exit_code == status
    assert answer.output.startswith("spf, 2 workers, 2 writers:\n")
    assert last in answer.output


def test_a_protocol_that_is_not_known_is_refused():
    answer = CliRunner().invoke(cost.main, ["--protocols", "spff"])
    assert answer.exit_code == ExitCode.USAGE
    assert answer.output.startswith("stress-cost: no protocol 'spff'; did you mean 'spf'?")
