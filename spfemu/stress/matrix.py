# SPDX-License-Identifier: MIT
"""The kill matrix: which mutants are caught, by what, and how soon.

A detector is a function that takes a mutant and seconds and returns a Kill, or None if it sees
nothing wrong in that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from spfemu.engines.source import KernelSourceError
from spfemu.engines.stepped import StepEngine
from spfemu.errors import ExitCode, WorkerKilledError
from spfemu.stress.hunt import HuntPlan, hunt
from spfemu.stress.isolation import DiedError, in_child
from spfemu.stress.mutant import Mutant
from spfemu.stress.schedules import schedules
from spfemu.stress.schedules.process import program
from spfemu.stress.schedules.schedule import play

SECONDS = 20.0
"""Time that each detector has for a mutant."""
SEED = 1
"""Of the hunts."""
PATIENCE = 30.0
"""Seconds more that one order of steps may take."""


@dataclass(frozen=True)
class Kill:
    """How a mutant was caught: what was seen, after how long without the time to compile."""

    check: str
    seconds: float


@dataclass(frozen=True)
class Row:
    """What the detectors, by name, say of a mutant."""

    mutant: Mutant
    kills: Mapping[str, Kill | None] = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        """Whether any of them caught it."""
        return any(self.kills.values())

    @property
    def unexpected(self) -> bool:
        """Whether it survived and nobody has said that it may."""
        return not self.killed and self.mutant.survives is None


Detector = Callable[[Mutant, float], Kill | None]


def by_schedule(mutant: Mutant, seconds: float) -> Kill | None:
    """Play the mutant's schedule on the stepped engine; one without is not caught by this."""
    if mutant.schedule is None:
        return None
    one = schedules()[mutant.schedule]
    config = {**one.config, **mutant.config}
    engine = StepEngine(program(mutant.protocol, (mutant.path,), None, None, (), **config))
    began = time.monotonic()
    # a broken kernel may crash its process or never come back
    try:
        found, seed = in_child(lambda: play(one, engine, seconds), seconds + PATIENCE)
    except DiedError as died:
        return Kill(f"{one.name}: crash: the kernel {died}", time.monotonic() - began)
    if found is None:
        return None
    with_seed = f" (seed {seed})" if one.random else ""
    return Kill(f"{one.name}{with_seed}: {found}", time.monotonic() - began)


def by_stress(mutant: Mutant, seconds: float) -> Kill | None:
    """Hunt in real processes; mutants of other versions of Linux are left to their schedules.

    So are those that need a weaker memory than x86 has: on what machine this is does not matter.
    """
    if "CONFIG_LINUX_VERSION" in mutant.config or mutant.weak_memory:
        return None
    plan = HuntPlan(
        mutant.protocol,
        seconds=seconds,
        seed=SEED,
        overrides=(mutant.path,),
        table_free="rcu" if mutant.config.get("CONFIG_MMU_GATHER_RCU_TABLE_FREE", 1) else "irq",
    )
    try:
        result = hunt(plan)
    except KernelSourceError:
        if mutant.schedule is None:
            raise  # nobody has compiled it before: there is a mistake in it
        # the mix does not come to what is broken
        return None
    if result.partial is not None:
        if result.partial.status == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        raise WorkerKilledError(result.partial.reason)
    found = result.violation
    if found is None:
        return None
    return Kill(f"{found.promise.name}, {found.check}: {found.what}", result.seconds)


DETECTORS: Mapping[str, Detector] = {"schedule": by_schedule, "stress": by_stress}


def try_mutant(
    mutant: Mutant, seconds: float = SECONDS, detectors: Mapping[str, Detector] | None = None
) -> Row:
    """Let every detector try a mutant for so long."""
    used = DETECTORS if detectors is None else detectors
    return Row(mutant, {name: detect(mutant, seconds) for name, detect in used.items()})
