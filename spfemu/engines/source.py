# SPDX-License-Identifier: MIT
"""Collect marked kernel functions, apply overrides, check the restricted style.

The outcome is a `Program`: every function by name, callees before callers, each with its syntax
tree and the constants that it names.  Both the compiler and the plain engine start from it.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from spfemu.engines.flow import UnassignedError, falls_through
from spfemu.errors import UsageError
from spfemu.primitives import PRIMITIVES

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1
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
    slowpath: bool
    calls: tuple[str, ...] = ()
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
    files: tuple[str, ...] = ()
    primitives: Mapping[str, Callable[..., Any]] = field(default_factory=lambda: PRIMITIVES)


def functions_of(module: types.ModuleType) -> dict[str, KernelFunction]:
    """Return the kernel functions that `module` itself defines, by name."""
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
            found[name] = KernelFunction(name, trees[name], value, file, kind == "slowpath")
    return found


def load_override(path: str) -> dict[str, KernelFunction]:
    """Execute the override file at `path` and return its kernel functions.

    An override is code and runs as such.  Raises KernelSourceError if it cannot be read or run,
    or marks no function.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KernelSourceError(f"{path}: cannot read the override: {error}") from error
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
) -> Program:
    """Put layers of functions over each other, then the override files, and check the whole.

    A later layer replaces functions of the earlier ones by name.  Raises KernelSourceError.
    """
    functions: dict[str, KernelFunction] = {}
    for layer in layers:
        functions.update(layer)
    added: dict[str, KernelFunction] = {}
    files = []
    replaced = []
    for path in overrides:
        for name, new in load_override(path).items():
            old = functions.get(name)
            if old is not None:
                _same_parameters(old, new)
                replaced.append(name)
            else:
                added[name] = new
            functions[name] = new
        files.append(path)
    for function in functions.values():
        _check(function, functions)
    for function in functions.values():
        _check_results_used(function, functions)
    called = {callee for f in functions.values() for callee in f.calls}
    for name, new in added.items():
        if name not in called:
            raise new.error(
                new.tree,
                f"'{name}' replaces no kernel function and none calls it{nearest(name, functions)}",
            )
    ordered = _callees_first(functions)
    return Program(ordered, dict(config), tuple(replaced), tuple(files))


def _same_parameters(old: KernelFunction, new: KernelFunction) -> None:
    _check_parameters(new)
    if old.parameters != new.parameters:
        raise new.error(
            new.tree,
            f"'{new.name}' must take ({', '.join(old.parameters)}) as in {old.file}:"
            f"{old.tree.lineno}, not ({', '.join(new.parameters)})",
        )


def nearest(name: str, names: Iterable[str]) -> str:
    """Return a question that names the most similar of `names`, or nothing, for messages."""
    close = difflib.get_close_matches(name, [n for n in names if n != name], 1)
    return f"; did you mean '{close[0]}'?" if close else ""


_STATEMENTS = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Expr,
    ast.If,
    ast.While,
    ast.For,
    ast.Break,
    ast.Continue,
    ast.Return,
    ast.Pass,
)
_EXPRESSIONS = (
    ast.BinOp,
    ast.BoolOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Call,
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.IfExp,
    ast.Tuple,
)
_OPERATORS = (
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.Mod,
    ast.LShift,
    ast.RShift,
    ast.BitAnd,
    ast.BitOr,
    ast.BitXor,
    ast.And,
    ast.Or,
    ast.Not,
    ast.Invert,
    ast.USub,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
)


def _check_parameters(function: KernelFunction) -> None:
    args = function.tree.args
    if args.defaults or args.kwonlyargs or args.vararg or args.kwarg or args.posonlyargs:
        raise function.error(function.tree, f"'{function.name}' may take plain parameters only")


def _check(function: KernelFunction, functions: Mapping[str, KernelFunction]) -> None:
    """Check one function against the restricted style; fill in its calls and results."""
    tree = function.tree
    _check_parameters(function)
    calls: list[str] = []
    results: set[int] = set()
    bound = set(function.parameters) | {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in _body_nodes(tree):
        if isinstance(node, ast.stmt) and not isinstance(node, _STATEMENTS):
            raise function.error(
                node, f"'{type(node).__name__.lower()}' is outside the restricted style"
            )
        if isinstance(node, ast.expr) and not isinstance(node, _EXPRESSIONS):
            raise function.error(
                node, f"{type(node).__name__} expressions are outside the restricted style"
            )
        for operator in [node.op] if hasattr(node, "op") else getattr(node, "ops", []):
            if not isinstance(operator, _OPERATORS):
                raise function.error(
                    node, f"operator {type(operator).__name__} is outside the restricted style"
                )
        if isinstance(node, ast.Return):
            results.add(_count_results(node))
        elif isinstance(node, ast.Call):
            calls.append(_check_call(function, node, functions))
        elif isinstance(node, ast.Constant):
            _check_constant(function, node)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            _check_name(function, node, bound, functions)
    try:
        if falls_through(tree, bound):
            results.add(0)
    except UnassignedError as error:
        raise function.error(
            error.node, f"'{error.node.id}' may be read before it is assigned"
        ) from error
    if not results:
        raise function.error(tree, f"'{function.name}' never returns")
    if len(results) > 1:
        raise function.error(
            tree,
            f"'{function.name}' must return the same number of results on every path, not "
            + " or ".join(map(str, sorted(results))),
        )
    function.results = results.pop()
    function.calls = tuple(dict.fromkeys(c for c in calls if c in functions))


def _check_results_used(function: KernelFunction, functions: Mapping[str, KernelFunction]) -> None:
    """Refuse the value of a call that has none: Python would take None, machine code 0."""
    statements = {id(node.value) for node in ast.walk(function.tree) if isinstance(node, ast.Expr)}
    for node in _body_nodes(function.tree):
        if not isinstance(node, ast.Call) or id(node) in statements:
            continue
        name = called(node)
        if name in functions:
            returns = functions[name].results > 0
        else:
            returns = name == "range" or PRIMITIVES[name].__annotations__["return"] != "None"
        if not returns:
            raise function.error(node, f"'{name}' returns nothing that could be used")


def _body_nodes(tree: ast.FunctionDef) -> Iterable[ast.AST]:
    """Walk the body without annotations, docstring and the callee's own name nodes."""
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                continue
        yield node
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.AnnAssign) and name == "annotation":
                continue
            if isinstance(node, ast.Call) and name == "func":
                continue
            if isinstance(value, ast.AST):
                stack.append(value)
            elif isinstance(value, list):
                stack.extend(v for v in value if isinstance(v, ast.AST))


def _count_results(node: ast.Return) -> int:
    if node.value is None:
        return 0
    return len(node.value.elts) if isinstance(node.value, ast.Tuple) else 1


def _check_call(
    function: KernelFunction, node: ast.Call, functions: Mapping[str, KernelFunction]
) -> str:
    if not isinstance(node.func, ast.Name):
        raise function.error(node, "only kernel functions and primitives may be called, by name")
    name = node.func.id
    if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
        raise function.error(node, f"'{name}' must be called with positional arguments")
    if name in functions:
        expected = len(functions[name].parameters)
    elif name in PRIMITIVES:
        expected = len(inspect.signature(PRIMITIVES[name]).parameters)
    elif name == "range":
        return name
    else:
        known = [*functions, *PRIMITIVES]
        raise function.error(
            node, f"'{name}' is no kernel function or primitive{nearest(name, known)}"
        )
    if len(node.args) != expected:
        raise function.error(node, f"'{name}' takes {expected} arguments, not {len(node.args)}")
    return name


def called(node: ast.Call) -> str:
    """Return the name that a checked call calls."""
    return cast("ast.Name", node.func).id


def _check_constant(function: KernelFunction, node: ast.Constant) -> None:
    if not isinstance(node.value, int):
        raise function.error(node, f"{node.value!r} is not an integer")
    if not INT64_MIN <= node.value <= INT64_MAX:
        raise function.error(node, f"{node.value} does not fit 64 bits")


def _check_name(
    function: KernelFunction,
    node: ast.Name,
    bound: set[str],
    functions: Mapping[str, KernelFunction],
) -> None:
    name = node.id
    if name in bound or name in function.module_names:
        return
    if name in functions or name in PRIMITIVES:
        raise function.error(node, f"function '{name}' may be called, not used as a value")
    if hasattr(builtins, name):
        raise function.error(node, f"'{name}' is outside the restricted style")
    raise function.error(node, f"name '{name}' is not defined{nearest(name, bound)}")


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
