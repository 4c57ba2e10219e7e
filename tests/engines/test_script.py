# SPDX-License-Identifier: MIT
"""Scripts put CPUs where they say, say where they are, and come out the same every time."""

import pytest

from spfemu.engines.plain import KernelPanic
from spfemu.engines.script import Script, ScriptError, after, before, waits
from spfemu.engines.stepped import FiberState, StuckError


@pytest.fixture
def script(stepped, segment):
    with Script(stepped, segment) as made:
        yield made


def test_a_script_shows_a_torn_read(script, segment):
    pair = segment.scratch(0)
    reader = script.cpu("A", "pair_read_unchecked", pair)
    writer = script.cpu("B", "pair_write", pair, 5)

    reader.runs_until(after("load"))
    writer.runs_to_end()

    assert reader.runs_to_end() == (0, 5)


def test_the_sequence_count_catches_the_torn_read(script, segment):
    pair = segment.scratch(0)
    reader = script.cpu("A", "pair_read", pair)
    writer = script.cpu("B", "pair_write", pair, 5)

    reader.runs_until(after("load"))
    writer.runs_to_end()

    assert reader.runs_to_end() == (0, 0, 5)


def test_an_odd_sequence_count_is_seen(script, segment):
    pair = segment.scratch(0)
    reader = script.cpu("A", "pair_read", pair)
    writer = script.cpu("B", "pair_write", pair, 5)

    writer.runs_until(after("write_once", address=pair))
    assert reader.runs_to_end()[0] == 0
    writer.runs_to_end()

    assert script.cpu("C", "pair_read", pair).runs_to_end() == (1, 5, 5)


def test_before_a_function_nothing_of_it_has_happened(script, segment):
    lock = segment.scratch(0)
    cpu = script.cpu("A", "add_locked", lock, segment.scratch(1))

    cpu.runs_until(before("mutex_lock"))
    assert segment.word(lock) == 0
    assert cpu.stack == ("add_locked", "mutex_lock")

    cpu.runs_until(after("mutex_lock"))
    assert segment.word(lock) == 1


def test_nth_counts_from_where_the_cpu_is(script, segment):
    first = segment.scratch(0)
    cpu = script.cpu("A", "set_words", first, 6, 9)

    cpu.runs_until(after("write_once", nth=2))
    assert [segment.word(first + 8 * i) for i in range(6)] == [9, 9, 0, 0, 0, 0]
    cpu.runs_until(before("write_once", nth=2))
    assert [segment.word(first + 8 * i) for i in range(6)] == [9, 9, 9, 0, 0, 0]
    cpu.runs_until(after("write_once"))
    assert [segment.word(first + 8 * i) for i in range(6)] == [9, 9, 9, 9, 0, 0]
    assert cpu.runs_to_end() == 6


def test_inside_means_under_a_call_of_that_function(script, segment):
    lock = segment.scratch(0)
    cpu = script.cpu("A", "two_locks", lock, segment.scratch(1))

    cpu.runs_until(before("xchg", inside="mutex_unlock"))

    assert cpu.stack == ("two_locks", "mutex_unlock")
    assert cpu.fiber.event.arguments[0] == segment.scratch(1)


def test_address_picks_the_word(script, segment):
    first = segment.scratch(0)
    cpu = script.cpu("A", "set_words", first, 6, 9)

    cpu.runs_until(after("write_once", address=first + 32))

    assert segment.word(first + 32) == 9
    assert segment.word(first + 40) == 0


def test_a_sleeper_waits_and_goes_on_when_woken(script, segment):
    lock, counter = segment.scratch(0), segment.scratch(1)
    a = script.cpu("A", "add_locked", lock, counter)
    b = script.cpu("B", "add_locked", lock, counter)

    a.runs_until(after("mutex_lock"))
    b.runs_until(waits())
    assert "asleep at mutex_lock_slowpath" in b.where()
    a.runs_to_end()

    assert b.runs_to_end() == 2


def test_letting_others_run_takes_no_more_steps_than_needed(script, segment):
    lock, counter = segment.scratch(0), segment.scratch(1)
    a = script.cpu("A", "add_locked", lock, counter)
    b = script.cpu("B", "add_locked", lock, counter)

    a.runs_until(after("mutex_lock"))
    assert b.runs_to_end(letting=[a]) == 2

    assert not a.done
    assert a.stack == ("add_locked", "mutex_unlock")
    assert a.runs_to_end() == 1


def test_a_spinning_cpu_waits_and_goes_on_when_the_word_changes(script, segment):
    word = segment.scratch(0)
    a = script.cpu("A", "wait_for_word", segment.cpu(0), word, 9)
    b = script.cpu("B", "set_words", segment.scratch(8), 2, 1)
    c = script.cpu("C", "set_words", word, 3, 9)

    a.runs_until(waits())
    assert "spinning before" in a.where()
    a.runs_to_end(letting=[b, c])

    assert not c.done
    assert segment.word(segment.scratch(1)) == 0


def test_an_ipi_is_served_by_a_cpu_that_may_run(script, segment):
    segment.cpus["state"] = 2
    ticket = 1
    segment.cpus["ipi_request"][1] = ticket
    sender = script.cpu("A", "wait_for_ipi", segment.cpu(0), segment.cpu(1), ticket)
    target = script.cpu("B", "wait_for_word", segment.cpu(1), segment.scratch(0), 1)

    sender.runs_to_end(letting=[target])

    assert segment.cpus["ipi_done"][1] == ticket
    assert not target.done


def test_waiting_alone_is_an_error_that_says_where(script, segment):
    lock, counter = segment.scratch(0), segment.scratch(1)
    script.cpu("A", "add_locked", lock, counter).runs_until(after("mutex_lock"))
    b = script.cpu("B", "add_locked", lock, counter)

    with pytest.raises(ScriptError) as error:
        b.runs_to_end()

    text = str(error.value)
    assert "B waits without ending" in text
    assert "asleep at mutex_lock_slowpath" in text
    assert "futex_wait(scratch[0], 2, -1)" in text
    assert text.index("in mutex_lock_slowpath") < text.index("in mutex_lock (")
    assert text.index("in mutex_lock (") < text.index("in add_locked")
    assert "toys.py:" in text


def test_spinning_alone_is_an_error_that_says_where(script, segment):
    a = script.cpu("A", "wait_for_word", segment.cpu(0), segment.scratch(0), 1)
    with pytest.raises(ScriptError, match=r"(?s)waits without.*spinning before"):
        a.runs_to_end()


def test_a_bounded_spin_gives_up_by_itself(script, segment):
    assert script.cpu("A", "wait_a_while", segment.scratch(0), 20).runs_to_end() == 0


def test_a_deadlock_among_those_who_may_run_is_an_error(script, segment):
    one, two = segment.scratch(0), segment.scratch(1)
    a = script.cpu("A", "two_locks", one, two)
    b = script.cpu("B", "two_locks", two, one)

    a.runs_until(after("mutex_lock"))
    b.runs_until(after("mutex_lock"))
    with pytest.raises(ScriptError, match="A waits"):
        a.runs_to_end(letting=[b])


def test_a_point_that_is_passed_without_stopping_is_an_error(script, segment):
    a = script.cpu("A", "add_locked", segment.scratch(0), segment.scratch(1))
    with pytest.raises(ScriptError, match="A ends without getting before mutex_lock_slowpath"):
        a.runs_until(before("mutex_lock_slowpath"))


def test_too_many_steps_are_an_error(stepped, segment):
    with Script(stepped, segment, steps_max=50) as script:
        a = script.cpu("A", "set_words", segment.scratch(0), 60, 1)
        with pytest.raises(ScriptError, match="A takes 50 steps without ending"):
            a.runs_to_end()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        (after("mutex_lok"), "no kernel function or primitive 'mutex_lok'; did you mean"),
        (before("spin_lock"), "'add_locked' never calls 'spin_lock'"),
        (before("load", inside="mutex_lokc"), "no kernel function 'mutex_lokc'; did you mean"),
        (before("load", inside="spin_lock"), "'add_locked' never calls 'spin_lock'"),
        (before("cpu_relax"), "'add_locked' never uses cpu_relax; it uses cmpxchg_acquire, futex"),
        (before("load", inside="mutex_unlock"), "'mutex_unlock' never uses load; it uses futex_"),
        (before("mutex_lock", address=8), "'address' goes with a primitive"),
    ],
)
def test_a_point_that_cannot_be_reached_is_refused_at_once(script, segment, point, message):
    a = script.cpu("A", "add_locked", segment.scratch(0), segment.scratch(1))
    with pytest.raises(ScriptError, match=message.replace("(", r"\(")):
        a.runs_until(point)
    assert a.fiber.steps == 0


def test_unknown_functions_and_taken_names_are_refused(script, segment):
    with pytest.raises(ScriptError, match="no kernel function 'pair_reed'; did you mean"):
        script.cpu("A", "pair_reed", 0)
    with pytest.raises(TypeError, match=r"pair_read takes \(seq\), not 2 arguments"):
        script.cpu("A", "pair_read", 0, 1)
    script.cpu("A", "pair_read", segment.scratch(0))
    with pytest.raises(ScriptError, match="needs a name of its own"):
        script.cpu("A", "pair_read", segment.scratch(0))


def test_a_sleep_with_a_limit_times_out_when_the_script_says_so(script, segment):
    lock = segment.scratch(0)
    script.cpu("A", "mutex_lock", lock).runs_to_end()
    b = script.cpu("B", "mutex_lock_slowpath", lock, 1000)

    b.runs_until(waits())
    b.times_out()

    assert b.runs_to_end() == -110
    with pytest.raises(ScriptError, match="no sleep with a time limit"):
        b.times_out()


def test_a_failed_assertion_stops_the_cpu_and_says_where(script):
    a = script.cpu("A", "never_negative", -1)
    with pytest.raises(KernelPanic, match="REFCOUNT_UNDERFLOW") as error:
        a.runs_to_end()
    assert "stopped for good at vm_bug_on" in error.value.__notes__[0]
    assert "in never_negative" in error.value.__notes__[0]
    with pytest.raises(ScriptError, match="takes only 0 of 1 steps"):
        a.takes_steps(1)


def test_a_result_is_there_only_at_the_end(script, segment):
    a = script.cpu("A", "pair_read", segment.scratch(0))
    a.runs_until(after("load"))
    with pytest.raises(ScriptError, match="A has not ended"):
        _ = a.result


def test_the_history_is_a_table_with_a_column_per_cpu(script, segment):
    pair = segment.scratch(0)
    reader = script.cpu("A", "pair_read_unchecked", pair)
    writer = script.cpu("B", "pair_write", pair, 5)
    reader.runs_until(after("load"))
    writer.runs_to_end()
    reader.runs_to_end()

    lines = script.history().splitlines()

    assert lines[0].split() == ["step", "A", "B"]
    a, b = lines[0].index("A"), lines[0].index("B")
    assert lines[1][a:] == "pair_read_unchecked(scratch[0])"
    assert lines[2][a:].endswith("load(scratch[1]) = 0")
    assert not lines[3][a:b].strip()
    assert lines[3][b:] == "pair_write(scratch[0], 5)"
    assert lines[5][b:].endswith("write_once(scratch[0], 1): 0 -> 1")
    assert lines[-1][a:].endswith("returns 0, 5")
    assert script.history(2).splitlines()[1:] == lines[-2:]


def test_the_same_script_takes_the_same_steps(stepped, segment):
    histories = []
    for _ in range(2):
        segment.reset()
        with Script(stepped, segment) as script:
            word = segment.scratch(0)
            a = script.cpu("A", "wait_for_word", segment.cpu(0), word, 1)
            a.runs_until(waits())
            script.cpu("B", "set_words", word, 1, 1).runs_to_end()
            a.runs_to_end()
            histories.append((script.history(), a.result))

    assert histories[0] == histories[1]


def test_cpus_are_freed_also_when_the_script_fails(stepped, segment):
    with pytest.raises(ZeroDivisionError) as error, Script(stepped, segment) as script:
        a = script.cpu("A", "add_locked", segment.scratch(0), segment.scratch(1))
        a.runs_until(after("mutex_lock"))
        _ = 1 // 0

    assert a.state is FiberState.FREED
    with pytest.raises(ValueError, match="cannot go on: it is FREED"):
        a.fiber.resume()
    assert "last steps:" in error.value.__notes__[0]


def random_sums(engine, segment, function, seeds):
    """Final counters of two random additions, by seed."""
    sums = {}
    for seed in seeds:
        segment.reset()
        lock, counter = segment.scratch(0), segment.scratch(1)
        arguments = (lock, counter) if function == "add_locked" else (counter,)
        with Script(engine, segment) as script:
            script.cpu("A", function, *arguments)
            script.cpu("B", function, *arguments)
            sums[seed] = (script.runs_randomly(seed), segment.word(counter))
    return sums


def test_random_schedules_find_a_lost_update_and_replay_it(stepped, segment):
    sums = random_sums(stepped, segment, "add_unlocked", range(30))
    lost = [schedule for schedule, value in sums.values() if value == 1]
    assert lost
    assert len(lost) < 30

    segment.reset()
    with Script(stepped, segment) as script:
        for name in ("A", "B"):
            script.cpu(name, "add_unlocked", segment.scratch(1))
        script.replays(lost[0])
        assert all(cpu.done for cpu in script.cpus)
    assert segment.word(segment.scratch(1)) == 1


def test_random_schedules_lose_nothing_under_the_lock(stepped, segment):
    sums = random_sums(stepped, segment, "add_locked", range(30))
    assert {value for _, value in sums.values()} == {2}
    assert sums == random_sums(stepped, segment, "add_locked", range(30))


def test_a_random_deadlock_is_found_with_its_schedule(stepped, segment):
    for seed in range(50):
        segment.reset()
        one, two = segment.scratch(0), segment.scratch(1)
        with Script(stepped, segment) as script:
            script.cpu("A", "two_locks", one, two)
            script.cpu("B", "two_locks", two, one)
            try:
                script.runs_randomly(seed)
            except StuckError as error:
                found = error
                break
    assert "deadlock" in str(found)
    assert found.__notes__[0].startswith("schedule: ")


def test_a_schedule_that_does_not_fit_is_an_error(script, segment):
    script.cpu("A", "pair_read", segment.scratch(0))
    with pytest.raises(ScriptError, match="'B3' is no turn of A"):
        script.replays("B3")
    with pytest.raises(ScriptError, match="takes only"):
        script.replays("A100")


def test_memory_outside_the_segment_is_not_touched(script, segment):
    cpu = script.cpu("A", "pair_read", segment.base - 4096)
    with pytest.raises(KernelPanic, match="OOPS"):
        cpu.runs_to_end()
