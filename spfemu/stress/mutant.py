# SPDX-License-Identifier: MIT
"""Mutants: known-bad variants of the kernel, each an override file that says what it breaks.

Beside its functions a file has a docstring of three paragraphs (what is broken, what bug or patch
it stands for, what happens) and constants::

    PROTOCOL = "spf"              # under which it is broken
    PROMISE = "DATA"              # a Promise
    SCHEDULE = "write_and_fork"   # what shows it, see schedules; without, only hunts do
    ID = "M01"                    # optional: as the bug is numbered in docs/mutants.md
    CONFIG = {"CONFIG_NUMA": 1}   # optional: build options that it needs
    SURVIVES = "why"              # optional: nothing here can show it
    WEAK_MEMORY = True            # optional: no x86 machine can show it, see docs/weak-memory.md
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spfemu.engines.source import KernelSourceError
from spfemu.errors import UsageError, nearest
from spfemu.measure import build
from spfemu.stress.promises import Promise

FOLDER = Path(__file__).with_name("mutants")
PARAGRAPHS = 3


@dataclass(frozen=True)
class Mutant:
    """One of them; `what`, `origin` and `effect` are the paragraphs of its docstring."""

    name: str
    path: str
    what: str
    origin: str
    effect: str
    protocol: str
    promise: Promise
    schedule: str | None
    id: str | None = None
    survives: str | None = None
    weak_memory: bool = False
    config: Mapping[str, int] = field(default_factory=dict)


def load(path: Path) -> Mutant:
    """Read what a mutant's file says of itself; nothing of it is run.  Raises KernelSourceError."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise KernelSourceError(f"{path}: cannot read the mutant: {error}") from error
    paragraphs = inspect.cleandoc(ast.get_docstring(tree) or "").split("\n\n")
    if len(paragraphs) != PARAGRAPHS:
        raise KernelSourceError(
            f"{path}:1: a mutant has a docstring of {PARAGRAPHS} paragraphs: what is broken, what "
            "it stands for, what happens"
        )
    what, origin, effect = (" ".join(paragraph.split()) for paragraph in paragraphs)
    found = _constants(path, tree)
    for needed in ("PROTOCOL", "PROMISE"):
        if needed not in found:
            raise KernelSourceError(f"{path}:1: a mutant says its {needed}")
    build.choose("protocol", found["PROTOCOL"], build.protocols())
    promise = build.choose("promise", found["PROMISE"], Promise.__members__)
    return Mutant(
        path.stem,
        str(path),
        what,
        origin,
        effect,
        found["PROTOCOL"],
        Promise[promise],
        found.get("SCHEDULE"),
        found.get("ID"),
        found.get("SURVIVES"),
        found.get("WEAK_MEMORY", False),
        found.get("CONFIG", {}),
    )


def _constants(path: Path, tree: ast.Module) -> dict[str, Any]:
    """Return what the file assigns to names in capitals that concern a mutant."""
    names = ("PROTOCOL", "PROMISE", "SCHEDULE", "ID", "SURVIVES", "CONFIG", "WEAK_MEMORY")
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in names:
                found[name] = _value(f"{path}:{node.lineno}: {name}", node.value, name)
    return found


def _value(where: str, node: ast.expr, name: str) -> Any:
    """Return the text of a constant, the build options or the mark; raises KernelSourceError."""
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError) as error:
        raise KernelSourceError(f"{where} must be a plain value") from error
    if name == "CONFIG":
        if not isinstance(value, dict) or not all(
            isinstance(k, str) and isinstance(v, int) for k, v in value.items()
        ):
            raise KernelSourceError(f"{where} must name build options and their values")
    elif name == "WEAK_MEMORY":
        if not isinstance(value, bool):
            raise KernelSourceError(f"{where} must be True or False")
    elif not isinstance(value, str):
        raise KernelSourceError(f"{where} must be text")
    return value


def mutants() -> dict[str, Mutant]:
    """All mutants by name."""
    files = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
    return {path.stem: load(path) for path in files}


def choose(names: Iterable[str]) -> list[Mutant]:
    """Return mutants by their names or, for files of one's own, paths; without names, all.

    Raises UsageError that suggests the nearest, or says what is wrong with a file.
    """
    from spfemu.stress.schedules import schedules

    known = mutants()
    chosen = []
    for name in names:
        if name.endswith(".py"):
            own = load(Path(name))
            if own.schedule is not None and own.schedule not in schedules():
                hint = nearest(own.schedule, schedules())
                raise UsageError(f"{name}: no schedule '{own.schedule}'{hint}")
            chosen.append(own)
        elif name in known:
            chosen.append(known[name])
        else:
            hint = nearest(name, known)
            raise UsageError(f"no mutant '{name}'{hint} ('spfemu list mutants' names all)")
    return chosen or list(known.values())
