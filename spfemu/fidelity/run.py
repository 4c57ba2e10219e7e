# SPDX-License-Identifier: MIT
"""Run random programs until time, operations or the first difference end it; replay one."""

from __future__ import annotations

import platform
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spfemu.errors import UsageError
from spfemu.events import Event
from spfemu.fidelity import program as programs
from spfemu.fidelity.compare import Difference, Names, decode, first_difference
from spfemu.fidelity.generate import Generator
from spfemu.fidelity.interpreter import Kind
from spfemu.fidelity.pair import Pair
from spfemu.fidelity.program import UNMAP_ALL, Operation, Program
from spfemu.fidelity.shrink import shrink

DEFAULT_OPERATIONS = 100_000
SEED_BITS = 62
BATCH_OPERATIONS = 1024
"""Operations between two looks at what was observed."""
TRIAL_HANG_SECONDS = 1.0
"""While shrinking: a program takes less than a millisecond."""

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the fraction done (None: unknown)."""


def _silent(_message: str, _fraction: float | None) -> None:
    return


@dataclass(frozen=True)
class Found:
    """A difference, a program whose last operation shows it, and that program as C."""

    difference: Difference
    operations: list[Operation]
    listing: str

    def encode(self) -> bytes:
        """Return the contents of a file for `replay`."""
        return programs.encode(self.operations, note=describe(self.difference))


@dataclass
class FidelityResult:
    """What a run came to.

    `counts` are the operations by kind, `events` what the emulated kernel counted.  `unrepeated`
    describes differences that were gone when the same program was run again: on a machine under
    pressure the real kernel may take a page away.  `partial`: interrupted.
    """

    seed: int
    protocol: str
    kernel: str
    version: int
    known: tuple[str, ...]
    partial: bool = False
    operations: int = 0
    programs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    unrepeated: list[str] = field(default_factory=list)
    found: Found | None = None

    @property
    def operations_per_second(self) -> float:
        """Operations run on both sides and compared, per second."""
        return self.operations / self.seconds if self.seconds else 0.0


def run_fidelity(
    operations: int | None = None,
    seconds: float | None = None,
    seed: int | None = None,
    progress: Progress = _silent,
    *,
    protocol: str = "spf",
    overrides: Sequence[str] = (),
    config: Mapping[str, int] | None = None,
) -> FidelityResult:
    """Compare the emulated kernel with the real one by random programs.

    Ends after `operations` or `seconds`, whichever comes first (100,000 operations if neither is
    given), at the first difference, which it shrinks, or when interrupted.  `config` are build
    options of the emulated kernel.  Raises UsageError, KernelSourceError for an override that
    cannot be used, ResourceError if this machine cannot do it, WorkerDiedError.
    """
    if operations is None and seconds is None:
        operations = DEFAULT_OPERATIONS
    for name, value in (("operations", operations), ("seconds", seconds)):
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be more than 0, not {value}")
    if seed is None:
        seed = new_seed()
    progress("compiling", None)
    with Pair(protocol, overrides, config) as pair:
        session = _Session(pair, seed, protocol)
        try:
            session.run(operations, seconds, progress)
        except KeyboardInterrupt:
            session.result.partial = True
    return session.result


def new_seed() -> int:
    """Return a seed that nobody has chosen."""
    return secrets.randbits(SEED_BITS)


def replay(
    operations: Program,
    *,
    protocol: str = "spf",
    overrides: Sequence[str] = (),
    config: Mapping[str, int] | None = None,
) -> Found | None:
    """Run one program on both sides; returns its first difference, not shrunk, or None.

    Raises as `run_fidelity` does.
    """
    with Pair(protocol, overrides, config) as pair:
        return _found(pair, operations)


def describe(difference: Difference) -> str:
    """Return a difference as one sentence."""
    return (
        f"{difference.aspect}: the emulator has {difference.emulated}, "
        f"Linux {platform.release()} has {difference.host}"
    )


class _Session:
    """One run."""

    def __init__(self, pair: Pair, seed: int, protocol: str) -> None:
        self.pair = pair
        self.generator = Generator(seed, pair.differences)
        self.result = FidelityResult(
            seed=seed,
            protocol=protocol,
            kernel=platform.release(),
            version=pair.version,
            known=tuple(f"{d.name}: {d.reason}" for d in pair.differences),
        )

    def run(self, operations: int | None, seconds: float | None, progress: Progress) -> None:
        """Run batches until one of the limits is reached or a difference found."""
        result = self.result
        while result.found is None:
            left = BATCH_OPERATIONS if operations is None else operations - result.operations
            fraction = _fraction(result, operations, seconds)
            if left <= 0 or fraction >= 1:
                break
            progress(f"{result.operations:,} operations", fraction)
            self._batch(min(left, BATCH_OPERATIONS), progress)

    def _batch(self, limit: int, progress: Progress) -> None:
        """Run programs of `limit` operations."""
        started = time.monotonic()
        batch: list[Operation] = []
        count = 0
        while count < limit:
            program = self.generator.program(self.result.programs)[: limit - count]
            self.result.programs += 1
            count += len(program)
            batch += [*program, UNMAP_ALL]
        streams = self.pair.run(batch)
        self._count(batch)
        difference = first_difference(streams, self.pair.bases)
        self.result.seconds += time.monotonic() - started
        if difference is None:
            if self.pair.is_worn:
                self.pair.renew()
        else:
            progress("shrinking a difference", None)
            self.result.found = self._investigate(streams.operations[: difference.index + 1])
            if self.result.found is None:
                self.result.unrepeated.append(describe(difference))

    def _count(self, batch: Program) -> None:
        result = self.result
        kinds = Counter(o.kind.name.lower() for o in batch if o.kind is not Kind.UNMAP_ALL)
        result.counts.update(kinds)
        result.operations += kinds.total()
        counted = self.pair.counts()
        result.events.update({event.name: int(counted[event]) for event in Event})

    def _investigate(self, operations: Program) -> Found | None:
        """Shrink a program whose last operation showed a difference; None if it is gone."""
        last = max((i for i, o in enumerate(operations[:-1]) if o == UNMAP_ALL), default=-1)
        # what earlier programs left behind may have a part in it
        for candidate in (operations[last + 1 :], operations):
            if self._judge(candidate) is not None:
                return _found(self.pair, shrink(candidate, self._judge))
        return None

    def _judge(self, operations: Program) -> int | None:
        """Return the index of the first difference, if two runs agree on it."""
        first = self._difference(operations)
        return first if first is not None and self._difference(operations) == first else None

    def _difference(self, operations: Program) -> int | None:
        difference = first_difference(
            self.pair.run(operations, TRIAL_HANG_SECONDS), self.pair.bases
        )
        return None if difference is None else difference.index


def _fraction(result: FidelityResult, operations: int | None, seconds: float | None) -> float:
    done = [0.0]
    if operations is not None:
        done.append(result.operations / operations)
    if seconds is not None:
        done.append(result.seconds / seconds)
    return max(done)


def _found(pair: Pair, operations: Program) -> Found | None:
    streams = pair.run(operations)
    difference = first_difference(streams, pair.bases)
    if difference is None:
        return None
    names = Names(pair.bases)
    seen = zip(streams.operations, decode(streams.host), strict=False)
    results = [names.result(operation, observed) for operation, observed in seen]
    shown = streams.operations[: difference.index + 1]
    text = programs.listing(
        shown, results, f"First difference after the last line: {describe(difference)}"
    )
    return Found(difference, list(operations), text)
