# SPDX-License-Identifier: MIT
"""Override files of random text and of random functions: refused in one line, or compiled.

An override is code, and its module runs.  So what is random stands inside functions, which are
compiled for engines and not run; text that is random altogether hardly parses.
"""

import random

import base_kernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spfemu.engines.native import NativeEngine
from spfemu.engines.source import KernelSourceError, functions_of, link
from spfemu.engines.stepped import StepEngine

HEADER = """from enum import IntEnum
from spfemu.kernel import around, kernel, noinstr, proceed, slowpath
from spfemu.layout import CPU, VMA
from spfemu.primitives import *
ONE, HUGE, TEXT, FLOAT = 1, 1 << 80, "x", 0.5
class Kind(IntEnum):
    A = 3
"""
NAMES = ("a", "b", "c", "ONE", "HUGE", "TEXT", "FLOAT", "Kind.A", "Kind.B", "VMA.vm_flags", "nope")
CALLS = (
    *("pair", "note", "entry", "load", "store", "cmpxchg", "smp_mb", "cpu_relax", "futex_wait"),
    *("print", "int", "range", "nope", "proceed", "a", "extra", "VMA.vm_flags", "copy_page"),
)
BINARY = [*"+-*%&|^<>/@", "//", "<<", ">>", "and", "or", "==", "!=", "<=", ">=", "**", "is", "in"]
ODD = (
    *("'text'", "1.5", "None", "True", "b''", "...", "f'{a}'", "[a, b]", "{a: b}", "(a, b)", "()"),
    *("lambda: a", "[x for x in a]", "a[b]", "a.b", "(c := a)", "(yield)", "(await a)", "*a", "1j"),
)


def expression(r, depth):
    """Text of an expression, mostly within the restricted style."""
    if depth == 0 or r.random() < 0.2:
        number = str(r.getrandbits(r.choice([1, 3, 20, 62, 64, 90])))
        return r.choice([number, r.choice(NAMES), r.choice("abc"), r.choice("abc")])
    if r.random() < 0.04:
        return r.choice(ODD)
    one, two = expression(r, depth - 1), expression(r, depth - 1)
    return r.choice(
        [
            f"({one} {r.choice(BINARY)} {two})",
            f"({one} {r.choice(BINARY[:9])} {two})",
            f"({r.choice(['-', '~', 'not ', '+'])}{one})",
            f"({one} < {two} <= a)",
            f"({one} if {two} else b)",
            f"{r.choice(CALLS)}({', '.join(expression(r, 0) for _ in range(r.randrange(4)))})",
        ]
    )


def statement(r, depth, indent):
    """Lines of a statement."""
    e = expression(r, 2)
    simple = [
        *(f"c = {e}", f"a += {e}", f"{r.choice('abc')} = {e}", f"return {e}", f"return {e}, a"),
        *("return", "pass", f"c, b = pair(a, {expression(r, 0)})", f"note(a, {e})", e),
        *("break", "continue", f"a //= {expression(r, 0)}", "a = b = c", f"c: int = {e}"),
    ]
    odd = [
        *("import os", "global a", "del a", "assert a", "raise a", "nonlocal a", f"a, *b = {e}"),
        *("try: pass\n    finally: pass", "with a: pass", "def f(): pass", "class C: pass"),
        *(f"for c, b in range({e}): pass", f"for c in {e}: pass", "ONE = 2", "a.b = 1", "a[0] = 1"),
    ]
    if depth == 0 or r.random() < 0.5:
        text = r.choice(odd) if r.random() < 0.05 else r.choice(simple)
        return [" " * indent + line.strip() for line in text.split("\n")]
    bounds = ", ".join(expression(r, 1) for _ in range(r.choice([1, 1, 2, 2, 3])))
    head = r.choice([f"if {e}:", f"while {e}:", "while True:", f"for c in range({bounds}):"])
    lines = [" " * indent + head, *block(r, depth - 1, indent + 4)]
    if r.random() < 0.4:
        lines += [" " * indent + "else:", *block(r, depth - 1, indent + 4)]
    return lines


def block(r, depth, indent):
    return [line for _ in range(r.randrange(1, 4)) for line in statement(r, depth, indent)]


def function(r):
    """Text of a marked function, mostly one that replaces another."""
    mark = r.choice(["@kernel", "@kernel", "@kernel", "@slowpath", "@around", "@noinstr\n@kernel"])
    name = r.choice(["pair", "note", "entry", "entry", "extra"])
    odd = ["a", "a: int, b: int = 1", "*a", "b: int, a: int", "a: int, *, b: int", ""]
    parameters = r.choice(odd) if r.random() < 0.1 else "a: int, b: int"
    body = "\n".join(block(r, 2, 4))
    end = "" if r.random() < 0.2 else "\n    return a, b" if name == "pair" else "\n    return 1"
    head = f"{mark}\ndef {name}({parameters}) -> int:\n    c = a\n"
    return head + body + ("" if name == "note" else end) + "\n"


def use(path):
    """Compile a program with the override; the error that refuses it, or nothing."""
    try:
        program = link([functions_of(base_kernel)], {}, [str(path)])
        for engine in (NativeEngine, StepEngine):
            engine(program)
    except KernelSourceError as error:
        message = str(error)
    else:
        return ""
    assert "\n" not in message
    assert str(path) in message
    return message


def test_random_functions_are_refused_or_compiled(own_cache, tmp_path):
    path = tmp_path / "override.py"
    refused = []

    @settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
    @given(st.integers(0, 1 << 40))
    def change(seed):
        r = random.Random(seed)
        path.write_text(HEADER + "\n\n".join(function(r) for _ in range(r.choice([1, 1, 2]))))
        refused.append(use(path))

    change()
    assert "" in refused
    assert len(set(refused)) > 5


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=30) | st.binary(max_size=30))
def test_random_text_is_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("overrides") / "override.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    assert use(path)
