# SPDX-License-Identifier: MIT
"""The weak memory shows what a litmus test allows and nothing that it forbids, in all orders."""

import litmus
import pytest

from spfemu.engines.points import ScriptError
from spfemu.engines.script import Memory, Script, after
from spfemu.engines.source import functions_of, link
from spfemu.engines.stepped import StepEngine

WEAK, TSO = Memory.WEAK, Memory.TSO


@pytest.fixture(scope="module")
def engine(own_cache):
    return StepEngine(link([functions_of(litmus)], {}))


@pytest.fixture
def run(engine, segment):
    """Return a function that finds all outcomes of calls on two words, x and y."""

    def all_outcomes(*calls, memory=WEAK, words=()):
        x, y = segment.scratch(0), segment.scratch(8)
        named = {"x": x, "y": y, "mine": segment.scratch(16)}
        resolved = [(name, *(named[w] for w in words)) for name, *words in calls]
        return litmus.outcomes(engine, segment, memory, resolved, [named[w] for w in words])

    return all_outcomes


WRITERS = {"write_two": False, "release_then_write": False, "write_two_failed_cmpxchg": False,
           "write_two_wmb": True, "write_two_release": True, "write_two_mb": True,
           "write_two_xchg": True}  # fmt: skip
READERS = {"read_two": False, "read_then_acquire": False, "read_two_branch": False,
           "read_two_rmb": True, "read_two_acquire": True, "read_two_address": True}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("writer", WRITERS)
def test_message_passing_needs_both_sides(run, writer, reader):
    found = run((writer, "x", "y"), (reader, "x", "y"))

    old_data = (0, (1, 0))
    assert (old_data in found) == (not (WRITERS[writer] and READERS[reader]))
    assert {(0, (0, 0)), (0, (1, 1))} <= found


@pytest.mark.parametrize("writer", WRITERS)
def test_message_passing_needs_nothing_on_x86(run, writer):
    assert (0, (1, 0)) not in run((writer, "x", "y"), ("read_two", "x", "y"), memory=TSO)


def test_a_dependency_through_memory_of_its_own_orders(run):
    reader = ("read_two_through_memory", "x", "y", "mine")
    assert (0, (1, 0)) not in run(("write_two_wmb", "x", "y"), reader)
    assert (0, (1, 0)) in run(("write_two", "x", "y"), reader)


@pytest.mark.parametrize("memory", [WEAK, TSO])
@pytest.mark.parametrize(
    ("function", "shown"),
    [("write_then_read", True), ("write_rmb_read", True), ("write_mb_read", False),
     ("add_then_read", False)],
)  # fmt: skip
def test_store_buffering_is_forbidden_by_a_full_barrier_only(run, function, shown, memory):
    found = run((function, "x", "y"), (function, "y", "x"), memory=memory)
    assert ((0, 0) in found) == shown
    assert (1, 0) in found


def test_a_relaxed_update_may_be_passed_by_a_later_load_but_not_on_x86(run):
    calls = ("add_relaxed_then_read", "x", "y"), ("add_relaxed_then_read", "y", "x")
    assert (0, 0) in run(*calls)
    assert (0, 0) not in run(*calls, memory=TSO)


def test_reads_of_one_word_never_go_back(run):
    found = run(("write_twice", "x"), ("read_twice", "x"), words=["x"])
    assert {(0, (a, b), 2) for a in range(3) for b in range(a, 3)} == found


def test_a_cpu_sees_its_own_store_unless_another_has_replaced_it(run):
    assert {r[1] for r in run(("write_one", "x"), ("write_and_read_back", "x"))} == {1, 2}
    assert run(("write_and_read_back", "x")) == {(2,)}


def test_two_words_are_overwritten_in_different_orders_without_barriers(run):
    """2+2W, which loads alone cannot show."""
    for function, shown in (("write_values", True), ("write_values_wmb", False)):
        found = run((function, "x", "y"), ("write_values_wmb", "y", "x"), words=["x", "y"])
        assert ((0, 0, 1, 1) in found) == shown


def test_load_buffering_is_not_shown(run):
    """It is allowed by arm64 and LKMM: the model does less here."""
    found = run(("read_then_write", "x", "y"), ("read_then_write", "y", "x"))
    assert found == {(0, 0), (0, 1), (1, 0)}


@pytest.mark.parametrize(
    ("reader", "shown"), [("read_two", True), ("read_two_rmb", False), ("read_two_acquire", False)]
)
def test_readers_agree_on_the_order_of_independent_stores(run, reader, shown):
    """IRIW: a store becomes visible to all others at once; only early loads can tell otherwise."""
    calls = ("write_one", "x"), ("write_one", "y"), (reader, "x", "y"), (reader, "y", "x")
    assert ((0, 0, (1, 0), (1, 0)) in run(*calls)) == shown


def test_what_was_read_is_passed_on_by_a_release(run):
    """WRC with release and acquire."""
    calls = ("write_one", "x"), ("pass_on", "x", "y"), ("read_two_acquire", "x", "y")
    assert (0, 1, (1, 0)) not in run(*calls)
    calls = ("write_one", "x"), ("pass_on", "x", "y"), ("read_two", "x", "y")
    assert (0, 1, (1, 0)) in run(*calls)


def test_an_unlock_without_release_loses_an_addition(run):
    for function, sums in (("add_in_order", {1, 2}), ("add_out_of_order", {0, 1, 2})):
        found = run((function, "x", "y"), (function, "x", "y"), words=["y"])
        both = {total for a, b, total in found if -1 not in (a, b)}
        assert both == sums - {0} - ({1} if function == "add_in_order" else set())


@pytest.mark.parametrize("function", ["clear_then_write", "clear_then_release"])
def test_a_page_may_be_cleared_late_unless_a_release_comes_before(engine, segment, function):
    page, flag = segment.address["frames"] + (50 << 12), segment.scratch(0)
    litmus.poke(segment, page + 64, 9)
    with Script(engine, segment, memory=WEAK) as script:
        b = script.cpu("B", function, page, flag).holds_back(page)
        b.runs_until(after("smp_store_release" if "release" in function else "write_once"))
        seen = segment.word(flag), segment.word(page + 64)
        assert seen == ((0, 9) if function == "clear_then_release" else (1, 9))
        assert b.runs_to_end() == 0
    assert segment.word(page + 64) == 0


# The script's own words


@pytest.fixture
def script(engine, segment):
    with Script(engine, segment, memory=WEAK) as made:
        yield made


def test_memory_is_in_order_but_for_what_the_script_says(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    a = script.cpu("A", "read_two", x, y)
    b = script.cpu("B", "write_two", x, y).holds_back(x)

    b.runs_until(after("write_once", address=y))
    assert (segment.word(x), segment.word(y)) == (0, 1)
    assert a.runs_to_end() == (1, 0)
    b.shows(x)
    assert segment.word(x) == 1


def test_a_load_is_early_where_the_script_says(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    a = script.cpu("A", "read_two", x, y).reads_early(x)
    c = script.cpu("C", "read_two_rmb", x, y).reads_early(x)
    script.cpu("B", "write_two", x, y).runs_to_end()

    assert a.runs_to_end() == (1, 0)
    assert c.runs_to_end() == (1, 1)


def test_a_store_that_is_ordered_behind_another_cannot_be_shown(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    b = script.cpu("B", "write_two_release", x, y).holds_back(x)
    b.runs_until(after("smp_store_release"))

    with pytest.raises(ScriptError, match="is ordered behind one that is held back"):
        b.shows(y)
    b.shows(x)
    assert segment.word(y) == 1
    with pytest.raises(ScriptError, match=r"no store to 0x[0-9a-f]* is held back"):
        b.shows(x)


def test_the_end_of_a_function_shows_everything(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    script.cpu("B", "write_two", x, y).holds_back(x, y).runs_to_end()
    assert (segment.word(x), segment.word(y)) == (1, 1)


def test_holding_back_ends_when_told(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    b = script.cpu("B", "write_two", x, y).holds_back(x, y).holds_back()
    b.runs_until(after("write_once"))
    assert segment.word(x) == 1


def test_what_is_written_outside_of_the_script_is_seen_by_all(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    a = script.cpu("A", "read_two", x, y).reads_early(x, y)
    script.cpu("B", "write_one", x).runs_to_end()
    litmus.poke(segment, x, 7)
    assert a.runs_to_end() == (0, 7)


def test_the_history_says_what_was_late_and_what_early(script, segment):
    x, y = segment.scratch(0), segment.scratch(8)
    a = script.cpu("A", "read_two", x, y).reads_early(x)
    b = script.cpu("B", "write_two", x, y).holds_back(y)
    b.runs_until(after("write_once", nth=2))
    b.shows(y)
    a.runs_to_end()

    text = script.history()

    assert "write_once(scratch[8], 1): 0 -> 1 (held back)" in text
    assert "-- scratch[8] becomes visible: 0 -> 1" in text
    assert "read_once(scratch[0]) = 0 (early)" in text


def test_memory_in_order_holds_nothing_back(engine, segment):
    with Script(engine, segment) as script:
        a = script.cpu("A", "write_one", segment.scratch(0))
        with pytest.raises(ScriptError, match=r"make it with memory=Memory\.WEAK"):
            a.holds_back(segment.scratch(0))


def random_outcome(engine, segment, seed=None, schedule=""):
    x, y = segment.scratch(0), segment.scratch(8)
    litmus.poke(segment, x, 0)
    litmus.poke(segment, y, 0)
    with Script(engine, segment, memory=WEAK) as script:
        script.cpu("A", "write_two", x, y)
        reader = script.cpu("B", "read_two", x, y)
        if seed is None:
            script.replays(schedule)
        else:
            schedule = script.runs_randomly(seed)
        return reader.result, schedule, script.history()


def test_random_schedules_find_what_is_late_and_replay_it(engine, segment):
    found = [random_outcome(engine, segment, seed) for seed in range(600)]
    late = [f for f in found if f[0] == (1, 0)]

    assert 0 < len(late) < 200
    assert any("(held back)" in f[2] for f in late)
    for outcome in late[:5]:
        assert random_outcome(engine, segment, schedule=outcome[1]) == outcome


def test_a_turn_of_a_weak_memory_does_not_fit_memory_in_order(engine, segment):
    with Script(engine, segment) as script:
        script.cpu("A", "write_one", segment.scratch(0))
        with pytest.raises(ScriptError, match="is in order"):
            script.replays("A1 A+")
