# SPDX-License-Identifier: MIT
"""Collect marked kernel functions, apply overrides, check the restricted style.

The outcome is a `Program`: every function by name, callees before callers, each with its syntax
tree and the constants that it names.  Both the compiler and the plain engine start from it.
"""

from __future__ import annotations

import ast
import copy
import hashlib
import sys
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from spfemu.engines import style
from spfemu.errors import UsageError, nearest
from spfemu.primitives import PRIMITIVES

MAX_DEPTH = 60


class KernelSourceError(UsageError):
    """A kernel function or override cannot be used; the message has file, line and reason."""


@dataclass
class KernelFunction:
    """One marked function: its tree, its module's names, where it stands."""

    name: str
    tree: ast.FunctionDef
    python: Callable[..., Any]
    file: str
    slowpath: bool = False
    around: bool = False
    noinstr: bool = False
    notrace: bool = False
    inner: str = ""  # of one that stands around another: what it calls by `proceed`
    calls: tuple[str, ...] = ()
    primitives: frozenset[str] = frozenset()
    results: int = 0  # 0: none, 1: one integer, n: a tuple

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(a.arg for a in self.tree.args.args)

    @property
    def module_names(self) -> dict[str, Any]:
        """Global names as the function's own module sees them."""
        return self.python.__globals__

    def error(self, node: ast.AST, reason: str) -> KernelSourceError:
        """Build the error for a place inside this function."""
        return KernelSourceError(f"{self.file}:{getattr(node, 'lineno', 0)}: {reason}")


@dataclass
class Program:
    """Everything that one engine runs."""

    functions: dict[str, KernelFunction]
    config: dict[str, int]
    overridden: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    """Override files, each with the SHA-256 of what it held when it was read."""
    primitives: Mapping[str, Callable[..., Any]] = field(default_factory=lambda: PRIMITIVES)


_read: WeakKeyDictionary[types.ModuleType, dict[str, KernelFunction]] = WeakKeyDictionary()


def functions_of(module: types.ModuleType) -> dict[str, KernelFunction]:
    """Return the kernel functions that `module` itself defines, by name; its file is read once."""
    if module not in _read:
        _read[module] = _read_functions(module)
    return {name: replace(function) for name, function in _read[module].items()}


def _read_functions(module: types.ModuleType) -> dict[str, KernelFunction]:
    file = str(module.__file__)
    trees = {
        node.name: node
        for node in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for name, value in vars(module).items():
        kind = getattr(value, "__kernel__", None)
        if kind and value.__module__ == module.__name__:
            if name not in trees:
                raise KernelSourceError(
                    f"{file}:{value.__code__.co_firstlineno}: '{name}' must be defined by a 'def' "
                    "of that name at the top level of its file"
                )
            found[name] = KernelFunction(
                name,
                trees[name],
                value,
                file,
                slowpath=kind == "slowpath",
                around=kind == "around",
                noinstr=getattr(value, "__noinstr__", False),
                notrace=getattr(value, "__notrace__", False),
            )
    return found


def load_override(path: str) -> dict[str, KernelFunction]:
    """Execute the override file at `path` and return its kernel functions.

    An override is code and runs as such.  Raises KernelSourceError if it cannot be read or run,
    or marks no function.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise KernelSourceError(
            f"{path}: this override is a folder, not a file: give its files one by one"
        ) from None
    except UnicodeDecodeError as error:
        raise KernelSourceError(
            f"{path}: this override is no Python source in UTF-8: {error.reason} at byte "
            f"{error.start}"
        ) from error
    except OSError as error:
        raise KernelSourceError(f"{path}: cannot read the override: {error.strerror}") from error
    name = "spfemu_override_" + "".join(c if c.isalnum() else "_" for c in str(file.resolve()))
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(text, str(file), "exec"), module.__dict__)
    except SyntaxError as error:
        raise KernelSourceError(f"{path}:{error.lineno}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        trace = error.__traceback__
        line = 0
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise KernelSourceError(
            f"{path}:{line}: the override does not load: {type(error).__name__}: {error}"
        ) from error
    found = functions_of(module)
    if not found:
        raise KernelSourceError(
            f"{path}:1: defines no kernel function; mark the functions that replace kernel "
            "functions with @kernel (from spfemu.kernel import kernel)"
        )
    return found


def link(
    layers: Iterable[Mapping[str, KernelFunction]],
    config: Mapping[str, int],
    overrides: Iterable[str] = (),
    wrappers: Iterable[Mapping[str, KernelFunction]] = (),
    elsewhere: Collection[str] = (),
) -> Program:
    """Put layers of functions over each other, the override files, the wrappers; check the whole.

    A later layer replaces functions of the earlier ones by name; those marked `around` stand
    around them instead, later ones around earlier ones.  Wrappers replace nothing: what they hold
    is marked `around` or has a name of its own, and all of it counts as `noinstr`.  One around a
    function that this program does not have is left out if its name is among those `elsewhere`.
    Raises KernelSourceError.
    """
    functions: dict[str, KernelFunction] = {}
    for layer in layers:
        functions.update(layer)
    files: list[tuple[str, str]] = []
    added: list[KernelFunction] = []
    replaced: list[str] = []
    for path in overrides:
        loaded = load_override(path)
        files.append((path, hashlib.sha256(Path(path).read_bytes()).hexdigest()))
        for name, new in loaded.items():
            if new.around:
                _stand_around(functions, new, replaced)
                replaced.append(name)
            elif name in functions:
                _same_parameters(functions[name], new)
                _same_results(functions[name], new)
                functions[name] = new
                replaced.append(name)
            else:
                functions[name] = new
                added.append(new)
    for layer in wrappers:
        for name, declared in layer.items():
            new = replace(declared, noinstr=True)
            if not new.around:
                _add(functions, new)
            elif name in functions or name not in elsewhere:
                _stand_around(functions, new, replaced)
    style.check(functions)
    called = {callee for f in functions.values() for callee in f.calls}
    for new in added:
        if new.name not in called:
            close = nearest(new.name, functions)
            raise new.error(
                new.tree, f"'{new.name}' replaces no kernel function and none calls it{close}"
            )
    ordered = _callees_first(functions)
    return Program(ordered, dict(config), tuple(replaced), tuple(files))


def _stand_around(
    functions: dict[str, KernelFunction], new: KernelFunction, replaced: list[str]
) -> None:
    """Put `new` around the function of its name, which gets another, among those `replaced` too.

    Raises KernelSourceError.
    """
    name = new.name
    old = functions.get(name)
    if old is None:
        hint = nearest(name, functions)
        raise new.error(new.tree, f"'{name}' is marked @around, and no kernel function{hint}")
    _same_parameters(old, new)
    _same_results(old, new)
    depth = 1
    while (inner := f"{name}__{depth}") in functions:
        depth += 1
    tree = _proceeding(new.tree, inner)
    if tree is None:
        raise new.error(
            new.tree, f"'{name}' is marked @around and never calls proceed(...): mark it @kernel"
        )
    functions[inner] = replace(old, name=inner)
    functions[name] = replace(new, tree=tree, inner=inner)
    replaced[:] = [inner if other == name else other for other in replaced]


@cache
def _proceeding(tree: ast.FunctionDef, inner: str) -> ast.FunctionDef | None:
    """Return `tree` with the calls of `proceed` as calls of `inner`; None if there is no call."""
    renamed = copy.deepcopy(tree)
    calls = [
        node.func
        for node in ast.walk(renamed)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "proceed"
    ]
    for name in calls:
        name.id = inner
    return renamed if calls else None


def _add(functions: dict[str, KernelFunction], new: KernelFunction) -> None:
    """Add a function of a wrapper layer; raises KernelSourceError if its name is taken."""
    old = functions.get(new.name)
    if old is not None:
        raise new.error(
            new.tree,
            f"'{new.name}' is there already ({old.file}:{old.tree.lineno}): mark it @around, or "
            "give it a name of its own",
        )
    functions[new.name] = new


def _same_parameters(old: KernelFunction, new: KernelFunction) -> None:
    style.check_parameters(new)
    if old.parameters != new.parameters:
        raise new.error(
            new.tree,
            f"'{new.name}' must take ({', '.join(old.parameters)}) as in {old.file}:"
            f"{old.tree.lineno}, not ({', '.join(new.parameters)})",
        )


def _same_results(old: KernelFunction, new: KernelFunction) -> None:
    """Refuse a function that returns less or more than callers take; they would be blamed."""
    taken, given = style.result_counts(old.tree), style.result_counts(new.tree)
    if taken != {0} and len(given) == len(taken) == 1 and given != taken:
        raise new.error(
            new.tree,
            f"'{new.name}' must return {_results(taken)} as in {old.file}:{old.tree.lineno}, "
            f"not {_results(given)}",
        )


def _results(counts: Collection[int]) -> str:
    (count,) = counts
    return {0: "nothing", 1: "one integer"}.get(count, f"{count} integers")


def _callees_first(functions: Mapping[str, KernelFunction]) -> dict[str, KernelFunction]:
    ordered: dict[str, KernelFunction] = {}
    active: list[str] = []

    def visit(name: str) -> None:
        if name in ordered:
            return
        function = functions[name]
        if name in active:
            cycle = " -> ".join([*active[active.index(name) :], name])
            raise function.error(function.tree, f"recursion: {cycle}")
        if len(active) > MAX_DEPTH:
            raise function.error(function.tree, f"calls nest deeper than {MAX_DEPTH}")
        active.append(name)
        for callee in function.calls:
            visit(callee)
        active.pop()
        ordered[name] = function

    for name in functions:
        visit(name)
    return ordered


def constant(function: KernelFunction, node: ast.expr, config: Mapping[str, int]) -> int:
    """Resolve a name or attribute of the function's module to an integer.

    Names in `config` (CONFIG_*) have the engine's value.  Raises KernelSourceError.
    """
    value = _constant(function, node, config)
    if isinstance(value, bool | int):
        return int(value)
    raise function.error(node, f"'{ast.unparse(node)}' is not an integer constant")


def _constant(function: KernelFunction, node: ast.expr, config: Mapping[str, int]) -> Any:
    if isinstance(node, ast.Name):
        if node.id in config:
            return config[node.id]
        if node.id not in function.module_names:
            raise function.error(node, f"name '{node.id}' is not defined")
        return function.module_names[node.id]
    if isinstance(node, ast.Attribute):
        owner = _constant(function, node.value, config)
        if not hasattr(owner, node.attr):
            raise function.error(node, f"'{ast.unparse(node.value)}' has no '{node.attr}'")
        return getattr(owner, node.attr)
    raise function.error(node, f"'{ast.unparse(node)}' is not a constant")
