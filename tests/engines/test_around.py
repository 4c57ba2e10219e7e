# SPDX-License-Identifier: MIT
"""Functions marked @around stand around those of their names, in every engine."""

import pytest
import toys

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import KernelSourceError, functions_of, link, load_override
from spfemu.engines.stepped import StepEngine
from spfemu.kernel import proceed
from spfemu.mm import bug, irq, spinlock, vmstat

BASE = [functions_of(m) for m in (bug, vmstat, irq, spinlock, toys)]
HEADER = (
    "from spfemu.kernel import around, kernel, proceed, slowpath\nfrom spfemu.primitives import *\n"
)
ENGINES = (NativeEngine, StepEngine, PlainEngine)
TWICE = """
@around
def never_negative(value: int) -> int:
    return proceed(value + 1) * 2
"""
PLUS_TEN = """
@kernel
def ten() -> int:
    return 10


@around
def never_negative(value: int) -> int:
    result = proceed(value)
    return result + ten()
"""


@pytest.fixture
def layer(tmp_path):
    """Write a file of kernel functions; its path."""

    def write(text):
        path = tmp_path / f"layer{len(list(tmp_path.iterdir()))}.py"
        path.write_text(HEADER + text)
        return str(path)

    return write


@pytest.mark.parametrize("engine", ENGINES)
def test_later_ones_stand_around_earlier_ones(own_cache, layer, engine):
    layers = [load_override(layer(text)) for text in (TWICE, PLUS_TEN)]
    assert engine(link(BASE, {}, wrappers=layers)).call("never_negative", 3) == 18
    assert engine(link(BASE, {}, wrappers=layers[::-1])).call("never_negative", 3) == 28
    assert engine(link(BASE, {})).call("never_negative", 3) == 3


def test_they_stand_around_overrides_and_in_them(layer):
    replaces = layer("@kernel\ndef never_negative(value: int) -> int:\n    return value * 100\n")
    around = layer(TWICE)
    program = link(BASE, {}, [replaces, around], [load_override(layer(PLUS_TEN))])

    assert PlainEngine(program).call("never_negative", 1) == 410
    assert set(program.overridden) == {"never_negative__1", "never_negative__2"}
    assert program.functions["never_negative__1"].file == replaces
    assert program.functions["never_negative__2"].file == around


def test_an_override_of_what_is_stood_around_replaces_both(layer):
    replaces = layer("@kernel\ndef never_negative(value: int) -> int:\n    return value * 100\n")
    program = link(BASE, {}, [layer(TWICE), replaces])
    assert PlainEngine(program).call("never_negative", 1) == 100


def test_one_around_a_function_of_another_program_is_left_out(layer):
    wrapper = load_override(layer("@around\ndef other(cpu: int) -> None:\n    proceed(cpu)\n"))
    assert "other" not in link(BASE, {}, wrappers=[wrapper], elsewhere=["other"]).functions
    with pytest.raises(KernelSourceError, match="'other' is marked @around, and no kernel func"):
        link(BASE, {}, wrappers=[wrapper])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "@around\ndef never_negativ(value):\n    return proceed(value)\n",
            "4: 'never_negativ' is marked @around, and no kernel function; did you mean",
        ),
        (
            "@around\ndef never_negative(values):\n    return proceed(values)\n",
            "4: 'never_negative' must take (value) as in ",
        ),
        (
            "@around\ndef never_negative(value):\n    return value\n",
            "4: 'never_negative' is marked @around and never calls proceed(...): mark it @kernel",
        ),
        (
            "@around\ndef never_negative(value):\n    return proceed()\n",
            "5: 'never_negative__1' takes 1 arguments, not 0",
        ),
        (
            "@kernel\ndef never_negative(value):\n    return value\n",
            "4: 'never_negative' is there already (",
        ),
        (
            "@kernel\ndef mine(value):\n    return proceed(value)\n",
            "5: 'mine' stands around nothing: only what is marked @around proceeds",
        ),
    ],
)
def test_what_cannot_stand_around_is_refused(layer, text, message):
    path = layer(text)
    with pytest.raises(KernelSourceError) as error:
        link(BASE, {}, wrappers=[load_override(path)])
    assert message in str(error.value).replace(path, "mine.py")


def test_the_mark_itself_stays_unbound():
    with pytest.raises(RuntimeError, match="kernel code runs in an engine"):
        proceed(0)
