# SPDX-License-Identifier: MIT
"""Machine code computes what Python computes, and every primitive does the same on all engines."""

import faulthandler
import inspect
import os
import random
import re
import signal

import constructs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import KernelPanic, PlainEngine
from spfemu.engines.source import KernelSourceError, functions_of, link, load_override
from spfemu.engines.stepped import FiberState, StepEngine
from spfemu.layout import PAGE_SIZE
from spfemu.primitives import PRIMITIVES

ENGINES = (NativeEngine, StepEngine, PlainEngine)
INT64 = 1 << 63
HEADER = "from spfemu.kernel import kernel\nfrom spfemu.primitives import *\n"
VALUES = st.integers(-20, 20) | st.integers(-(1 << 20), 1 << 20)


@pytest.fixture(scope="module")
def engines(own_cache):
    program = link([functions_of(constructs)], {"CONFIG_TOY": 1})
    return [engine(program) for engine in ENGINES]


def program_of(directory, source, config=None):
    path = directory / "generated.py"
    path.write_text(HEADER + source)
    return link([load_override(str(path))], config or {})


def arity(name):
    return len(inspect.signature(getattr(constructs, name)).parameters)


PURE = [n for n, f in vars(constructs).items() if hasattr(f, "__kernel__") and
        not {"addr", "cpu"} & set(inspect.signature(f).parameters)]  # fmt: skip


@pytest.mark.parametrize("name", PURE)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_construct_computes_the_same(engines, name, data):
    arguments = [data.draw(VALUES) for _ in range(arity(name))]
    if name in ("sum_range", "last_of_range", "nested_loops"):
        arguments = [a % 50 for a in arguments]
    if name in ("divide", "uses_tuple"):
        arguments[1] %= 20
    expected, *others = (engine.call(name, *arguments) for engine in reversed(engines))
    assert others == [expected, expected]


@pytest.mark.parametrize("name", ["chain_stops", "or_stops"])
@pytest.mark.parametrize("a", [-1, 0, 1, 2])
def test_what_does_not_decide_is_not_evaluated(engines, segment, name, a):
    results = []
    for engine in engines:
        segment.reset()
        results.append(engine.call(name, a, segment.scratch(0)))
    assert results == results[:1] * 3
    assert results[0] % 100 == (a > 0 if name == "chain_stops" else a == 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_build_options_are_compiled_in(own_cache, engine):
    for value in (0, 1):
        program = link([functions_of(constructs)], {"CONFIG_TOY": value})
        assert engine(program).call("configured", 10) == 10 + value


class Word(int):
    """An int that refuses results which do not fit 64 bits, as kernel code must."""

    def __new__(cls, value):
        if not -INT64 <= value < INT64:
            raise OverflowError
        return int.__new__(cls, value)


def _checked(operator):
    def apply(self, other=None):
        ints = (int(self),) if other is None else (int(self), int(other))
        return Word(getattr(int, operator)(*ints))

    return apply


for _name in ("add", "sub", "mul", "floordiv", "mod", "lshift", "rshift", "and", "or", "xor"):
    setattr(Word, f"__{_name}__", _checked(f"__{_name}__"))
    if _name not in ("lshift", "rshift"):
        setattr(Word, f"__r{_name}__", _checked(f"__r{_name}__"))
for _name in ("neg", "invert"):
    setattr(Word, f"__{_name}__", _checked(f"__{_name}__"))


def expression(choose, depth):
    """Return a random expression over a, b, c as text."""
    if depth == 0:
        return choose.choice(
            ["a", "b", "c", "a", "b", "c", str(choose.getrandbits(choose.choice([3, 20, 62])))]
        )
    one, two, three = (expression(choose, choose.randrange(depth)) for _ in range(3))
    positive = choose.choice([1, 2, 3, 7, 4096, 10**12])
    return choose.choice(
        [
            f"({one} {operator} {two})"
            for operator in ["+", "-", "*", "&", "|", "^", "and", "or", "+", "-"]
        ]
        + [f"({one} {operator} {two})" for operator in ["==", "!=", "<", "<=", ">", ">="]]
        + [f"({one} // {positive})", f"({one} % {positive})"] * 2
        + [f"({one} << {choose.randrange(64)})", f"({one} >> {choose.randrange(64)})"]
        + [f"({one} < {two} <= {three})", f"({one} if {two} else {three})"]
        + [f"(-{one})", f"(~{one})", f"(not {one})"]
    )


EXPRESSIONS = [expression(random.Random(seed), 1 + seed % 5) for seed in range(150)]


@pytest.fixture(scope="module")
def expression_engines(own_cache, tmp_path_factory):
    source = "".join(
        f"@kernel\ndef f{i}(a: int, b: int, c: int) -> int:\n    return {text}\n"
        for i, text in enumerate(EXPRESSIONS)
    )
    program = program_of(tmp_path_factory.mktemp("expressions"), source)
    return [engine(program) for engine in ENGINES]


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.integers(-9, 9) | st.integers(-INT64, INT64 - 1)] * 3))
def test_expressions_compute_what_python_computes(expression_engines, arguments):
    names = {"Word": Word} | {n: Word(v) for n, v in zip("abc", arguments, strict=True)}
    for i, text in enumerate(EXPRESSIONS):
        try:
            expected = int(eval(re.sub(r"\b\d+\b", r"Word(\g<0>)", text), {}, names))
        except OverflowError:
            continue
        if not -INT64 <= expected < INT64:  # a comparison's bool adds up unnoticed
            continue
        values = [e.call(f"f{i}", *arguments) for e in expression_engines]
        assert values == [expected] * 3, text


# primitives: name -> arguments as (kind, value); "w" is the first word, "p" and "q" are pages
WORD, ONES = 41, -1
ARGUMENTS = {
    "load": ["w"],
    "read_once": ["w"],
    "smp_load_acquire": ["w"],
    "store": ["w", 7],
    "write_once": ["w", 7],
    "smp_store_release": ["w", 7],
    "xchg": ["w", 7],
    "atomic_fetch_add": ["w", -50],
    "atomic_fetch_add_acquire": ["w", 5],
    "atomic_fetch_add_release": ["w", 5],
    "atomic_fetch_add_relaxed": ["w", INT64 - 1],
    "atomic_fetch_or": ["w", 6],
    "atomic_fetch_and": ["w", 9],
    "cmpxchg": ["w", WORD, 7],
    "cmpxchg_acquire": ["w", WORD, 7],
    "cmpxchg_release": ["w", WORD, 7],
    "cmpxchg_relaxed": ["w", WORD, 7],
    "smp_mb": [],
    "smp_rmb": [],
    "smp_wmb": [],
    "cpu_relax": [],
    "futex_wait": ["w", WORD, 1000],
    "futex_wake": ["w", 3],
    "clear_page": ["p"],
    "copy_page": ["p", "q"],
    "raw_syscall": [-1, 0, 0, 0, 0, 0, 0],
}
EXPECTED = {"futex_wait": -110, "futex_wake": 0, "raw_syscall": -38}
FAILING = [
    ("futex_wait", ["w", WORD + 1, 1000], -11),
    ("cmpxchg", ["w", WORD + 1, 7], WORD),
    ("cmpxchg_acquire", ["w", WORD + 1, 7], WORD),
    ("cmpxchg_release", ["w", WORD + 1, 7], WORD),
    ("cmpxchg_relaxed", ["w", WORD + 1, 7], WORD),
]


@pytest.fixture(scope="module")
def primitive_engines(own_cache, tmp_path_factory):
    source = ""
    for name, declared in PRIMITIVES.items():
        parameters = list(inspect.signature(declared).parameters)
        typed = ", ".join(f"{p}: int" for p in parameters)
        void = declared.__annotations__["return"] == "None"
        source += f"@kernel\ndef use_{name}({typed}):\n"
        source += f"    {'' if void else 'return '}{name}({', '.join(parameters)})\n"
    program = program_of(tmp_path_factory.mktemp("primitives"), source)
    return [engine(program) for engine in ENGINES]


def use(engines, segment, name, arguments):
    """Result and memory afterwards, by engine."""
    outcomes = []
    for engine in engines:
        segment.reset()
        frames = segment.address["frames"]
        places = {
            "w": segment.scratch(0),
            "p": frames + PAGE_SIZE * 20,
            "q": frames + PAGE_SIZE * 21,
        }
        first = (frames - segment.base) // 8 + 20 * 512
        segment.words[first : first + 1024] = np.arange(1024)
        segment.words[(places["w"] - segment.base) // 8] = WORD
        result = engine.call("use_" + name, *[places.get(a, a) for a in arguments])
        outcomes.append((result, segment.words.tobytes()))
    return outcomes


def test_every_primitive_is_compared():
    assert {*ARGUMENTS, "panic", "read_cycles", "this_cpu"} == set(PRIMITIVES)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_primitive_has_the_same_effect(primitive_engines, segment, name):
    outcomes = use(primitive_engines, segment, name, ARGUMENTS[name])
    assert outcomes == outcomes[:1] * 3
    void = PRIMITIVES[name].__annotations__["return"] == "None"
    assert outcomes[0][0] == EXPECTED.get(name, 0 if void else WORD)


@pytest.mark.parametrize(("name", "arguments", "expected"), FAILING)
def test_primitives_fail_the_same(primitive_engines, segment, name, arguments, expected):
    outcomes = use(primitive_engines, segment, name, arguments)
    assert outcomes == outcomes[:1] * 3
    assert outcomes[0][0] == expected
    assert segment.word(segment.scratch(0)) == WORD


def test_the_cycle_counter_goes_up(primitive_engines):
    for engine in primitive_engines:
        first = engine.call("use_read_cycles")
        assert engine.call("use_read_cycles") > first


def test_this_cpu_is_that_with_which_the_engine_was_called(own_cache, tmp_path):
    source = "@kernel\ndef f(cpu: int) -> int:\n    return g(cpu + 1)\n"
    source += "@kernel\ndef g(value: int) -> int:\n    return this_cpu() * 1000 + value\n"
    for make in ENGINES:
        engine = make(program_of(tmp_path, source))
        assert engine.call("f", 5) == 5006
        assert engine.call("f", 6) == 6007


def test_fibers_keep_their_cpus(own_cache, tmp_path):
    source = "@kernel\ndef f(cpu: int) -> int:\n    smp_mb()\n    return this_cpu()\n"
    engine = StepEngine(program_of(tmp_path, source))
    fibers = [engine.spawn("f", number) for number in (5, 6)]
    while not all(fiber.state is FiberState.DONE for fiber in fibers):
        for fiber in fibers:
            fiber.resume()
    assert [fiber.result for fiber in fibers] == [5, 6]


def test_a_panic_stops_the_cpu(primitive_engines):
    native, stepped, plain = primitive_engines
    for engine in (stepped, plain):
        with pytest.raises(KernelPanic, match="kernel assertion 199 failed") as error:
            engine.call("use_panic", 199)
        assert error.value.code == 199
    child = os.fork()
    if child == 0:
        native.call("use_panic", 199)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 199


def test_an_access_at_address_0_traps(own_cache, tmp_path):
    source = "@kernel\ndef f(bad: int) -> int:\n    if bad:\n        store(0, 1)\n    return 5\n"
    engine = NativeEngine(program_of(tmp_path, source))
    assert engine.call("f", 0) == 5
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        engine.call("f", 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV


def test_a_shift_looks_at_six_bits_of_a_variable(own_cache, tmp_path):
    source = "@kernel\ndef f(a: int, n: int) -> int:\n    return (a << n) + (a >> n)\n"
    engine = NativeEngine(program_of(tmp_path, source))
    assert [engine.call("f", 3, n) for n in (0, 1, 64, 65, -63)] == [6, 7, 6, 7, 7]


REFUSED = [
    ("a = b = 1", "assign to one target at a time"),
    ("store.x = 1", "only locals may be assigned"),
    ("a, b = 1, 2, 3", "3 results cannot fill 2 names"),
    ("a, b = load(0)", "the right side is not a tuple"),
    ("a = pair()", "a tuple must be assigned to as many names"),
    ("a, b, c = pair()", "2 results cannot fill 3 names"),
    ("a = 1 // 0", "// and % need a positive constant on the right"),
    ("a = 1\n    b = 7 % a", "// and % need a positive constant on the right"),
    ("a = 1 << 64", "a shift is by 0 to 63 bits, not 64"),
    ("a = 1\n    b = a >> 99", "a shift is by 0 to 63 bits, not 99"),
    ("a = (1, 2)", "Tuple is outside the restricted style"),
    ("for i in range(1, 9, 2):\n        pass", "range takes a start and an end only"),
    ("a = 1\n    for i in a:\n        pass", "'for' goes over range"),
    ("for i, j in range(2):\n        pass", "'for' takes one plain name"),
    ("while load(0):\n        pass\n    else:\n        pass", "'else' of a loop is outside"),
    ("a = range(3)", "range stands in 'for' only"),
    ("a = kernel", "'kernel' is not an integer constant"),
    ("a = kernel.nosuch", "'kernel' has no 'nosuch'"),
]


@pytest.mark.parametrize(("statement", "message"), REFUSED)
def test_what_machine_code_cannot_say_is_refused_with_its_line(
    own_cache, tmp_path, statement, message
):
    source = f"@kernel\ndef pair():\n    return 1, 2\n@kernel\ndef f():\n    {statement}\n"
    with pytest.raises(KernelSourceError) as error:
        NativeEngine(program_of(tmp_path, source))
    line = (
        HEADER.count("\n")
        + 6
        + statement.split(":")[0].count("\n    b")
        + (1 if "for i in a" in statement else 0)
    )
    assert str(error.value).startswith(f"{tmp_path}/generated.py:{line}: ")
    assert message in str(error.value)
