# SPDX-License-Identifier: MIT
"""The plain engine runs the functions as Python, so that tools for Python work on them."""

import pickle
import sys

import pytest
import toys

from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.source import link, load_override


@pytest.fixture(scope="module")
def plain(toy_program):
    return PlainEngine(toy_program)


def test_functions_compute_and_touch_the_segment(plain, segment):
    pair = segment.scratch(0)
    assert plain.call("pair_write", pair, 7) == 0
    assert plain.call("pair_read", pair) == (1, 7, 7)
    assert segment.word(pair) == 2


def test_a_failed_assertion_is_an_exception(plain):
    with pytest.raises(KernelPanic, match=r"kernel assertion 70 \(REFCOUNT_UNDERFLOW\) failed"):
        plain.call("never_negative", -1)
    assert KernelPanic(200).code == 200
    assert str(KernelPanic(200)) == "kernel assertion 200 failed"


def test_a_failed_assertion_goes_through_a_pipe():
    sent = pickle.loads(pickle.dumps(KernelPanic(70)))
    assert (sent.code, str(sent)) == (70, str(KernelPanic(70)))


def test_the_marked_functions_themselves_stay_unbound():
    with pytest.raises(RuntimeError, match="kernel code runs in an engine"):
        toys.add_unlocked(0)


def test_debuggers_see_the_source_lines(plain, segment):
    lines = []

    def trace(frame, event, _argument):
        if frame.f_code.co_filename == toys.__file__ and event == "line":
            lines.append(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        plain.call("add_unlocked", segment.scratch(0))
    finally:
        sys.settrace(None)
    assert len(lines) == 3
    assert lines == sorted(lines)


def test_two_engines_have_constants_and_overrides_of_their_own(tmp_path):
    path = tmp_path / "base.py"
    path.write_text(
        "from spfemu.kernel import kernel\nCONFIG_A = 1\n"
        "@kernel\ndef one():\n    return CONFIG_A\n@kernel\ndef two():\n    return one() * 10\n"
    )
    mine = tmp_path / "mine.py"
    mine.write_text("from spfemu.kernel import kernel\n@kernel\ndef one():\n    return 7\n")
    base = load_override(str(path))
    engines = [
        PlainEngine(link([base], {"CONFIG_A": 2})),
        PlainEngine(link([base], {"CONFIG_A": 3})),
        PlainEngine(link([base], {}, [str(mine)])),
    ]
    assert [engine.call("two") for engine in engines] == [20, 30, 70]
