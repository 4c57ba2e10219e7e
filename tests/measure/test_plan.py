# SPDX-License-Identifier: MIT
"""What cannot be measured is refused before anything starts, and the message helps."""

import os

import pytest

from spfemu.engines.source import KernelSourceError
from spfemu.errors import UsageError
from spfemu.measure import build
from spfemu.measure.plan import Plan


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workload": "page_falt1"}, r"no workload 'page_falt1'; did you mean 'page_fault1'\?"),
        ({"protocol": "sfp"}, r"no protocol 'sfp'; did you mean 'spf'\?"),
        ({"target": "hots"}, r"did you mean 'host'\?"),
        ({"engine": "nativ"}, r"did you mean 'native'\?"),
        ({"mode": "thread"}, r"did you mean 'threads'\?"),
        ({"table_free": "x"}, r"\(rcu, irq\)"),
        ({"seq_line": "x"}, r"\(shared, own\)"),
        ({"lookup": "x"}, r"\(walk, latch\)"),
        ({"nodes": 0}, r"nodes must be from 1 to 8, not 0"),
        ({"nodes": 9}, r"nodes must be from 1 to 8, not 9"),
        ({"workers": 0}, r"workers must be from 1 to 512, not 0"),
        ({"workers": 513}, r"from 1 to 512, not 513"),
        ({"workload": "mixed", "workers": 500, "writers": 13}, r"writers must be from 0 to 12"),
        ({"seconds": 0}, r"seconds must be from 0.01 to 3600, not 0"),
        ({"warmup": -1}, r"warm-up seconds must be from 0 to 3600"),
        ({"repeats": 0}, r"repeats must be from 1 to 1000"),
        ({"size": 100}, r"size must be from 4096 to 1099511627776, not 100"),
        ({"areas": 0}, r"areas must be from 1"),
        ({"size": 8192, "pages": 3}, r"pages must be from 1 to 2, not 3"),
        ({"rate": -1}, r"rate must be from 0"),
        ({"fault_overhead_ns": -1}, r"fault overhead \[ns\] must be from 0"),
        ({"writers": 1}, r"page_fault1 has no writers; workloads that have: gup_fast, mixed"),
        ({"overlap": True}, r"no writers that could overlap"),
        ({"workload": "mixed", "writers": 1, "protocol": "bare"}, r"bare takes no lock"),
        ({"workload": "mixed", "workers": 2, "protocol": "bare"}, r"touch the same pages"),
        ({"workload": "mixed", "target": "host", "writers": 1, "overlap": True}, r"SIGSEGV"),
        ({"target": "host", "engine": "plain"}, r"use --engine native"),
        ({"target": "host", "swap": 1 << 20}, r"emulated machine's: use --target emulator"),
        ({"swap": -1}, r"swap must be from 1048576 to"),
        ({"swap": 1}, r"swap must be from 1048576 to 1099511627776, not 1$"),
        ({"memory": 100 << 40}, r"memory must be from \d+ to 1099511627776, not"),
        ({"protocol": "SPF"}, r"did you mean 'spf'\?"),
        ({"memory": 1 << 20}, r"1048576 bytes of memory are too little .* give \d+ or more"),
        (
            {"workload": "page_fault2", "memory": 16 << 20, "swap": 64 << 20},
            r"page_fault2 has in page tables and page cache: give \d+ or more",
        ),
        ({"swap": 1 << 20, "protocol": "bare"}, r"so none can be reclaimed: use another"),
    ],
)
def test_refused(given, message):
    with pytest.raises(UsageError, match=message):
        Plan(**{"workload": "page_fault1", **given})


def test_threads_share_an_mm_and_processes_do_not():
    threads = Plan("mixed", workers=2, writers=3)
    assert (threads.nr_mms, [threads.mm_of(i) for i in range(5)]) == (1, [0] * 5)
    processes = Plan("mixed", workers=2, writers=3, mode="processes")
    assert (processes.nr_mms, [processes.mm_of(i) for i in range(5)]) == (2, [0, 1, 0, 1, 0])


def test_khugepaged_has_a_cpu_an_mm_and_huge_frames():
    alone = Plan("page_fault1", workers=2)
    plan = Plan("page_fault1", workers=2, khugepaged=True)
    assert (plan.nr_cpus, plan.nr_mms) == (3, 2)
    assert plan.role(2).name == "KHUGEPAGED"
    assert plan.config["CONFIG_KTHREADS"] == 1
    # the other frames are as many as without
    assert plan.geometry.nr_small >= alone.geometry.nr_frames
    assert plan.geometry.nr_huge * 512 >= 2 * alone.parameters.size_pages
    assert alone.geometry.nr_huge == 0
    assert Plan("page_fault1", target="host", khugepaged=True).kthreads == ()


def test_a_swap_area_brings_kswapd_with_a_cpu_and_an_mm_of_its_own():
    plan = Plan("page_fault1", workers=2, swap=8 << 20, memory=6 << 20)
    assert (plan.nr_cpus, plan.nr_mms, plan.mm_of(2)) == (3, 2, 1)
    assert plan.role(2).name == "KSWAPD"
    assert (plan.geometry.nr_frames, plan.geometry.nr_swap) == (6 << 8, 8 << 8)
    Plan("page_fault1", memory=Plan("page_fault1").least_memory)


def test_more_workers_than_cpus_is_said():
    available = len(os.sched_getaffinity(0))
    plan = Plan("mmap1", workers=available + 1)
    assert any("share" in note for note in plan.notes())
    assert plan.placement()[-1] == plan.placement()[0]


def test_what_is_not_given_is_the_workloads():
    assert Plan("page_fault1").parameters.size == 16 << 20
    assert Plan("page_fault1", size=8192).parameters.size == 8192
    assert Plan("spf_test").parameters.areas == 10


def test_overhead_of_the_segment_beyond_its_frames():
    geometry = Plan("page_fault1", workers=2).geometry
    assert geometry.size - geometry.nr_frames * 4096 <= 0.03 * geometry.nr_frames * 4096


def test_there_is_an_mm_for_each_cpu_that_may_keep_that_of_a_child():
    plan = Plan("fork1", workers=3, mode="processes")
    assert plan.geometry.nr_spare_mms == 3 + 3
    assert Plan("mmap1").geometry.nr_spare_mms == 0


def test_lists_have_a_line_each():
    for listed in (build.list_workloads(), build.list_protocols()):
        assert listed
        assert all(text and "\n" not in text for text in listed.values())
    assert {"page_fault1", "page_fault1-read", "pft", "mmap1", "brk1", "malloc1", "spf_test",
            "mixed"} <= set(build.list_workloads())  # fmt: skip
    assert {"classic", "spf", "bare"} <= set(build.list_protocols())


def test_only_what_workers_reach_is_compiled():
    host = build.compose("mmap1", target="host")
    assert "worker_loop" in host.functions
    assert "find_vma" not in host.functions


def test_override_that_changes_nothing_here_is_refused(override):
    files = override(
        "@kernel\ndef do_user_addr_fault(cpu: int, address: int, flags: int) -> int:\n"
        "    return 0\n"
    )
    assert "do_user_addr_fault" in build.compose("page_fault1", overrides=files).overridden
    with pytest.raises(KernelSourceError, match=r"override.py:\d+: .* never called"):
        build.compose("mmap1", overrides=files)
