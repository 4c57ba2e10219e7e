# SPDX-License-Identifier: MIT
"""Every check of MMU notifiers reports what it is there for, and nothing else does."""

from importlib import import_module

import pytest
from corruption import Corruptions
from corruption import check_reported as check_good_reported
from good_segment import FIXED, MODULES, READ_WRITE

from spfemu.checks import check_segment
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import functions_of, link
from spfemu.layout import MMU_NOTIFIER, PAGE_SIZE, PERCPU_RWSEM, RWSEM, WORD
from spfemu.protocols import spf
from spfemu.segment import Geometry, Segment

AREA = 1 << 40
SLOT = (AREA >> 12) % 16
"""Where the translation of AREA stands in a shadow."""


class Subscribed:
    """A process with a subscriber that has read a page; notifier 0."""

    def __init__(self) -> None:
        kernel = [functions_of(import_module("spfemu.mm." + name)) for name in MODULES]
        self.engine = PlainEngine(link([*kernel, functions_of(spf)], {}))
        self.segment = Segment.create(Geometry())
        self.segment.mms["mm_users"][0] = 1
        self.segment.mms["cpumask"][0, 0] = 1
        cpu = self.segment.cpu(0)
        call = self.engine.call
        call("cpu_idle_exit", cpu)
        assert call("sys_mmap", cpu, AREA, 4 * PAGE_SIZE, READ_WRITE, FIXED) == AREA
        assert call("user_write", cpu, AREA, 1) == 0
        subscription = call("mmu_notifier_register", cpu, self.segment.mm(0))
        assert call("notifier_read", cpu, subscription, AREA) == (0, 1)
        assert call("sys_madvise", cpu, AREA + PAGE_SIZE, PAGE_SIZE, 4) == 0
        call("cpu_idle_enter", cpu)
        self.copy = self.segment.words.copy()

    @property
    def notifier(self):
        return self.segment.notifiers[0]

    @property
    def mm(self):
        return self.segment.mms[0]


@pytest.fixture(scope="module")
def built():
    made = Subscribed()
    yield made
    made.segment.close()


@pytest.fixture
def subscribed(built):
    yield built
    built.segment.words[:] = built.copy


corruptions = Corruptions()


@corruptions.reports(
    "^MMU notifier 0 at .* was told of 1 starts, but 2 ends$", "has 0 invalidations"
)
def end_without_start(subscribed):
    subscribed.notifier["nr_ends"] += 1


@corruptions.reports("^MMU notifier 0 at .* has 1 invalidations in progress$")
def still_in_progress(subscribed):
    subscribed.notifier["in_progress"] = 1


@corruptions.reports("^the lock of MMU notifier 0 at .* is held by CPU 2$")
def lock_held(subscribed):
    subscribed.notifier["lock"] = 3


@corruptions.reports(
    "^MMU notifier 0 .* translates 0x10000000000 of mm 0 to 0x.*, but its pte is 0x"
)
def other_frame(subscribed):
    subscribed.notifier["shadow"][2 * SLOT + 1] += PAGE_SIZE


@corruptions.reports("^MMU notifier 0 .* translates 0x10000005000 of mm 0 .*, but its pte is 0x0$")
def nothing_mapped(subscribed):
    subscribed.notifier["shadow"][2 * 5] = AREA + 5 * PAGE_SIZE


@corruptions.reports("^MMU notifier 0 .* is on the list of mm 0, but names 0x0 as its mm$")
def names_no_mm(subscribed):
    subscribed.notifier["mm"] = 0


@corruptions.reports("^MMU notifier 0 .* is on no mm's list, but names 0x.* as its mm$")
def on_no_list(subscribed):
    subscribed.mm["notifier_subscriptions"] = 0


@corruptions.reports("^MMU notifier 0 .* is free and in use$")
def free_and_in_use(subscribed):
    subscribed.segment.system["notifier_free"] = subscribed.segment.address["notifiers"]
    subscribed.notifier["next"] = subscribed.segment.address["notifiers"] + MMU_NOTIFIER.SIZE
    for slot in subscribed.segment.notifiers[1:]:
        slot["in_use"] = 0
    subscribed.mm["notifier_subscriptions"] = 0


@corruptions.reports("^MMU notifier 1 .* is lost$")
def lost(subscribed):
    subscribed.segment.system["notifier_free"] += MMU_NOTIFIER.SIZE


@corruptions.reports("^the list of MMU notifiers of mm 0 leads .* to what is no MMU notifier$")
def list_astray(subscribed):
    subscribed.notifier["next"] = 0x77


@corruptions.reports("^the list of free MMU notifiers runs in a circle through MMU notifier 3 ")
def free_list_circular(subscribed):
    last = subscribed.segment.notifiers[3]
    last["next"] = subscribed.segment.address["notifiers"] + 3 * MMU_NOTIFIER.SIZE


@corruptions.reports("^mmu_notifier_lock of mm 0 is not free: its block is 1$")
def registration_lock_blocked(subscribed):
    subscribed.mm["mmu_notifier_lock"][PERCPU_RWSEM.block // WORD] = 1


@corruptions.reports("^mmu_notifier_lock of mm 0 is not free: its rss is -1$")
def registration_lock_announced(subscribed):
    subscribed.mm["mmu_notifier_lock"][PERCPU_RWSEM.rss // WORD] = -1


@corruptions.reports("^CPU 0 still holds an mmu_notifier_lock")
def registration_lock_read(subscribed):
    subscribed.segment.cpus["percpu_read"][0] = 8


@corruptions.reports("^notifier_slab_lock is held by CPU 0$")
def slab_locked(subscribed):
    subscribed.segment.system["notifier_slab_lock"] = 1


@corruptions.reports("^mm_all_locks is not free: its count is 0x1$")
def all_locked(subscribed):
    subscribed.segment.system["mm_all_locks"][RWSEM.count // WORD] = 1


def test_the_segment_is_good(subscribed):
    assert check_segment(subscribed.segment) == []
    assert int(subscribed.notifier["nr_starts"]) == 1
    assert int(subscribed.notifier["shadow"][2 * SLOT]) == AREA


@corruptions.parametrize
def test_reported(subscribed, corrupt, patterns):
    check_good_reported(subscribed, corrupt, patterns)
