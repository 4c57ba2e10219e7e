# SPDX-License-Identifier: MIT
"""Hardware counters: counted where there are any, absent where there are none."""

import errno
import os

import pytest

from spfemu.measure import hardware


class FakeShims:
    """Offers cycles only; they count 100 between start and stop."""

    def __init__(self, refusal):
        self.refusal = refusal
        self.open = set()

    def spf_perf_open(self, kind, _thread, _inherit):
        if kind != hardware.KINDS["cycles"]:
            return -self.refusal
        handle = 10 + len(self.open)
        self.open.add(handle)
        return handle

    def spf_perf_enable(self, handle):
        assert handle in self.open

    spf_perf_disable = spf_perf_enable

    def spf_perf_read(self, handle):
        return 100 if handle == 10 else -errno.ENODATA

    def spf_perf_close(self, handle):
        self.open.remove(handle)


def test_absent_kinds_are_left_out(monkeypatch):
    fake = FakeShims(errno.ENOENT)
    monkeypatch.setattr(hardware.shims, "load", lambda: fake)
    with hardware.HardwareCounters([1, 2]) as counters:
        counters.start()
        # the second never got the hardware
        assert counters.stop() == [{"cycles": 100}, {}]
        assert counters.missing["instructions"] == "this machine has no such counter"
    assert not fake.open


def test_permission_is_explained(monkeypatch):
    fake = FakeShims(errno.EACCES)
    monkeypatch.setattr(hardware.shims, "load", lambda: fake)
    assert "perf_event_paranoid" in hardware.unavailable()["cache_misses"]


@pytest.mark.skipif("cycles" not in hardware.unavailable(), reason="this machine has counters")
def test_machine_without_counters_reports_none():
    with hardware.HardwareCounters([os.getpid()]) as counters:
        counters.start()
        assert counters.stop() is None


@pytest.mark.skipif("cycles" in hardware.unavailable(), reason="this machine has no counters")
def test_machine_with_counters_counts():
    with hardware.HardwareCounters([os.getpid()]) as counters:
        counters.start()
        sum(range(100_000))
        assert counters.stop()[0]["cycles"] > 0
