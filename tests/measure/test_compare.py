# SPDX-License-Identifier: MIT
"""Comparisons: turns, pairs, what is repeated, what is inconclusive, and what is said of it."""

import json

import jsonschema
import pytest
from test_run import sample

from spfemu import results
from spfemu.errors import ExitCode, InconclusiveError, WorkerDiedError
from spfemu.measure import compare
from spfemu.measure.compare import Pair, finding, inconclusive, make_ratio, take_rounds
from spfemu.measure.run import Prepared


class Machine:
    """Takes the place of running: a rate per cell, and the order in which cells were asked for."""

    def __init__(self, *rates, stop_after=None, error=KeyboardInterrupt, waited=0.0, stopped=False):
        self.rates = rates
        self.asked = []
        self.stop_after = stop_after
        self.error = error
        self.waited = waited
        self.stopped = stopped

    def sample(self, prepared, _segments, _progress):
        if self.stop_after is not None and len(self.asked) == self.stop_after:
            raise self.error
        cell = prepared.seconds
        self.asked.append(cell)
        return sample(
            faults=self.rates[cell],
            seconds=1.0,
            waited_percent=self.waited,
            stopped=self.stopped,
        )


@pytest.fixture
def cells(quick):
    """Make as many cells as wanted; `seconds` holds their number."""

    def make(count):
        return [Prepared(quick("page_fault1"), None, None, i) for i in range(count)]

    return make


def test_cells_take_turns(cells, fake_prober):
    machine = Machine(100, 200)
    found = take_rounds(cells(2), [Pair(1, 0)], 3, fake_prober(30.0), sample=machine.sample)
    assert machine.asked == [0, 1, 1, 0, 0, 1]
    ratio = make_ratio(found, Pair(1, 0), 3)
    assert (ratio.median, ratio.low, ratio.high, ratio.inconclusive) == (2.0, 2.0, 2.0, None)
    assert (ratio.numerator.result, ratio.denominator.result) == (1, 0)


def test_samples_share_the_probe_between_them(cells, fake_prober):
    prober = fake_prober(30.0, 31.0, 32.0, 33.0)
    found = take_rounds(cells(2), [Pair(1, 0)], 1, prober, sample=Machine(1, 1).sample)
    lines = [[p.line_ns for p in column[0].probes] for column in found.taken]
    assert lines == [[30.0, 31.0], [31.0, 32.0]]


def test_round_in_which_the_machine_changed_is_repeated(cells, fake_prober):
    machine = Machine(100, 200)
    # the probe jumps within the second of four rounds
    prober = fake_prober(30.0, 30.0, 30.0, 90.0, 30.0)
    found = take_rounds(cells(2), [Pair(1, 0)], 4, prober, sample=machine.sample)
    assert len(machine.asked) == 2 * 5
    assert len(found.usable(Pair(1, 0))) == 4
    assert make_ratio(found, Pair(1, 0), 4).inconclusive is None
    assert sum(s.repeated for s in found.series(0).samples) == 1
    assert len(found.series(0).samples) == 4


def test_only_the_cells_that_lack_rounds_are_repeated(cells, fake_prober):
    machine = Machine(100, 200, 300)
    # round two, backwards: the probe is high before cell 1 only
    prober = fake_prober(30.0, 30.0, 30.0, 30.0, 90.0, 30.0)
    take_rounds(cells(3), [Pair(1, 0)], 2, prober, sample=machine.sample)
    assert machine.asked == [0, 1, 2, 2, 1, 0, 0, 1]


def test_machine_that_never_rests_is_inconclusive(cells, fake_prober):
    machine = Machine(100, 200)
    prober = fake_prober(*[30.0, 90.0] * 50)
    found = take_rounds(cells(2), [Pair(1, 0)], 4, prober, sample=machine.sample)
    assert len(machine.asked) == 2 * 6  # half as many rounds again, then it gives up
    ratio = make_ratio(found, Pair(1, 0), 4)
    assert ratio.inconclusive == (
        "only 0 of 6 rounds can be used: in 6 the probe moved by more than 1.5 times"
    )
    assert ratio.median == 2.0
    assert inconclusive([ratio])[0].startswith("spf with 1 worker to spf with 1 worker: ")
    assert found.series(0).samples  # doubtful figures are better than none


def test_factor_can_be_chosen(cells, fake_prober):
    machine = Machine(100, 200)
    prober = fake_prober(*[30.0, 90.0] * 50)
    found = take_rounds(cells(2), [Pair(1, 0)], 4, prober, factor=4.0, sample=machine.sample)
    assert len(machine.asked) == 8
    assert make_ratio(found, Pair(1, 0), 4).inconclusive is None


def test_starved_workers_are_not_compared(cells, fake_prober):
    machine = Machine(100, 200, waited=60.0)
    found = take_rounds(cells(2), [Pair(1, 0)], 2, fake_prober(30.0), sample=machine.sample)
    assert make_ratio(found, Pair(1, 0), 2).inconclusive == (
        "only 0 of 3 rounds can be used: in 3 a worker waited for its CPU for more than 25 % of "
        "the time"
    )


def test_samples_of_stopped_workers_are_not_compared(cells, fake_prober):
    machine = Machine(100, 200, stopped=True)
    found = take_rounds(cells(2), [Pair(1, 0)], 2, fake_prober(30.0), sample=machine.sample)
    assert make_ratio(found, Pair(1, 0), 2).inconclusive == (
        "only 0 of 3 rounds can be used: in 3 a signal stopped a worker"
    )


def test_single_cpu_has_no_line_and_is_compared(cells, fake_prober):
    found = take_rounds(
        cells(2), [Pair(1, 0)], 2, fake_prober(None), sample=Machine(100, 300).sample
    )
    assert make_ratio(found, Pair(1, 0), 2).median == 3.0
    assert "one CPU only" in compare._probe_warnings(found)[0]


def test_ctrl_c_keeps_finished_rounds(cells, fake_prober):
    machine = Machine(100, 200, stop_after=15)
    found = take_rounds(cells(2), [Pair(1, 0)], 9, fake_prober(30.0), sample=machine.sample)
    assert found.partial == results.Partial(status=ExitCode.INTERRUPTED, reason="interrupted")
    assert [len(column) for column in found.taken] == [7, 7]
    assert make_ratio(found, Pair(1, 0), 9).inconclusive is None
    assert found.series(0).partial


def test_death_of_a_worker_keeps_finished_rounds(cells, fake_prober):
    machine = Machine(100, 200, stop_after=15, error=WorkerDiedError("worker 0 died"))
    found = take_rounds(cells(2), [Pair(1, 0)], 9, fake_prober(30.0), sample=machine.sample)
    assert found.partial == results.Partial(status=ExitCode.WORKER_DIED, reason="worker 0 died")
    assert [len(column) for column in found.taken] == [7, 7]


def test_death_of_a_worker_in_the_first_round_is_raised(cells, fake_prober):
    machine = Machine(1, 1, stop_after=1, error=WorkerDiedError("worker 0 died"))
    with pytest.raises(WorkerDiedError):
        take_rounds(cells(2), [], 5, fake_prober(30.0), sample=machine.sample)


@pytest.mark.parametrize("with_host", [False, True])
def test_every_protocol_is_beside_the_first_and_the_other_pairs_are_kept(with_host):
    shown, others = compare._scale_pairs(10, 1, with_host=with_host)
    assert {frozenset((p.numerator, p.denominator)) for p in shown} == {
        frozenset((0, kind)) for kind in range(1, 10)
    }
    assert len(others) == 9 * 8 / 2
    # the host, which comes last, is always below
    assert all(
        (p.denominator == 9) is with_host
        for p in [*shown, *others]
        if 9 in (p.numerator, p.denominator)
    )
    scaling = compare._scale_pairs(10, 2, with_host=with_host)[0][:10]
    assert scaling == [Pair(2 * kind + 1, 2 * kind) for kind in range(10)]


def test_ctrl_c_with_too_few_rounds_is_inconclusive(cells, fake_prober):
    machine = Machine(100, 200, stop_after=3)
    found = take_rounds(cells(2), [Pair(1, 0)], 5, fake_prober(30.0), sample=machine.sample)
    assert make_ratio(found, Pair(1, 0), 5).inconclusive == "ended after 1 round"


def test_ctrl_c_before_the_first_round_is_raised(cells, fake_prober):
    with pytest.raises(KeyboardInterrupt):
        take_rounds(cells(2), [], 5, fake_prober(30.0), sample=Machine(1, 1, stop_after=1).sample)


def test_nothing_done_cannot_be_compared(cells, fake_prober):
    found = take_rounds(cells(2), [Pair(1, 0)], 2, fake_prober(30.0), sample=Machine(0, 5).sample)
    with pytest.raises(InconclusiveError, match="did no operation"):
        make_ratio(found, Pair(1, 0), 2)


def operand(protocol, workers):
    return results.Operand(
        result=0,
        workload="page_fault1",
        target="emulator" if protocol else "host",
        protocol=protocol,
        workers=workers,
    )


def a_ratio(numerator, denominator, low, median, high, reason=None):
    return results.Ratio(
        quantity="faults_per_second",
        numerator=operand(*numerator),
        denominator=operand(*denominator),
        median=median,
        low=low,
        high=high,
        samples=[median],
        inconclusive=reason,
    )


def test_inconclusive_ratios_are_named_by_reason():
    ratios = [
        a_ratio(("spf", 2), ("spf", 1), 1, 1, 1, "reason A"),
        a_ratio(("spf", 1), ("classic", 1), 1, 1, 1),
        a_ratio(("spf", 2), (None, 2), 1, 1, 1, "reason A"),
        a_ratio(("spf", 1), (None, 1), 1, 1, 1, "reason B"),
    ]
    both = "spf with 2 workers to spf with 1 worker, spf with 2 workers to the host with 2 workers"
    assert inconclusive(ratios) == [
        f"{both}: reason A",
        "spf with 1 worker to the host with 1 worker: reason B",
    ]


def test_finding_is_made_of_the_figures():
    ratios = [
        a_ratio(("classic", 2), ("classic", 1), 0.78, 0.8, 0.82),
        a_ratio(("spf", 2), ("spf", 1), 1.9, 1.93, 1.95),
        a_ratio((None, 2), (None, 1), 0.9, 1.0, 1.1),
        a_ratio(("spf", 1), ("classic", 1), 0.9, 0.95, 0.99),
        a_ratio(("spf", 2), ("classic", 2), 2.2, 2.3, 2.4),
        a_ratio(("spf", 2), (None, 2), 10.5, 11.0, 11.5),
    ]
    assert finding(ratios) == (
        "From 1 to 2 workers on this machine, faults scale 0.80x [0.78, 0.82] with classic, "
        "1.93x [1.90, 1.95] with spf, 1.00x [0.90, 1.10] (no difference shown) on the host; "
        "with 2 workers, spf does 2.30x [2.20, 2.40] the faults of classic."
    )


def test_finding_calls_inconclusive_what_is():
    reason = "the machine changed"
    ratios = [
        a_ratio(("spf", 1), ("classic", 1), 0.9, 1.2, 1.4, reason),
        a_ratio(("spf", 1), (None, 1), 5, 6, 7, reason),
    ]
    assert finding(ratios) == (
        "With 1 worker, spf does an inconclusive 1.20x [0.90, 1.40] the faults of classic."
    )


def test_finding_of_nothing():
    assert finding([]) == "Nothing was compared."


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (6, [1, 2, 4, 6]), (16, [1, 2, 4, 8, 16])],
)
def test_numbers_of_workers(monkeypatch, cores, expected):
    found = [compare.topology.Core(i, 0, i) for i in range(cores)]
    monkeypatch.setattr(compare.topology, "cores", lambda: found)
    assert compare.default_workers() == expected


def test_scale_end_to_end(quick):
    plan = quick("page_fault1", size=1 << 18, repeats=2)
    messages = []
    report = compare.scale(
        plan,
        ["scale"],
        workers=[1, 2],
        factor=100.0,
        progress=lambda message, _fraction: messages.append(message),
    )
    assert [(r.target, r.protocol, r.workers) for r in report.results] == [
        ("emulator", "classic", 1),
        ("emulator", "classic", 2),
        ("emulator", "spf", 1),
        ("emulator", "spf", 2),
        ("host", None, 1),
        ("host", None, 2),
    ]
    assert len(report.ratios) == 3 + 2 * 3
    for ratio in report.ratios:
        for side in (ratio.numerator, ratio.denominator):
            point = report.results[side.result]
            assert (point.target, point.protocol, point.workers) == (
                side.target,
                side.protocol,
                side.workers,
            )
    assert all(r.violations == [] for r in report.results)
    assert report.finding.startswith("From 1 to 2 workers on this machine, faults scale ")
    assert "compiling page_fault1 for classic" in messages
    jsonschema.validate(json.loads(results.encode(report)), results.schema())


def test_spf_that_never_speculates_is_said_to(quick):
    plan = quick("page_fault1", size=1 << 18, repeats=1, mode="processes")
    report = compare.scale(plan, ["scale"], workers=[1], with_host=False, factor=100.0)
    assert report.results[1].events["SPF_ATTEMPT"] == 0
    assert any(w.startswith("spf with 1 worker did not speculate") for w in report.warnings)


def test_overhead_is_the_difference_to_the_host(quick, monkeypatch):
    rates = {"host": [1e6, 1e6, 1e6], "emulator": [4e6, 5e6, 4e6]}

    class Fake:
        def __init__(self, plan):
            self.plan = plan

        def faults_per_second(self):
            return rates[self.plan.target]

    monkeypatch.setattr(compare, "run_series", lambda plan, _progress: Fake(plan))
    assert compare.calibrate_overhead(quick("page_fault1")) == pytest.approx(750)
    rates["host"] = [8e6]
    assert compare.calibrate_overhead(quick("page_fault1")) == 0
    rates["host"] = [0.0]
    with pytest.raises(InconclusiveError, match="takes no faults"):
        compare.calibrate_overhead(quick("page_fault1"))
