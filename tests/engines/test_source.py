# SPDX-License-Identifier: MIT
"""What cannot be linked is refused with file, line and reason."""

import hashlib
from pathlib import Path

import pytest
import toys

from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import (
    MAX_DEPTH,
    KernelSourceError,
    functions_of,
    link,
    load_override,
)
from spfemu.mm import bug, irq, spinlock, vmstat

BASE = [functions_of(m) for m in (bug, vmstat, irq, spinlock, toys)]
HEADER = "from spfemu.kernel import kernel, slowpath\nfrom spfemu.primitives import *\n"
FIRST = HEADER.count("\n") + 1


def override(directory, text, name="mine.py", header=HEADER):
    path = directory / name
    path.write_text(header + text)
    return str(path)


def test_an_override_replaces_a_function_for_its_callers(tmp_path, segment):
    path = override(tmp_path, "@kernel\ndef mutex_lock(lock: int) -> None:\n    store(lock, 5)\n")
    program = link(BASE, {}, [path])

    assert program.overridden == ("mutex_lock",)
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert program.files == ((path, digest),)
    PlainEngine(program).call("add_locked", segment.scratch(0), segment.scratch(1))
    assert segment.word(segment.scratch(0)) == 0
    assert PlainEngine(program).call("mutex_lock", segment.scratch(0)) == 0
    assert segment.word(segment.scratch(0)) == 5


def test_an_override_may_add_functions_that_it_calls(tmp_path):
    path = override(
        tmp_path,
        "@slowpath\ndef helper(value: int) -> int:\n    return value + 1\n"
        "@kernel\ndef never_negative(value: int) -> int:\n    return helper(value)\n",
    )
    program = link(BASE, {}, [path])
    assert PlainEngine(program).call("never_negative", -5) == -4
    assert program.functions["helper"].slowpath


def test_the_last_override_wins(tmp_path):
    text = "@kernel\ndef never_negative(value: int) -> int:\n    return {}\n"
    paths = [override(tmp_path, text.format(i), f"o{i}.py") for i in (1, 2)]
    assert PlainEngine(link(BASE, {}, paths)).call("never_negative", 0) == 2


CALLER = """
@kernel
def caller(value: int) -> int:
    return never_negative(value)


@kernel
def never_negative(value: int) -> int:
    {}
"""


def test_what_was_checked_is_checked_again_with_other_callees(tmp_path):
    mine = load_override(override(tmp_path, CALLER.format("return value")))
    for _ in range(2):
        program = link([*BASE, mine], {})
        assert program.functions["caller"].calls == ("never_negative",)
    other = load_override(override(tmp_path, CALLER.format("return value, 1"), "other.py"))
    link([*BASE, mine, {"never_negative": other["never_negative"]}], {})
    nothing = load_override(override(tmp_path, CALLER.format("pass"), "nothing.py", HEADER))
    with pytest.raises(KernelSourceError, match="'never_negative' returns nothing"):
        link([*BASE, mine, {"never_negative": nothing["never_negative"]}], {})
    assert link([*BASE, mine], {}).functions["never_negative"].results == 1


def test_callees_come_before_callers():
    program = link(BASE, {})
    order = {name: i for i, name in enumerate(program.functions)}
    for function in program.functions.values():
        assert all(order[callee] < order[function.name] for callee in function.calls)


def refused(directory, text, header=HEADER):
    """Return the message with which an override is refused."""
    path = override(directory, text, header=header)
    with pytest.raises(KernelSourceError) as error:
        link(BASE, {}, [path])
    return str(error.value).replace(path, "mine.py")


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path):
    text = "@kernel\ndef mutex_lokc(lock: int) -> None:\n    store(lock, 5)\n"
    assert refused(tmp_path, text) == (
        f"mine.py:{FIRST + 1}: 'mutex_lokc' replaces no kernel function and none calls it; "
        "did you mean 'mutex_lock'?"
    )


def test_other_parameters_are_refused(tmp_path):
    message = refused(tmp_path, "@kernel\ndef mutex_lock(cpu: int, lock: int) -> None:\n    pass\n")
    assert message.startswith(f"mine.py:{FIRST + 1}: 'mutex_lock' must take (lock) as in ")
    assert message.endswith("not (cpu, lock)")
    assert "toys.py:" in message


def test_a_file_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(KernelSourceError, match=r"absent\.py: cannot read the override: .*No such"):
        load_override(str(tmp_path / "absent.py"))


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "mine.py"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KernelSourceError, match=r"mine\.py: this override is no Python source"):
        load_override(str(path))


def test_a_syntax_error_is_refused_with_its_line(tmp_path):
    assert refused(tmp_path, "\n\ndef f(:\n") == f"mine.py:{FIRST + 2}: invalid syntax"


def test_a_file_that_raises_is_refused_with_its_line(tmp_path):
    message = refused(tmp_path, "import nosuchmodule\n")
    assert message == (
        f"mine.py:{FIRST}: the override does not load: ModuleNotFoundError: "
        "No module named 'nosuchmodule'"
    )


def test_a_file_that_ends_the_program_is_refused_with_its_line(tmp_path):
    message = refused(tmp_path, "raise SystemExit(9)\n")
    assert message == f"mine.py:{FIRST}: the override does not load: SystemExit: 9"


def test_a_function_that_never_returns_is_refused(tmp_path):
    text = "@kernel\ndef never_negative(value):\n    while True:\n        cpu_relax()\n"
    assert refused(tmp_path, text) == f"mine.py:{FIRST + 1}: 'never_negative' never returns"


def test_a_file_without_marked_functions_is_refused(tmp_path):
    message = refused(tmp_path, "def mutex_lock(lock):\n    pass\n")
    assert message.startswith("mine.py:1: defines no kernel function; mark")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("if True:\n    @kernel\n    def f(a):\n        return a\n", 1),
        ("@kernel\ndef f(a):\n    return a\ng = f\n", 0),
        ("f = kernel(lambda a: a)\n", 0),
    ],
)
def test_a_function_that_is_not_simply_defined_is_refused(tmp_path, text, line):
    message = refused(tmp_path, text)
    assert message.startswith(f"mine.py:{FIRST + line}: '")
    assert "must be defined by a 'def' of that name at the top level" in message


@pytest.mark.parametrize(
    ("body", "line", "reason"),
    [
        ("with a:\n        pass", 0, "'with' is outside the restricted style"),
        ("import os", 0, "'import' is outside the restricted style"),
        ("try:\n        pass\n    finally:\n        pass", 0, "'try' is outside"),
        ("assert a", 0, "'assert' is outside the restricted style"),
        ("a = [1]", 0, "List expressions are outside the restricted style"),
        ("b = 1\n    c = {b: 1}", 1, "Dict expressions are outside the restricted style"),
        ("a = lambda: 1", 0, "Lambda expressions are outside the restricted style"),
        ("a = (b := 1)", 0, "NamedExpr expressions are outside the restricted style"),
        ("b = 1\n    c = a / b", 1, "operator Div is outside the restricted style"),
        ("a = a ** 2", 0, "operator Pow is outside the restricted style"),
        ("b = 1\n    if a is b:\n        pass", 1, "operator Is is outside the restricted style"),
        ("b = 1\n    c = +a", 1, "operator UAdd is outside the restricted style"),
        ("b = 1\n    b /= 2", 1, "operator Div is outside the restricted style"),
        ("if a:\n        b = 1\n    a = b", 2, "'b' may be read before it is assigned"),
        ("while a:\n        b = 1\n        break\n    a = b", 3, "'b' may be read before it is"),
        ("for i in range(a):\n        b = i\n    a = b", 2, "'b' may be read before it is"),
        ("for i in range(a):\n        pass\n    a = i", 2, "'i' may be read before it is"),
        ("b += a", 0, "'b' may be read before it is assigned"),
        ("while True:\n        if a:\n            break\n        b = 1\n    a = b", 4, "'b' may"),
        ("a = 1.5", 0, "1.5 is not an integer"),
        ("a = None", 0, "None is not an integer"),
        ("a = 1 << 63", None, None),
        ("a = 9223372036854775808", 0, "9223372036854775808 does not fit 64 bits"),
        ("a = nosuch", 0, "name 'nosuch' is not defined"),
        ("alpha = 1\n    c = alhpa", 1, "name 'alhpa' is not defined; did you mean 'alpha'?"),
        ("a = len", 0, "'len' is outside the restricted style"),
        ("a = print(1)", 0, "'print' is no kernel function or primitive"),
        ("a = reed_once(a)", 0, "is no kernel function or primitive; did you mean 'read_once'?"),
        ("a = kernel.mark(a)", 0, "only kernel functions and primitives may be called, by name"),
        ("a = load(addr=a)", 0, "'load' must be called with positional arguments"),
        ("a = load(*a)", 0, "'load' must be called with positional arguments"),
        ("a = load(a, a)", 0, "'load' takes 1 arguments, not 2"),
        ("mutex_lock(a, a)", 0, "'mutex_lock' takes 1 arguments, not 2"),
        ("a = store(a, 1)", 0, "'store' returns nothing that could be used"),
        ("if mutex_lock(a):\n        pass", 0, "'mutex_lock' returns nothing that could be used"),
    ],
)
def test_what_is_outside_the_restricted_style_is_refused(tmp_path, body, line, reason):
    text = f"@kernel\ndef never_negative(value):\n    a = value\n    {body}\n    return a\n"
    if reason is None:
        link(BASE, {}, [override(tmp_path, text)])
        return
    message = refused(tmp_path, text)
    assert message.startswith(f"mine.py:{FIRST + 3 + line}: ")
    assert reason in message


@pytest.mark.parametrize(
    "signature", ["value: int = 3", "*value", "**value", "*, value", "value, /"]
)
def test_only_plain_parameters_are_taken(tmp_path, signature):
    message = refused(tmp_path, f"@kernel\ndef never_negative({signature}):\n    return 1\n")
    assert "'never_negative' may take plain parameters only" in message


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ("if value:\n        return 1", "0 or 1"),
        ("if value:\n        return 1\n    else:\n        return 1, 2", "1 or 2"),
        ("if value:\n        return\n    return 1", "0 or 1"),
        ("while value:\n        return 1", "0 or 1"),
        ("while True:\n        if value:\n            break\n        return 1", "0 or 1"),
        ("for i in range(value):\n        return i", "0 or 1"),
    ],
)
def test_every_path_returns_as_many_results(tmp_path, body, numbers):
    message = refused(tmp_path, f"@kernel\ndef never_negative(value):\n    {body}\n")
    assert message == (
        f"mine.py:{FIRST + 1}: 'never_negative' must return the same number of results on every "
        f"path, not {numbers}"
    )


@pytest.mark.parametrize(("body", "given"), [("pass", "nothing"), ("return 1, 2", "2 integers")])
def test_a_function_returns_what_the_replaced_one_does(tmp_path, body, given):
    message = refused(tmp_path, f"@kernel\ndef never_negative(value):\n    {body}\n")
    assert message.startswith(
        f"mine.py:{FIRST + 1}: 'never_negative' must return one integer as in "
    )
    assert message.endswith(f", not {given}")


@pytest.mark.parametrize(
    "body",
    [
        "while True:\n        while value:\n            break\n        return 1",
        "while 1:\n        if value:\n            return 2",
        "if value:\n        return 1\n    else:\n        return 2",
        "if value:\n        return 1\n    elif value > 3:\n        return 3\n    return 2",
        "if value:\n        a = 1\n    else:\n        a = 2\n    return a",
        "if value:\n        return 1\n    else:\n        a = 2\n    return a",
        "while True:\n        a = 3\n        if value:\n            break\n    return a",
        "for i in range(3):\n        a = i\n        if a:\n            return a\n    return 0",
    ],
)
def test_paths_that_all_return_and_assign_are_fine(tmp_path, body):
    text = f"@kernel\ndef never_negative(value):\n    {body}\n"
    program = link(BASE, {}, [override(tmp_path, text)])
    assert program.functions["never_negative"].results == 1


def test_recursion_is_refused_with_its_cycle(tmp_path):
    text = (
        "@kernel\ndef helper(value):\n    return never_negative(value)\n"
        "@kernel\ndef never_negative(value):\n    return helper(value)\n"
    )
    message = refused(tmp_path, text)
    assert message.startswith(f"mine.py:{FIRST + 4}: recursion: ")
    assert "never_negative -> helper -> never_negative" in message


def test_calls_that_nest_too_deep_are_refused(tmp_path):
    text = "".join(f"@kernel\ndef f{i}(a):\n    return f{i + 1}(a)\n" for i in range(MAX_DEPTH + 5))
    text += f"@kernel\ndef f{MAX_DEPTH + 5}(a):\n    return a\n"
    text += "@kernel\ndef never_negative(value):\n    return f0(value)\n"
    assert f"calls nest deeper than {MAX_DEPTH}" in refused(tmp_path, text)
