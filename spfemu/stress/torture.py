# SPDX-License-Identifier: MIT
"""Torture of processes: signals to workers, writers, kernel threads and their parent, at random.

A trial starts a short `spfemu run` or `spfemu stress` and sends signals to its processes, mostly
while they are in the kernel.  Then it is judged: whether the command ends in time, with the status
and the words that docs/cli.md promises, hides nothing in its report, and leaves no process and no
file.  ``scripts/torture`` runs many.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import msgspec

from spfemu.cli.progress import progress
from spfemu.errors import ExitCode
from spfemu.measure import run
from spfemu.measure.plan import LEAST_SWAP, Plan, Progress, quiet
from spfemu.measure.run import Prepared
from spfemu.results import Partial, decode
from spfemu.stress import report as stress_report
from spfemu.stress.hunt import HuntPlan
from spfemu.stress.session import (
    ENDING,
    GONE,
    KERNEL,
    POLL_SECONDS,
    SET_UP,
    STARTING,
    Session,
    name_of,
)

BOUND_SECONDS = 180.0
"""A command that takes longer hangs, however busy the machine is."""
GONE_SECONDS = 20.0
"""Nothing may be left so long after the end: to die takes time on a CPU, too."""
REPORT = "report.json"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  looked at only

WORKLOADS = ("page_fault1", "mixed", "mprotect_storm", "fork1")
PROTOCOLS = ("classic", "spf", "vma-lock")
KTHREADS = ((), (), (), ("--swap", str(LEAST_SWAP)), ("--khugepaged",))
FINE: frozenset[int] = frozenset({ExitCode.OK, ExitCode.INCONCLUSIVE})
BEFORE_MAIN: frozenset[int] = frozenset({-signal.SIGINT, -signal.SIGTERM})
"""Python itself is still starting, and may say where, or has ended."""
NO_PYTHON = "Fatal Python error: init_"
"""So it says, with status 1, if it is interrupted before it has started so far."""
PHASES = (STARTING, SET_UP, KERNEL, ENDING, GONE)
PROBES = "spfemu probe"
"""Processes that look at the machine, not at the kernel."""


@dataclass(frozen=True)
class Trial:
    """What is started, and what is done to it."""

    seed: int
    arguments: tuple[str, ...]
    victim: str
    """`parent` or `child`."""
    number: signal.Signals
    pause: float | None = None
    """Seconds from SIGSTOP to SIGCONT; None: it is not continued."""
    phase: str = KERNEL
    """In which the signal is sent."""
    delay: float = 0.0
    """Seconds from when that begins; the phase may be another round's then."""
    pauses: int = 0
    """Processes that are stopped and continued before."""
    fresh: bool = False
    """Whether Python is started for it; else it is forked with its program compiled."""

    def __str__(self) -> str:
        """Describe it in one line."""
        then = f", SIGCONT {self.pause:.2f} s later" if self.pause is not None else ""
        before = f", after {self.pauses} pauses" if self.pauses else ""
        return (
            f"spfemu {' '.join(self.arguments)}: {self.number.name} to the {self.victim} "
            f"while {self.phase}{before}{then}"
        )


@dataclass(frozen=True)
class Hit:
    """A process that got a signal."""

    pid: int
    name: str
    phase: str
    """That of the command, before and after it alike, else the later."""
    sure: bool = True
    """Whether it was the same before and after."""

    def __str__(self) -> str:
        """Return what messages call it."""
        return f"{self.name} (pid {self.pid})"


@dataclass
class Verdict:
    """What a trial came to."""

    trial: Trial
    status: int | None = None
    """None: it hung."""
    hit: Hit | None = None
    """Who got the signal; None if all was over."""
    paused: list[Hit] = field(default_factory=list)
    """Who was stopped and continued before."""
    faults: list[str] = field(default_factory=list)
    errors: str = ""


def make_trial(seed: int) -> Trial:
    """Choose everything from the seed."""
    choice = random.Random(seed)
    victim, number = choice.choice(
        [
            *(("child", signal.SIGKILL),) * 8,
            *(("child", signal.SIGSTOP),) * 5,
            ("child", signal.SIGCONT),
            *(("parent", signal.SIGKILL),) * 3,
            *(("parent", signal.SIGSTOP),) * 2,
            ("parent", signal.SIGCONT),
            *(("parent", signal.SIGINT),) * 2,
            *(("parent", signal.SIGTERM),) * 2,
        ]
    )
    pause = None
    # one that is not continued ends only when the patience of the command does
    if number == signal.SIGSTOP and (victim == "parent" or choice.random() < 0.95):
        pause = choice.choice([0.005, 0.05, 0.5])
    phase = choice.choices((KERNEL, STARTING, SET_UP, ENDING), (17, 1, 1, 1))[0]
    if phase == STARTING and victim == "child":
        phase = SET_UP
    return Trial(
        seed,
        tuple(_stress(choice) if choice.random() < 0.2 else _run(choice)),
        victim,
        number,
        pause,
        phase,
        choice.uniform(0, 0.3 if phase in (KERNEL, STARTING) else 0.01),
        pauses=0 if phase == STARTING else choice.choice((0, 0, 1, 2)),
        fresh=phase == STARTING or choice.random() < 0.05,
    )


def _run(choice: random.Random) -> list[str]:
    workload = choice.choice(WORKLOADS)
    arguments = ["run", workload, "--protocol", choice.choice(PROTOCOLS)]
    arguments += ["--workers", str(choice.randint(1, 3))]
    if workload == "mixed":
        arguments += ["--writers", str(choice.randint(0, 2)), *choice.choice([(), ("--overlap",)])]
    if workload != "fork1":
        arguments += choice.choice(KTHREADS)
    arguments += ["--mode", choice.choice(("threads", "processes")), "--size", "64K"]
    return [*arguments, "--seconds", "0.05", "--repeats", "2", *_seeded(choice)]


def _stress(choice: random.Random) -> list[str]:
    seconds = choice.choice(("0.5", "1.5"))
    arguments = ["stress", "--protocol", choice.choice(PROTOCOLS), "--seconds", seconds]
    return [*arguments, "--writers", str(choice.randint(1, 2)), *_seeded(choice)]


def _seeded(choice: random.Random) -> list[str]:
    return ["--seed", str(choice.randrange(1 << 30)), "--json", REPORT]


_programs: dict[tuple[object, ...], Prepared] = {}


def _prepare(plan: Plan, progress: Progress = quiet) -> Prepared:
    """Do what `run.prepare` does, once for a program: it takes longer than all else of a trial."""
    key = (plan.workload, plan.protocol, plan.oracles, *sorted(plan.config.items()))
    if key not in _programs:
        _programs[key] = run.prepare(plan, progress)
    return replace(_programs[key], plan=plan)


def _plan(arguments: tuple[str, ...]) -> Plan:
    """Return a plan that runs the same program as the command."""
    protocol = arguments[arguments.index("--protocol") + 1]
    if arguments[0] == "stress":
        return HuntPlan(protocol).plan(0)
    swap = LEAST_SWAP if "--swap" in arguments else 0
    return Plan(arguments[1], protocol, swap=swap, khugepaged="--khugepaged" in arguments)


def run_trial(trial: Trial) -> Verdict:
    """Start the command, send the signal, wait for the end, judge."""
    verdict = Verdict(trial)
    if not trial.fresh:
        _prepare(_plan(trial.arguments))
    shared = set(SHARED_MEMORY.iterdir())
    with tempfile.TemporaryDirectory(prefix="spfemu-torture-") as name:
        folder = Path(name)
        session = Session(trial.arguments, folder, None if trial.fresh else _prepare)
        try:
            _strike(verdict, session)
            if not session.wait(BOUND_SECONDS):
                verdict.faults.append(f"it has not ended after {BOUND_SECONDS:g} s")
                verdict.faults += session.where()
            verdict.status = session.status
            verdict.faults += _leftovers(session)
        finally:
            session.close()
        verdict.errors = session.errors.read_text(errors="replace")
        if verdict.status is not None:
            verdict.faults += _judge(verdict, session.output.read_text(errors="replace"), folder)
        ours = {REPORT, session.output.name, session.errors.name}
        left = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        verdict.faults += [f"left in {folder}: {name}" for name in left]
    new = sorted(set(SHARED_MEMORY.iterdir()) - shared)
    verdict.faults += [f"left: {path}" for path in new if "spfemu" in path.name]
    return verdict


def _strike(verdict: Verdict, session: Session) -> None:
    """Send the signals, each when it is time."""
    trial = verdict.trial
    choice = random.Random(trial.seed)
    deadline = time.monotonic() + BOUND_SECONDS
    for _ in range(trial.pauses):
        _await(session, KERNEL, choice.uniform(0, 0.1), deadline)
        hit = _send(session, "child", signal.SIGSTOP, choice.uniform(0, 0.02), choice)
        if hit is not None:
            verdict.paused.append(hit)
    _await(session, trial.phase, trial.delay, deadline)
    verdict.hit = _send(session, trial.victim, trial.number, trial.pause, choice)


def _await(session: Session, phase: str, delay: float, deadline: float) -> None:
    """Wait until the command is in `phase`, `delay` seconds longer, and until it is there again."""
    for seconds in (delay, 0.0):
        while session.phase() not in (phase, GONE) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        session.wait(seconds)


def _send(
    session: Session,
    victim: str,
    number: signal.Signals,
    pause: float | None,
    choice: random.Random,
) -> Hit | None:
    """Send a signal, and SIGCONT after `pause` seconds; returns who got it."""
    victims = {session.pid: "parent"} if victim == "parent" else session.children()
    working = {pid: name for pid, name in victims.items() if name != PROBES}
    if working and choice.random() < 0.95:
        victims = working
    before = session.phase()
    if before == GONE or not victims:
        return None
    pid = choice.choice(sorted(victims))
    try:
        os.kill(pid, number)
        after = session.phase()
        if pause is not None:
            time.sleep(pause)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return None
    # what SIGKILL ends is gone for that, not before
    sure = after == before or (victim == "parent" and number == signal.SIGKILL)
    return Hit(pid, victims[pid], before if sure else after, sure)


def _judge(verdict: Verdict, output: str, folder: Path) -> list[str]:
    """Say what of the end is not as promised."""
    trial, status = verdict.trial, verdict.status
    faults: list[str] = []
    if _no_python(verdict):
        return faults
    if status not in _allowed(verdict):
        faults.append(f"it ended with status {status}")
    if "Traceback" in verdict.errors + output and status not in BEFORE_MAIN:
        faults.append("there is a traceback")
    said = output + verdict.errors
    if status == ExitCode.WORKER_DIED and "probe the machine" not in said:
        if verdict.hit is None or str(verdict.hit.pid) not in said:
            faults.append(f"{verdict.hit} is not named")
        how = "killed by SIGKILL" if trial.number == signal.SIGKILL else "a signal stopped"
        if how not in said:
            faults.append(f"it is not said that it was {how}")
    if status == ExitCode.INTERRUPTED and "interrupted" not in said:
        faults.append("it is not said that it was interrupted")
    report = folder / REPORT
    if report.exists():
        partial = _partial(report.read_bytes(), trial.arguments[0])
        if (partial.status if partial else status) != status or (
            partial is None and status not in FINE
        ):
            faults.append(f"the report says {partial}, the status is {status}")
        if partial is not None and "partial: " not in output:
            faults.append("it is not said that the result is partial")
    elif status in FINE:
        faults.append("there is no report")
    return faults


def _no_python(verdict: Verdict) -> bool:
    """Tell whether Ctrl-C came before there was a Python to handle it."""
    hit = verdict.hit
    interrupted = hit is not None and hit.phase == STARTING
    interrupted &= verdict.trial.number == signal.SIGINT and verdict.trial.victim == "parent"
    return interrupted and verdict.status == 1 and verdict.errors.startswith(NO_PYTHON)


def _partial(report: bytes, command: str) -> Partial | None:
    if command == "run":
        return decode(report).partial
    return msgspec.json.decode(report, type=stress_report.Results).partial


def _allowed(verdict: Verdict) -> frozenset[int]:
    """Return the statuses with which the command may end."""
    trial, hit = verdict.trial, verdict.hit
    if hit is None or trial.number == signal.SIGCONT or trial.pause is not None:
        return FINE
    # nobody has all work behind him then: a result as good as any would hide what was done to it
    must = hit.sure and hit.phase in (SET_UP, KERNEL)
    if trial.victim == "child":
        return frozenset({ExitCode.WORKER_DIED}) | (frozenset() if must else FINE)
    if trial.number == signal.SIGKILL:
        return frozenset({-signal.SIGKILL})
    return frozenset({ExitCode.INTERRUPTED}) | (frozenset() if must else FINE | BEFORE_MAIN)


def _leftovers(session: Session) -> list[str]:
    """Name the processes that have not gone in time; ends them."""
    deadline = time.monotonic() + GONE_SECONDS
    while session.members() and time.monotonic() < deadline:
        time.sleep(0.01)
    left = [f"process {pid} ({name_of(pid)}) is left" for pid in session.members()]
    session.close()
    return left


def torture(count: int, seed: int, show: Progress = quiet) -> Iterator[Verdict]:
    """Run `count` trials, whose seeds follow each other."""
    bad = 0
    for i in range(count):
        show(f"{i} trials, {bad} failed", i / count)
        verdict = run_trial(make_trial(seed + i))
        bad += bool(verdict.faults)
        yield verdict


def failure(verdict: Verdict) -> str:
    """Describe a trial that failed."""
    lines = [f"seed {verdict.trial.seed}: {verdict.trial}"]
    lines.append(f"  hit: {verdict.hit}" + (f" while {verdict.hit.phase}" if verdict.hit else ""))
    lines += [f"  {fault}" for fault in verdict.faults]
    return "\n".join([*lines, *(f"  | {line}" for line in verdict.errors.splitlines())])


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Say by signal in which phase it came and how commands ended."""
    phases: dict[str, Counter[str]] = {}
    ends: dict[str, Counter[str]] = {}
    held: Counter[str] = Counter()
    for verdict in verdicts:
        trial = verdict.trial
        paused = " and SIGCONT" if trial.pause is not None else ""
        what = f"{trial.number.name}{paused} to the {trial.victim}"
        phase = verdict.hit.phase if verdict.hit else GONE
        phases.setdefault(what, Counter())[phase] += 1
        ends.setdefault(what, Counter())[str(verdict.status)] += 1
        if verdict.paused:
            before = phases.setdefault("SIGSTOP and SIGCONT before", Counter())
            before.update(hit.phase for hit in verdict.paused)
        if match := _HELD.search(verdict.errors):
            held["no lock" if match[1] == "no lock" else "a lock"] += 1
    lines = [f"{'':<34}" + "".join(f"{phase:>9}" for phase in PHASES)]
    for what, counts in sorted(phases.items()):
        statuses = sorted(ends.get(what, {}).items())
        ended = ", ".join(f"{n} x status {status}" for status, n in statuses)
        lines.append(f"{what:<34}" + "".join(f"{counts[p]:>9}" for p in PHASES) + f"   {ended}")
    total = sum((Counter(c) for c in phases.values()), Counter[str]())
    lines.append(f"{'all signals':<34}" + "".join(f"{total[phase]:>9}" for phase in PHASES))
    lines += [f"workers that died or hung and held {what}: {n}" for what, n in held.items()]
    failed = sum(bool(v.faults) for v in verdicts)
    return [*lines, f"{len(verdicts)} trials, {failed} failed"]


_HELD = re.compile("it held (no lock|[^;]+)")


@click.command()
@click.argument("count", metavar="[N]", type=click.IntRange(min=1), default=1000)
@click.option("--seed", type=int, help="That of the first trial; the others follow.")
def main(count: int, seed: int | None) -> None:
    """Send signals to the processes of N short runs, mostly in the kernel, and judge how they end.

    A trial is repeated by its seed: torture 1 --seed K.  The status is 1 if one failed.
    """
    first = secrets.randbits(32) if seed is None else seed
    click.echo(f"seed {first}")
    verdicts: list[Verdict] = []
    with contextlib.suppress(KeyboardInterrupt), progress(quiet=False) as show:
        for verdict in torture(count, first, show):
            verdicts.append(verdict)
            if verdict.faults:
                click.echo(failure(verdict))
    for line in summary(verdicts):
        click.echo(line)
    sys.exit(any(v.faults for v in verdicts))


if __name__ == "__main__":
    main()
