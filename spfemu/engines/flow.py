# SPDX-License-Identifier: MIT
"""What control flow alone tells about a kernel function: where it ends, what it may not know.

Both would differ between engines: at the end of a function without ``return`` Python yields None
and machine code 0; for a local that was never assigned Python raises and machine code reads 0.
"""

from __future__ import annotations

import ast
from collections.abc import Collection


def below(node: ast.AST, without: str = "") -> list[ast.AST]:
    """Return the expressions and statements in the fields of a node, but for one field.

    All nodes of a kernel pass here at every start; ast.iter_child_nodes takes three times as long.
    """
    found: list[ast.AST] = []
    for name in node._fields:
        value = getattr(node, name, None)
        if name == without:
            continue
        if isinstance(value, _NODES):
            found.append(value)
        elif isinstance(value, list):
            found += [v for v in value if isinstance(v, _NODES)]
    return found


_NODES = (ast.expr, ast.stmt)


class UnassignedError(Exception):
    """`node` reads a local that some path to it has not assigned."""

    def __init__(self, node: ast.Name) -> None:
        super().__init__(node.id)
        self.node = node


class _Flow:
    """Follow all paths through a body, carrying the locals that are assigned on each.

    A state is the set of names assigned for sure; None after a statement that no path leaves.
    """

    def __init__(self, local: Collection[str]) -> None:
        self.local = local
        self.breaks: list[list[set[str]]] = []

    def block(self, body: list[ast.stmt], known: set[str]) -> set[str] | None:
        state: set[str] | None = known
        for statement in body:
            if state is None:
                return None
            state = self.statement(statement, state)
        return state

    def statement(self, node: ast.stmt, known: set[str]) -> set[str] | None:
        if isinstance(node, ast.If):
            self.read(node.test, known)
            return _join([self.block(node.body, known), self.block(node.orelse, known)])
        if isinstance(node, ast.While):
            return self.loop(node, known)
        if isinstance(node, ast.For):
            self.read(node.iter, known)
            self.breaks.append([])
            self.block(node.body, known | _stored(node.target))
            self.breaks.pop()
            return known
        self.read(node, known)
        if isinstance(node, ast.Break):
            self.breaks[-1].append(known)
        if isinstance(node, ast.Return | ast.Break | ast.Continue):
            return None
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            self.check(node.target, known)
        return known | _stored(node)

    def loop(self, node: ast.While, known: set[str]) -> set[str] | None:
        self.read(node.test, known)
        self.breaks.append([])
        self.block(node.body, known)
        left = self.breaks.pop()
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        return _join(list(left)) if endless else known

    def read(self, node: ast.AST, known: set[str]) -> None:
        for name in names_in(node, ast.Load):
            self.check(name, known)

    def check(self, name: ast.Name, known: set[str]) -> None:
        if name.id in self.local and name.id not in known:
            raise UnassignedError(name)


def names_in(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    """Return the names below a node that are loaded, or stored, as `context` says."""
    found: list[ast.Name] = []
    stack = [node]
    while stack:
        at = stack.pop()
        if isinstance(at, ast.Name):
            if isinstance(at.ctx, context):
                found.append(at)
        else:
            stack += below(at)
    return found


def _stored(node: ast.AST) -> set[str]:
    return {name.id for name in names_in(node, ast.Store)}


def _join(states: list[set[str] | None]) -> set[str] | None:
    """Meet of the paths that go on; None if none does."""
    going = [state for state in states if state is not None]
    return set.intersection(*going) if going else None


def falls_through(tree: ast.FunctionDef, local: Collection[str]) -> bool:
    """Tell whether some path reaches the end of the function's body.

    Raises UnassignedError for a read of one of the names `local` that a path has not assigned.
    """
    parameters = {a.arg for a in tree.args.args}
    return _Flow(local).block(tree.body, parameters) is not None
