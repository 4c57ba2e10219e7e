# SPDX-License-Identifier: MIT
"""Results are put into curves, and rates of success are what the events say."""

from spfemu.report import series


def test_curves_keep_their_order_with_the_host_last(build_point):
    points = [build_point(n, w, 1e6) for n in ("host", "spf", "classic") for w in (2, 1)]
    curves = series.group(points)
    assert [c.name for c in curves] == ["spf", "classic", "host"]
    assert [[p.workers for p in c.points] for c in curves] == [[1, 2]] * 3


def test_points_with_more_workers_than_cores_are_no_part_of_a_curve(build_point):
    points = [build_point("spf", 1, 1e6), build_point("spf", 4, 1e6, oversubscribed=True)]
    (curve,) = series.group(points)
    assert [p.workers for p in curve.curve] == [1]
    assert [p.workers for p in curve.crowded] == [4]
    assert curve.one_worker is points[0]


def test_success_needs_attempts(build_point):
    assert series.attempts_of(build_point("classic", 1, 1e6)) is None
    speculation = series.attempts_of(build_point("spf", 1, 1e6))
    assert (speculation.how, speculation.count, speculation.success) == ("speculation", 1000, 0.996)
    assert speculation.reasons == {"PMD": 3, "PUD": 1}


def test_attempts_under_the_lock_of_a_vma(build_point):
    events = {
        "VMA_LOCK_ATTEMPT": 200,
        "VMA_LOCK_SUCCESS": 190,
        "VMA_LOCK_MISS": 9,
        "VMA_LOCK_ABORT": 7,
        "VMA_LOCK_ABORT_SEQ": 3,
        "VMA_LOCK_ABORT_ANON_VMA": 4,
        "VMA_LOCK_RETRY": 2,
        "VMA_LOCK_ACCESS_ERROR": 1,
    }
    found = series.attempts_of(build_point("vma-lock", 1, 1e6, events=events))
    assert (found.how, found.count, found.success) == ("VMA lock", 200, 0.95)
    assert list(found.reasons.items()) == [
        ("ANON_VMA", 4), ("SEQ", 3), ("RETRY", 2), ("ACCESS_ERROR", 1),
    ]  # fmt: skip


def test_operations_are_compared_where_there_are_no_faults(build_point, build_report):
    faults = build_report([build_point("spf", 1, 1e6)])
    none = build_report(
        [
            build_point(
                "spf", 1, 0.0, operations_per_second=build_point("spf", 1, 5.0).faults_per_second
            )
        ]
    )
    assert series.quantity(faults) == "faults_per_second"
    assert series.quantity(none) == "operations_per_second"
    assert series.rate_of(none.results[0], series.quantity(none)).median == 5.0
