# SPDX-License-Identifier: MIT
"""Subscribers to changes of mappings, and speculative copies that they must hear of or not.

A and B are threads of a process that shares a page with a child; CPU 2 prepares and checks.
"""

import pytest
from mutants import mutant_engine
from protocol_sets import GUARDED, SPECULATIVE

from spfemu.checks import check_segment
from spfemu.engines.script import after, before, waits
from spfemu.engines.stepped import StepEngine
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules import process
from spfemu.stress.schedules.calls import RW
from spfemu.stress.schedules.process import Process, Threads

AREA = 1 << 40
PAGE = AREA + 4096
STARTED = after("mmu_notifier_invalidate_range_start", inside="wp_page_copy")


@pytest.fixture(scope="module")
def subscribed_engine(own_cache):
    """Return a function that makes the stepped kernel with subscribers' calls, once."""
    made = {}

    def make(protocol, mutant=""):
        key = protocol, mutant
        if key not in made and mutant:
            made[key] = mutant_engine(protocol, mutant)
        elif key not in made:
            made[key] = StepEngine(process.program(protocol))
        return made[key]

    return make


class Forked(Process):
    """A process whose page at PAGE, where 2 stands, is a child's too."""

    def begin(self, seed: int = 1) -> None:
        super().begin(seed)
        self.map(AREA, 16)
        self.write(AREA, 1)
        self.write(PAGE, 2)
        self.child = self.call("fork")
        assert self.child > 0

    def subscribes(self) -> int:
        subscription = self.call("subscribe")
        assert subscription > 0
        return subscription

    def secondary(self, subscription: int, address: int = PAGE) -> int:
        """What a subscriber reads."""
        error, value = self.call("secondary_read", subscription, address)
        assert error == 0
        return value

    def counts(self) -> list[tuple[int, int]]:
        """Starts and ends that each subscriber was told of."""
        used = self.segment.notifiers["in_use"] != 0
        told = self.segment.notifiers[used]
        return [(int(n["nr_starts"]), int(n["nr_ends"])) for n in told]


def forked_under(engine):
    return Forked(engine, Segment.create(Geometry(nr_cpus=3, nr_spare_mms=2)))


@pytest.fixture(params=SPECULATIVE)
def forked(subscribed_engine, request):
    made = forked_under(subscribed_engine(request.param))
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


def test_a_subscriber_hears_of_a_speculative_copy_from_start_to_end(forked):
    subscription = forked.subscribes()
    assert forked.secondary(subscription) == 2
    with Threads(forked) as threads:
        assert threads.thread("A", "write", PAGE, 7).runs_to_end() == 0

    assert forked.aborts() == {}
    assert forked.counts() == [(1, 1)]
    assert forked.secondary(subscription) == 7


@pytest.mark.parametrize(
    "point",
    [
        STARTED,
        after("pte_map_lock", inside="wp_page_map_copy"),
        after("flush_tlb_mm", inside="wp_page_map_copy"),
        before("mmu_notifier_invalidate_range_end", inside="wp_page_copy"),
        before("percpu_up_read", inside="wp_page_copy"),
    ],
    ids=str,
)
def test_a_subscriber_waits_for_a_copy_that_has_started(forked, point):
    """M03: it would hear of the end of what it has not heard the start of."""
    with Threads(forked) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "subscribe")
        a.runs_until(point)
        b.runs_until(waits())
        assert forked.counts() in ([], [(0, 0)])
        assert a.runs_to_end(letting=[b]) == 0
        subscription = b.runs_to_end(letting=[a])

    assert forked.counts() == [(0, 0)]
    assert forked.aborts() == {}
    assert forked.secondary(subscription) == 7


@pytest.mark.parametrize("leaves", [True, False], ids=["and is done", "and stays"])
def test_a_copy_that_meets_a_subscriber_aborts(forked, leaves):
    """A has begun while the count was even; B then holds the lock against it, or held it."""
    with Threads(forked) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "subscribe")
        b.runs_until(after("rcu_sync_enter"))
        a.runs_until(before("percpu_down_read_trylock"))
        if leaves:
            b.runs_to_end()
        else:
            b.runs_until(after("percpu_down_write"))
        assert a.runs_to_end(letting=[b]) == 0
        subscription = b.runs_to_end(letting=[a])

    # the locked path copies the page and tells of it; so does the gate if the lock is free again
    reasons = forked.aborts()
    if leaves:
        assert "MMU_NOTIFIER" not in reasons
    else:
        assert reasons == {"MMU_NOTIFIER": 1}
    told = forked.counts()
    assert told == [(1, 1)] or (leaves and told == [(2, 2)])
    assert forked.secondary(subscription) == 7


def test_a_subscriber_leaves_between_a_start_and_an_end(forked):
    subscription = forked.subscribes()
    with Threads(forked) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "unsubscribe", subscription)
        a.runs_until(STARTED)
        b.runs_until(waits())
        assert forked.counts() == [(1, 0)]
        assert a.runs_to_end(letting=[b]) == 0
        b.runs_to_end(letting=[a])

    assert forked.counts() == []


# What the lock and the calls are for


@pytest.mark.parametrize("protocol", SPECULATIVE)
def test_without_the_lock_a_subscriber_hears_of_an_end_alone(subscribed_engine, protocol):
    forked = forked_under(subscribed_engine(protocol, "copies_without_registration_lock"))
    with Threads(forked) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "subscribe")
        b.runs_until(after("rcu_sync_enter"))
        a.runs_until(STARTED)
        b.runs_to_end()
        a.runs_until(after("mmu_notifier_invalidate_range_end", inside="wp_page_copy"))
        assert forked.counts() == [(0, 1)]
        assert a.runs_to_end() == 0

    found = check_segment(forked.segment)
    forked.segment.close()
    assert any("but" in message and "ends" in message for message in found), found


@pytest.mark.parametrize("protocol", GUARDED)
@pytest.mark.parametrize("mutant", ["", "subscribers_are_not_told"])
def test_a_copy_that_subscribers_are_not_told_of_leaves_old_data(
    subscribed_engine, protocol, mutant
):
    forked = forked_under(subscribed_engine(protocol, mutant))
    subscription = forked.subscribes()
    assert forked.secondary(subscription) == 2
    forked.write(PAGE, 7)

    assert forked.secondary(subscription) == (2 if mutant else 7)
    found = check_segment(forked.segment)
    forked.segment.close()
    assert any("translates" in message for message in found) == bool(mutant), found


@pytest.mark.parametrize(
    "mutant", ["", "subscriber_does_not_retry"], ids=["retries", "does not retry"]
)
def test_a_subscriber_looks_a_page_up_while_it_is_replaced(subscribed_engine, mutant):
    """B has found the old frame when A tells of its copy; it runs another mm and takes no IPI."""
    forked = forked_under(subscribed_engine("spf", mutant))
    subscription = forked.subscribes()
    forked.engine.call("switch_mm", forked.segment.cpu(1), forked.child)
    with Threads(forked) as threads:
        a = threads.thread("A", "write", PAGE, 7)
        b = threads.thread("B", "secondary_read", subscription, PAGE)
        b.runs_until(after("secondary_lookup"))
        assert a.runs_to_end() == 0
        error, value = b.runs_to_end()
    assert error == 0
    assert value == (2 if mutant else 7)
    found = check_segment(forked.segment)
    forked.segment.close()
    assert bool(found) == bool(mutant), found


@pytest.mark.parametrize("protocol", GUARDED)
def test_subscribers_and_copies_in_random_orders(subscribed_engine, protocol):
    forked = forked_under(subscribed_engine(protocol))
    for seed in range(16):
        forked.begin(seed)
        subscription = forked.subscribes()
        with Threads(forked) as threads:
            a = threads.thread("A", "write", PAGE, 7)
            b = threads.thread("B", "subscribe")
            c = threads.thread("C", "secondary_read", subscription, PAGE)
            schedule = threads.runs_randomly(seed)
            assert a.result == 0, (seed, schedule)
            assert c.result in {(0, 2), (0, 7)}, (seed, schedule)
            second = b.result
        assert check_segment(forked.segment) == [], (seed, schedule)
        assert forked.secondary(subscription) == 7, (seed, schedule)
        assert forked.secondary(second) == 7, (seed, schedule)
    forked.segment.close()


def test_mappings_that_go_away(subscribed_engine):
    forked = forked_under(subscribed_engine("spf"))
    subscription = forked.subscribes()
    assert forked.secondary(subscription) == 2
    assert forked.call("dontneed", PAGE, 4096) == 0
    assert forked.secondary(subscription) == 0
    assert forked.call("mprotect", PAGE, 4096, 0) == 0
    assert forked.call("secondary_read", subscription, PAGE)[0] < 0
    assert forked.call("mprotect", PAGE, 4096, RW) == 0
    assert forked.secondary(subscription) == 0
    assert forked.call("munmap", PAGE, 4096) == 0
    assert forked.call("secondary_read", subscription, PAGE)[0] < 0
    assert check_segment(forked.segment) == []
    forked.segment.close()
