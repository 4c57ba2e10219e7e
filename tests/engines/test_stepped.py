# SPDX-License-Identifier: MIT
"""Fibers stop before every primitive, say what they will do, and end or are found stuck."""

import gc
from pathlib import Path

import pytest

from spfemu.engines.plain import KernelPanic
from spfemu.engines.source import link, load_override
from spfemu.engines.stepped import FiberState, StepEngine, StuckError
from spfemu.engines.steps import Step

HEADER = "from spfemu.kernel import kernel\nfrom spfemu.primitives import *\n"


@pytest.fixture
def spawn(stepped):
    """Make fibers that are freed at the end of the test."""
    fibers = []

    def make(name, *arguments):
        fibers.append(stepped.spawn(name, *arguments))
        return fibers[-1]

    yield make
    for fiber in fibers:
        fiber.free()


def events(fiber):
    """Every event up to the end."""
    seen = []
    while fiber.state is FiberState.READY:
        fiber.resume()
        if fiber.state is not FiberState.DONE:
            seen.append(fiber.event)
    return seen


def test_a_call_runs_to_its_end(stepped, segment):
    pair = segment.scratch(0)
    assert stepped.call("pair_write", pair, 7) == 0
    assert stepped.call("pair_read", pair) == (1, 7, 7)


def test_a_fiber_stops_before_every_primitive_and_around_every_function(spawn, segment):
    lock = segment.scratch(0)
    seen = events(spawn("add_locked", lock, segment.scratch(1)))

    assert [(e.kind, e.site.function, e.site.primitive) for e in seen] == [
        (Step.ENTER, "add_locked", "enter"),
        (Step.ENTER, "mutex_lock", "enter"),
        (Step.RMW, "mutex_lock", "cmpxchg_acquire"),
        (Step.RETURN, "mutex_lock", "return"),
        (Step.LOAD, "add_locked", "load"),
        (Step.STORE, "add_locked", "write_once"),
        (Step.ENTER, "mutex_unlock", "enter"),
        (Step.RMW, "mutex_unlock", "xchg"),
        (Step.RETURN, "mutex_unlock", "return"),
        (Step.RETURN, "add_locked", "return"),
    ]
    assert seen[0].arguments == (lock, segment.scratch(1))
    assert seen[2].arguments == (lock, 0, 1)
    assert seen[3].arguments == ()
    assert seen[-1].arguments == (1,)


def test_nothing_happens_before_the_step_is_taken(spawn, segment):
    fiber = spawn("set_words", segment.scratch(0), 1, 9)
    assert fiber.event is None
    fiber.resume()
    fiber.resume()
    assert fiber.event.site.primitive == "write_once"
    assert str(fiber.event).endswith(f"write_once({segment.scratch(0):#x}, 9)")
    assert segment.word(segment.scratch(0)) == 0
    fiber.resume()
    assert segment.word(segment.scratch(0)) == 9


def test_sites_name_the_line(spawn, stepped, segment):
    fiber = spawn("add_unlocked", segment.scratch(0))
    fiber.run(100, Step.LOAD)
    function = stepped.program.functions["add_unlocked"]
    lines = Path(function.file).read_text().splitlines()
    line = lines[fiber.event.site.line - 1]
    assert line.strip() == "value = load(counter) + 1"


def test_run_stops_at_a_kind_or_a_site(spawn, stepped, segment):
    fiber = spawn("set_words", segment.scratch(0), 5, 9)
    fiber.run(100, Step.STORE)
    site = stepped.sites.index(fiber.event.site)
    assert fiber.steps == 2
    fiber.run(2, Step.RMW)
    assert segment.word(segment.scratch(1)) == 9
    fiber.run(100, -1, site)
    assert fiber.event.site is stepped.sites[site]
    assert fiber.run(100) is FiberState.DONE
    assert fiber.result == 5


def test_a_result_is_there_only_at_the_end(spawn):
    fiber = spawn("never_negative", 3)
    with pytest.raises(ValueError, match="has not ended"):
        _ = fiber.result
    fiber.run(100)
    assert fiber.result == 3
    with pytest.raises(ValueError, match="cannot go on: it is DONE"):
        fiber.resume()
    with pytest.raises(ValueError, match="cannot go on: it is DONE"):
        fiber.run(1)


def test_tuples_and_many_arguments_come_back(own_cache, tmp_path):
    path = tmp_path / "many.py"
    names = [f"a{i}" for i in range(20)]
    path.write_text(
        HEADER + f"@kernel\ndef turn({', '.join(names)}):\n    return {', '.join(names[::-1])}\n"
        "@kernel\ndef make():\n    return 1, 2, 3, 4, 5\n"
    )
    engine = StepEngine(link([load_override(str(path))], {}))
    assert engine.call("turn", *range(20)) == tuple(range(19, -1, -1))
    assert engine.call("make") == (1, 2, 3, 4, 5)


def test_sleep_and_wake(spawn, segment):
    lock, counter = segment.scratch(0), segment.scratch(1)
    holder, waiter = (spawn("add_locked", lock, counter) for _ in range(2))
    holder.run(100, Step.STORE)
    assert waiter.run(100) is FiberState.WAITING
    assert not waiter.time_out()
    with pytest.raises(ValueError, match="cannot go on: it is WAITING"):
        waiter.resume()

    assert holder.run(100) is FiberState.DONE
    assert waiter.state is FiberState.READY
    assert waiter.run(100) is FiberState.DONE
    assert (holder.result, waiter.result) == (1, 2)


def test_a_sleep_with_a_limit_can_time_out(spawn, segment):
    lock = segment.scratch(0)
    spawn("mutex_lock", lock).run(100)
    waiter = spawn("mutex_lock_slowpath", lock, 1000)
    assert not waiter.time_out()
    assert waiter.run(100) is FiberState.WAITING
    assert waiter.time_out()
    assert waiter.run(100) is FiberState.DONE
    assert waiter.result == -110


def test_a_call_times_out_by_itself(stepped, segment):
    stepped.call("mutex_lock", segment.scratch(0))
    assert stepped.call("mutex_lock_slowpath", segment.scratch(0), 1000) == -110


def test_a_sleep_without_limit_is_stuck(stepped, segment):
    stepped.call("mutex_lock", segment.scratch(0))
    with pytest.raises(StuckError, match=r"mutex_lock sleeps for ever at mutex_lock_slowpath:\d+"):
        stepped.call("mutex_lock", segment.scratch(0))


def test_an_endless_spin_is_stuck(stepped, segment):
    with pytest.raises(StuckError, match=r"wait_for_word spins for ever at cpu_relax_poll:\d+"):
        stepped.call("wait_for_word", segment.cpu(0), segment.scratch(0), 1)


def test_an_endless_loop_is_stuck(stepped, segment, monkeypatch):
    monkeypatch.setattr("spfemu.engines.stepped.CALL_STEPS", 1000)
    with pytest.raises(StuckError, match="set_words does not end: after 1000 steps set_words:"):
        stepped.call("set_words", segment.scratch(0), 1 << 62, 1)


def test_a_bounded_spin_ends(stepped, segment):
    assert stepped.call("wait_a_while", segment.scratch(0), 2000) == 0


def test_a_failed_assertion_stops_the_fiber_for_good(stepped, spawn):
    with pytest.raises(KernelPanic, match="REFCOUNT_UNDERFLOW") as error:
        stepped.call("never_negative", -1)
    assert error.value.code == 70
    fiber = spawn("never_negative", -1)
    with pytest.raises(KernelPanic):
        fiber.run(100)
    assert fiber.state is FiberState.PANICKED
    with pytest.raises(ValueError, match="cannot go on: it is PANICKED"):
        fiber.resume()


def test_the_clock_counts_the_steps_of_all_fibers(stepped, spawn, segment):
    stepped.reset_clock()
    one, two = (spawn("set_words", segment.scratch(0), 5, 9) for _ in range(2))
    one.run(100)
    two.run(100)
    assert stepped.clock() == one.steps + two.steps


def test_what_does_not_exist_is_refused(stepped):
    with pytest.raises(KeyError, match="no kernel function 'pair_reed'; did you mean 'pair_read'"):
        stepped.call("pair_reed", 0)
    with pytest.raises(TypeError, match=r"pair_write takes \(seq, value\), not 1 arguments"):
        stepped.spawn("pair_write", 0)


def test_a_fiber_that_is_forgotten_is_freed(stepped, segment):
    lock = segment.scratch(0)
    stepped.call("mutex_lock", lock)
    waiter = stepped.spawn("mutex_lock", lock)
    assert waiter.run(100) is FiberState.WAITING
    handle = waiter.handle
    del waiter
    gc.collect()
    # the freed one is taken first, and is no sleeper any more
    again = stepped.spawn("mutex_unlock", lock)
    assert again.handle == handle
    again.run(100)
    again.free()
    assert again.state is FiberState.FREED
