# SPDX-License-Identifier: MIT
"""Which loads order later loads by address dependency, found from the syntax trees.

A processor may execute a load early, but not before it knows the address.  So a load whose value
can reach the address of an access comes before that access.  What is found here is more than
that: the analysis follows values through locals, arguments and results, but knows neither the order
of statements nor the call that a value came from.  Values that go through memory are the memory
model's own affair (see weak.py).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from typing import TypeAlias

from spfemu.engines.source import KernelFunction, Program
from spfemu.engines.steps import STEP_KINDS, Site, Step
from spfemu.engines.style import called

_READS = (Step.LOAD, Step.RMW)
_ACCESSES = (*_READS, Step.STORE, Step.PAGE)

_Node: TypeAlias = Site | tuple[str, str]
"""A load, or a local (function, name), or the result of a function (its name, "")."""


class _Flow:
    """Where values of a program come from."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.sources: defaultdict[_Node, set[_Node]] = defaultdict(set)
        self.addresses: set[_Node] = set()
        for function in program.functions.values():
            self._follow(function)

    def _follow(self, function: KernelFunction) -> None:
        for node in ast.walk(function.tree):
            if isinstance(node, ast.Assign):
                self._assign(function, node.targets[0], node.value)
            elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
                self._assign(function, node.target, node.value)
            elif isinstance(node, ast.For):
                self._assign(function, node.target, node.iter)
            elif isinstance(node, ast.Return) and node.value is not None:
                self.sources[function.name, ""] |= self._values(function, node.value)
            elif isinstance(node, ast.Call):
                self._call(function, node)

    def _assign(self, function: KernelFunction, target: ast.expr, value: ast.expr) -> None:
        values = self._values(function, value)
        for name in ast.walk(target):
            if isinstance(name, ast.Name):
                self.sources[function.name, name.id] |= values

    def _call(self, function: KernelFunction, call: ast.Call) -> None:
        """Note where the arguments of a call go."""
        name = called(call)
        arguments = [self._values(function, argument) for argument in call.args]
        callee = self.program.functions.get(name)
        if callee is not None:
            for parameter, values in zip(callee.parameters, arguments, strict=True):
                self.sources[name, parameter] |= values
        elif STEP_KINDS.get(name) in _ACCESSES:
            self.addresses |= arguments[0]
            if name == "copy_page":
                self.addresses |= arguments[1]

    def _values(self, function: KernelFunction, node: ast.expr) -> set[_Node]:
        """Nodes whose values the value of an expression is made of."""
        if isinstance(node, ast.Call) and called(node) != "range":
            name = called(node)
            if name in self.program.functions:
                return {(name, "")}
            if STEP_KINDS.get(name) in _READS:
                return {Site(function.name, node.lineno, name)}
            return set()
        if isinstance(node, ast.Name):
            return {(function.name, node.id)}
        parts = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.expr)]
        return set().union(*(self._values(function, part) for part in parts))


def addressing_loads(program: Program) -> set[Site]:
    """Return the loads (read-modify-writes too) whose values may reach an address."""
    flow = _Flow(program)
    found: set[_Node] = set()
    pending = list(flow.addresses)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending.extend(flow.sources[node])
    return {node for node in found if isinstance(node, Site)}
