# SPDX-License-Identifier: MIT
"""Torture of processes: signals to workers, writers, kernel threads and their parent, at random.

A trial starts a short `spfemu run` or `spfemu stress` and, at a random time, sends a signal to one
of its processes.  Then it is judged: whether the command ends in time, with the status and the
words that docs/cli.md promises, and leaves no process and no file.  ``scripts/torture`` runs many.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

from spfemu.cli.progress import progress
from spfemu.errors import ExitCode
from spfemu.measure.plan import quiet
from spfemu.results import decode

MARK = "SPFEMU_TORTURE"
"""Environment variable by which the processes of a trial are known."""
BOUND_SECONDS = 180.0
"""A command that takes longer hangs, however busy the machine is."""
GONE_SECONDS = 2.0
"""Nothing may be left so long after the end."""
REPORT = "report.json"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  looked at only

WORKLOADS = ("page_fault1", "mixed", "mprotect_storm", "fork1")
PROTOCOLS = ("classic", "spf", "vma-lock")
KTHREADS = ((), (), (), ("--swap", "1M"), ("--khugepaged",))
FINE: frozenset[int] = frozenset({ExitCode.OK, ExitCode.INCONCLUSIVE})
BEFORE_MAIN: frozenset[int] = frozenset({-signal.SIGINT, -signal.SIGTERM})
"""Python itself is still starting, and may say where, or has ended."""

Show = Callable[[str, float | None], None]


@dataclass(frozen=True)
class Trial:
    """What is started, and what is done to it."""

    seed: int
    arguments: tuple[str, ...]
    victim: str
    """`parent` or `child`."""
    number: signal.Signals
    delay: float
    """Seconds from the start, or from when there are children, to the signal."""
    with_children: bool
    pause: float | None
    """Seconds from SIGSTOP to SIGCONT; None: it is not continued."""

    def __str__(self) -> str:
        """Describe it in one line."""
        since = "the first child" if self.with_children else "the start"
        then = f", SIGCONT {self.pause:.2f} s later" if self.pause is not None else ""
        return (
            f"spfemu {' '.join(self.arguments)}: {self.number.name} to the {self.victim} "
            f"{self.delay:.2f} s after {since}{then}"
        )


@dataclass
class Verdict:
    """What a trial came to."""

    trial: Trial
    status: int | None = None
    """None: it hung."""
    hit: str | None = None
    """Name and number of the process that got the signal; None if all was over."""
    faults: list[str] = field(default_factory=list)
    errors: str = ""


def make_trial(seed: int) -> Trial:
    """Choose everything from the seed."""
    choice = random.Random(seed)
    victim, number = choice.choice(
        [
            *(("child", signal.SIGKILL),) * 6,
            *(("child", signal.SIGSTOP),) * 5,
            ("child", signal.SIGCONT),
            *(("parent", signal.SIGKILL),) * 3,
            *(("parent", signal.SIGSTOP),) * 2,
            ("parent", signal.SIGCONT),
            *(("parent", signal.SIGINT),) * 3,
            *(("parent", signal.SIGTERM),) * 3,
        ]
    )
    with_children = victim == "child" or choice.random() < 0.6
    pause = None
    if number == signal.SIGSTOP and (victim == "parent" or choice.random() < 0.9):
        pause = choice.choice([0.02, 0.2, 1.0])
    return Trial(
        seed,
        tuple(_stress(choice) if choice.random() < 0.2 else _run(choice)),
        victim,
        number,
        choice.uniform(0, 0.8),
        with_children,
        pause,
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
    return [*arguments, "--seconds", "0.1", "--repeats", "3", *_seeded(choice)]


def _stress(choice: random.Random) -> list[str]:
    arguments = ["stress", "--protocol", choice.choice(PROTOCOLS), "--seconds", "1"]
    return [*arguments, "--writers", str(choice.randint(1, 2)), *_seeded(choice)]


def _seeded(choice: random.Random) -> list[str]:
    return ["--seed", str(choice.randrange(1 << 30)), "--json", REPORT]


def run_trial(trial: Trial) -> Verdict:
    """Start the command, send the signal, wait for the end, judge."""
    verdict = Verdict(trial)
    mark = uuid.uuid4().hex
    shared = set(SHARED_MEMORY.iterdir())
    with tempfile.TemporaryDirectory(prefix="spfemu-torture-") as folder:
        environment = {**os.environ, MARK: mark, "TMPDIR": folder}
        process = subprocess.Popen(
            [sys.executable, "-m", "spfemu", *trial.arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            verdict.hit = _strike(trial, process)
            output, verdict.errors = process.communicate(timeout=BOUND_SECONDS)
            verdict.status = process.returncode
            verdict.faults += _judge(verdict, output, Path(folder))
        except subprocess.TimeoutExpired:
            verdict.faults.append(f"it has not ended after {BOUND_SECONDS:g} s")
        finally:
            verdict.faults += _leftovers(mark, process)
        verdict.faults += [f"left in {folder}: {name}" for name in _strange(Path(folder))]
    new = sorted(set(SHARED_MEMORY.iterdir()) - shared)
    verdict.faults += [f"left: {path}" for path in new if "spfemu" in path.name]
    return verdict


def _strike(trial: Trial, process: subprocess.Popen[str]) -> str | None:
    """Send the signal when it is time; returns who got it."""
    choice = random.Random(trial.seed)
    while trial.with_children and process.poll() is None and not _children(process.pid):
        time.sleep(0.005)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(trial.delay)
    victims = [process.pid] if trial.victim == "parent" else _children(process.pid)
    if process.poll() is not None or not victims:
        return None
    pid = choice.choice(victims)
    name = _name(pid)
    try:
        os.kill(pid, trial.number)
        if trial.pause is not None:
            time.sleep(trial.pause)
            os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return None
    return f"{name} (pid {pid})"


def _children(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return sorted(child.pid for child in psutil.Process(pid).children())
    return []


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return "?"


def _judge(verdict: Verdict, output: str, folder: Path) -> list[str]:
    """Say what of the end is not as promised."""
    trial, status = verdict.trial, verdict.status
    faults = []
    if status not in _allowed(verdict):
        faults.append(f"it ended with status {status}")
    if "Traceback" in verdict.errors + output and status not in BEFORE_MAIN:
        faults.append("there is a traceback")
    said = output + verdict.errors
    if status == ExitCode.WORKER_DIED and "probe the machine" not in said:
        pid = str(verdict.hit).rpartition("(")[2].rstrip(")")
        if pid not in said:
            faults.append(f"{verdict.hit} is not named")
        how = "killed by SIGKILL" if trial.number == signal.SIGKILL else "a signal stopped"
        if how not in said:
            faults.append(f"it is not said that it was {how}")
    if status == ExitCode.INTERRUPTED and "interrupted" not in said:
        faults.append("it is not said that it was interrupted")
    report = folder / REPORT
    if report.exists() and trial.arguments[0] == "run":
        partial = decode(report.read_bytes()).partial
        if (partial.status if partial else status) != status or (
            partial is None and status not in FINE
        ):
            faults.append(f"the report says {partial}, the status is {status}")
    elif status in FINE and not report.exists():
        faults.append("there is no report")
    return faults


def _allowed(verdict: Verdict) -> frozenset[int]:
    """Return the statuses with which the command may end."""
    trial = verdict.trial
    if verdict.hit is None or trial.number == signal.SIGCONT:
        return FINE
    if trial.victim == "child":
        # what was struck may have done its work already: then the result is as good as any
        return FINE if trial.pause is not None else FINE | {ExitCode.WORKER_DIED}
    if trial.number == signal.SIGKILL:
        return frozenset({-signal.SIGKILL})
    if trial.number == signal.SIGSTOP:
        return FINE
    return FINE | BEFORE_MAIN | {ExitCode.INTERRUPTED}


def _leftovers(mark: str, process: subprocess.Popen[str]) -> list[str]:
    """Name the processes of the trial that have not gone in time; ends them."""
    deadline = time.monotonic() + GONE_SECONDS
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    names = [f"process {pid} ({_name(pid)}) is left" for pid in left]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    return names


def marked(mark: str) -> list[int]:
    """Return the processes in whose environment the mark is; a zombie has none."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def _strange(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != REPORT)


def torture(count: int, seed: int, show: Show = quiet) -> Iterator[Verdict]:
    """Run `count` trials, whose seeds follow each other."""
    bad = 0
    for i in range(count):
        show(f"{i} trials, {bad} failed", i / count)
        verdict = run_trial(make_trial(seed + i))
        bad += bool(verdict.faults)
        yield verdict


def failure(verdict: Verdict) -> str:
    """Describe a trial that failed."""
    lines = [f"seed {verdict.trial.seed}: {verdict.trial}", f"  hit: {verdict.hit}"]
    lines += [f"  {fault}" for fault in verdict.faults]
    return "\n".join([*lines, *(f"  | {line}" for line in verdict.errors.splitlines())])


def summary(verdicts: Sequence[Verdict]) -> list[str]:
    """Say how commands ended, by signal."""
    ends: Counter[tuple[str, str]] = Counter()
    for verdict in verdicts:
        trial = verdict.trial
        paused = " and SIGCONT" if trial.pause is not None else ""
        what = f"{trial.number.name}{paused} to the {trial.victim}" if verdict.hit else "too late"
        ends[what, str(verdict.status)] += 1
    lines = [f"{what:<32} status {status:>4}: {n}" for (what, status), n in sorted(ends.items())]
    failed = sum(bool(v.faults) for v in verdicts)
    return [*lines, f"{len(verdicts)} trials, {failed} failed"]


@click.command()
@click.argument("count", metavar="[N]", type=click.IntRange(min=1), default=1000)
@click.option("--seed", type=int, help="That of the first trial; the others follow.")
def main(count: int, seed: int | None) -> None:
    """Send signals to the processes of N short runs at random times and judge how they end.

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
