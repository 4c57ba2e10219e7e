# SPDX-License-Identifier: MIT
"""The restricted style: what a kernel function may be made of, and that its calls fit.

What was found out about a function holds as long as its callees are the same, so a second program
of the same functions is checked at once.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from spfemu.engines.flow import UnassignedError, below, falls_through
from spfemu.errors import nearest
from spfemu.primitives import PRIMITIVES

if TYPE_CHECKING:
    from spfemu.engines.source import KernelFunction

INT64_MIN, INT64_MAX = -(1 << 63), (1 << 63) - 1


@dataclass(frozen=True)
class _Known:
    """What was found out about a function, and the callees with which it holds."""

    calls: tuple[str, ...]
    primitives: frozenset[str]
    results: int
    callees: dict[str, ast.FunctionDef | None]
    """By name; None for a primitive."""


_known: dict[ast.FunctionDef, _Known] = {}


def check(functions: Mapping[str, KernelFunction]) -> None:
    """Check all functions of a program; fill in their calls and results.

    Raises KernelSourceError.
    """
    bodies = {f.name: _body_nodes(f.tree) for f in functions.values() if not _recall(f, functions)}
    names = {name: _check(functions[name], body, functions) for name, body in bodies.items()}
    for name, body in bodies.items():
        _check_results_used(functions[name], body, functions)
    for name, called_names in names.items():
        function = functions[name]
        callees = {n: _tree(n, functions) for n in called_names}
        _known[function.tree] = _Known(
            function.calls, function.primitives, function.results, callees
        )


def _recall(function: KernelFunction, functions: Mapping[str, KernelFunction]) -> bool:
    """Fill in what is known of a function; False if that is nothing, or its callees are others."""
    known = _known.get(function.tree)
    if known is None:
        return False
    if any(_tree(name, functions) is not tree for name, tree in known.callees.items()):
        return False
    function.calls, function.results = known.calls, known.results
    function.primitives = known.primitives
    return True


def _tree(name: str, functions: Mapping[str, KernelFunction]) -> ast.FunctionDef | None:
    return functions[name].tree if name in functions else None


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


def check_parameters(function: KernelFunction) -> None:
    """Refuse parameters that are not plain."""
    args = function.tree.args
    if args.defaults or args.kwonlyargs or args.vararg or args.kwarg or args.posonlyargs:
        raise function.error(function.tree, f"'{function.name}' may take plain parameters only")


def _check(
    function: KernelFunction, body: Iterable[ast.AST], functions: Mapping[str, KernelFunction]
) -> set[str]:
    """Check one function; fill in its calls and results.  Returns all names that it calls."""
    tree = function.tree
    check_parameters(function)
    calls: list[str] = []
    results: set[int] = set()
    bound = set(function.parameters) | {
        n.id for n in body if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    for node in body:
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
    function.primitives = frozenset(c for c in calls if c in PRIMITIVES and c not in functions)
    return set(calls)


def _check_results_used(
    function: KernelFunction, body: Iterable[ast.AST], functions: Mapping[str, KernelFunction]
) -> None:
    """Refuse the value of a call that has none: Python would take None, machine code 0."""
    statements = {id(node.value) for node in body if isinstance(node, ast.Expr)}
    for node in body:
        if not isinstance(node, ast.Call) or id(node) in statements:
            continue
        name = called(node)
        if name in functions:
            returns = functions[name].results > 0
        else:
            returns = name == "range" or PRIMITIVES[name].__annotations__["return"] != "None"
        if not returns:
            raise function.error(node, f"'{name}' returns nothing that could be used")


def _body_nodes(tree: ast.FunctionDef) -> list[ast.AST]:
    """Return the nodes of the body without annotations, docstring and the callee's own names."""
    nodes: list[ast.AST] = []
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                continue
        nodes.append(node)
        stack += below(node, _WITHOUT.get(type(node), ""))
    return nodes


_WITHOUT = {ast.AnnAssign: "annotation", ast.Call: "func"}
"""Fields whose nodes are not looked at."""


def result_counts(tree: ast.FunctionDef) -> set[int]:
    """Return how many results the function's returns have; empty if it may never return."""
    counts = {_count_results(n) for n in ast.walk(tree) if isinstance(n, ast.Return)}
    if not counts and not isinstance(tree.body[-1], ast.While):
        counts.add(0)
    return counts


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
    elif name == "proceed":
        raise function.error(
            node, f"'{function.name}' stands around nothing: only what is marked @around proceeds"
        )
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
