# SPDX-License-Identifier: MIT
"""Say which promise broke, from what a round has left behind."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

import numpy as np

from spfemu.errors import WorkerDiedError, WorkerHangsError
from spfemu.measure.plan import Plan
from spfemu.measure.run import Prepared
from spfemu.mm.bug import Bug
from spfemu.segment import Segment
from spfemu.stress.details import describe
from spfemu.stress.history import HistoryTexts, read_history
from spfemu.stress.mix.model import Wrong
from spfemu.stress.promises import Promise
from spfemu.stress.watchdog import StuckError

OF_WRONG = {
    Wrong.VALUE: Promise.DATA,
    Wrong.RACING_VALUE: Promise.DATA,
    Wrong.LOST_WRITE: Promise.DATA,
    Wrong.NOTIFIER: Promise.NOTIFIERS,
    Wrong.FILE: Promise.DATA,
    Wrong.DMA: Promise.DATA,
}
"""The promise that the mix finds broken; those that are not here are OUTCOME."""
OF_RESULTS = {Wrong.READ, Wrong.WRITE, Wrong.RACING_ACCESS, Wrong.CALL, Wrong.DMA}
"""What is judged by the result of a call or access, not by contents."""
OF_BUG = {
    Bug.SEQ_ODD_ON_ENTER: Promise.SEQUENCE,
    Bug.SEQ_ODD_ON_LEAVE: Promise.SEQUENCE,
    Bug.SLEEP_IN_ATOMIC: Promise.PROGRESS,
    Bug.OOPS: Promise.USE_AFTER_FREE,
}
"""The promise behind a kernel assertion; those that are not here are ACCOUNTING."""

HISTORY_STEPS = 60
"""Steps that are shown of what came before a violation."""
STEPS_PER_CPU = 40


@dataclass(frozen=True)
class Violation:
    """A broken promise: which, what found it, and what was found, as one sentence."""

    promise: Promise
    check: str
    what: str
    history: str = ""
    """What the CPUs did last: a table with a column for each."""

    def __str__(self) -> str:
        """Say in two sentences what the promise is and what was found."""
        return f"{self.promise.promise}  {self.what}"


def of_checks(found: list[str]) -> Violation:
    """Return the verdict on a segment in which the checks at rest have found something."""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Violation(Promise.ACCOUNTING, "checks at rest", f"At rest: {found[0]}{more}.")


def of_death(segment: Segment, prepared: Prepared, error: WorkerDiedError) -> Violation:
    """Return the verdict on a round that has ended early; `error` says how."""
    history = recent_history(segment, prepared)
    return replace(_of_death(segment, prepared.plan, error), history=history)


def recent_history(segment: Segment, prepared: Prepared) -> str:
    """Return the last steps of the CPUs involved as a table.

    Those are the threads of the process; kernel threads only if one has seen the violation.
    """
    plan = prepared.plan
    seen_by = _seen_by(segment)
    involved = [i for i in range(plan.nr_cpus) if i < plan.nr_tasks or i == seen_by]
    steps = read_history(segment, prepared.engine.sites)
    last = [step for i in involved for step in [s for s in steps if s.cpu == i][-STEPS_PER_CPU:]]
    last = sorted(last, key=lambda step: step.time)[-HISTORY_STEPS:]
    cpus = sorted({step.cpu for step in last})
    renumbered = [replace(step, cpu=cpus.index(step.cpu)) for step in last]
    names = [f"CPU {i}, {plan.role(i).name.lower()}" for i in cpus]
    return HistoryTexts(prepared.program, segment).table(renumbered, names)


def _seen_by(segment: Segment) -> int | None:
    """Index of the CPU that an oracle stopped, or that gave up."""
    stress = segment.stress[0]
    if int(stress["violation"]):
        return (int(stress["cpu"]) - segment.cpu(0)) // segment.cpus.dtype.itemsize
    failed = np.flatnonzero(segment.cpus["failed"])
    return int(failed[0]) if len(failed) else None


def _of_death(segment: Segment, plan: Plan, error: WorkerDiedError) -> Violation:
    recorded = _recorded(segment)
    if recorded is not None:
        return recorded
    failed = np.flatnonzero(segment.cpus["failed"])
    if len(failed):
        return of_failure(segment, plan, int(failed[0]))
    if isinstance(error, StuckError):
        return Violation(Promise.PROGRESS, f"watchdog: {error.kind}", f"{error}.")
    if isinstance(error, WorkerHangsError):
        return Violation(Promise.PROGRESS, "watchdog", _sentence(error))
    if error.bug is not None:
        bug = Bug(error.bug)
        promise = OF_BUG.get(bug, Promise.ACCOUNTING)
        return Violation(promise, f"assertion {bug.name}", _sentence(error))
    return Violation(Promise.USE_AFTER_FREE, "death of a worker", _sentence(error))


def _sentence(error: WorkerDiedError) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def of_panic(segment: Segment, code: int) -> Violation:
    """Return the verdict on a CPU that a failed assertion or an oracle has stopped."""
    recorded = _recorded(segment)
    if recorded is not None:
        return recorded
    name = Bug(code).name if code in set(Bug) else str(code)
    promise = OF_BUG.get(Bug(code), Promise.ACCOUNTING)
    return Violation(promise, f"assertion {name}", f"Kernel assertion {name} failed.")


def _recorded(segment: Segment) -> Violation | None:
    """Return what an oracle has noted."""
    stress = segment.stress[0]
    if not int(stress["violation"]):
        return None
    promise = next(p for p in Promise if p == int(stress["kind"]))
    what = describe(segment, promise, int(stress["a"]), int(stress["b"]))
    return Violation(promise, f"oracle of {promise.name}", f"CPU {_seen_by(segment)} {what}.")


def of_failure(segment: Segment, plan: Plan, index: int) -> Violation:
    """Return the verdict of the mix: a result or contents that no order of calls explains."""
    cpu = segment.cpus[index]
    code = int(cpu["failed"])
    role = plan.role(index).name.lower()
    if code not in set(Wrong):
        name = errno.errorcode.get(code, str(code))
        what = f"On CPU {index}, a {role}, an operation failed with {name}."
        return Violation(Promise.OUTCOME, "stress mix", what)
    wrong = next(w for w in Wrong if w == code)
    found, expected = (_value(wrong, int(cpu[word])) for word in ("found", "expected"))
    what = (
        f"On CPU {index}, a {role}, {wrong.text} at {int(cpu['failed_at']):#x}: "
        f"{found} instead of {expected}."
    )
    return Violation(OF_WRONG.get(wrong, Promise.OUTCOME), f"stress mix: {wrong.name}", what)


def _value(wrong: Wrong, value: int) -> str:
    """Name an error where the mix has judged a result; contents are numbers."""
    name = errno.errorcode.get(-value) if wrong in OF_RESULTS else None
    return str(value) if name is None else f"-{name}"
