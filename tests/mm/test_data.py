# SPDX-License-Identifier: MIT
"""Data through the MMU: random programs against a model of single pages (see data_ops.py).

What was written is read, a new page is zero, and what was unmapped or protected cannot be
accessed by any CPU, in native processes that race, in plain and native ones beside each other, and
on CPUs that take turns.  Mutants of the kernel show that these programs find such faults.
"""

import os
from collections.abc import Callable, Iterator

import pytest
from data_ops import Scratch, Wrong
from mm_machine import WorkersError, seeds
from protocol_sets import SAFE
from whole_kernel import KernelMachine, kernel_engine

from spfemu.layout import WORD

FAULTING, WRITING = 1, 8
"""Of 16 turns, how many begin with a system call."""
MUTANT_SECONDS = 5.0
"""Watchdog of programs on a mutant, which may get stuck."""


def scratch(machine: KernelMachine, offset: int) -> int:
    """Read a word of the test's."""
    return machine.segment.word(machine.segment.scratch(offset // WORD))


def verdict(machine: KernelMachine) -> list[str]:
    """What a program noted as wrong."""
    if not scratch(machine, Scratch.FAILED):
        return []
    wrong, cpu, address, expected, found = (
        scratch(machine, offset)
        for offset in (
            *(Scratch.FAILED, Scratch.FAILED_CPU, Scratch.FAILED_ADDRESS),
            *(Scratch.EXPECTED, Scratch.FOUND),
        )
    )
    return [f"{Wrong(wrong).name} by CPU {cpu} at {address:#x}: {found} instead of {expected}"]


def after(machine: KernelMachine) -> list[str]:
    """What is wrong when all programs have ended: data first, then the segment."""
    if not verdict(machine):
        machine.on(0, "data_verify")
    return verdict(machine) + machine.violations()


def run(
    machine: KernelMachine, seed: int, rounds: int, calls: tuple[int, ...], watchdog: float = 60.0
) -> list[str]:
    """Run a program on each CPU, in processes; returns what went wrong."""
    machine.reset(seed)
    machine.on(0, "data_setup")
    with machine.workers(watchdog) as workers:
        workers.start_gated(
            {i: ("data_program", machine.cpu(i), rounds, c) for i, c in enumerate(calls)}
        )
        workers.join()
    return after(machine)


def take_turns(machine: KernelMachine, seed: int, turns: int) -> list[str]:
    """Run the programs of three CPUs a few rounds at a time, in this process."""
    machine.reset(seed)
    machine.on(0, "data_setup")
    for turn in range(turns):
        machine.on(turn % 3, "data_program", 4, WRITING if turn % 3 == 0 else FAULTING)
    return after(machine)


@pytest.fixture
def make_kernel() -> Iterator[Callable[..., KernelMachine]]:
    """Return a function that makes machines of three CPUs: engine, protocol, scheme, mutant."""
    made: list[KernelMachine] = []

    def make(*kind: str) -> KernelMachine:
        made.append(KernelMachine(kernel_engine(*kind), nr_cpus=3))
        return made[-1]

    yield make
    for machine in made:
        machine.close()


schemes = pytest.mark.parametrize("scheme", ["rcu", "irq"])
protocols = pytest.mark.parametrize("protocol", SAFE)


@protocols
@schemes
def test_native_programs(
    make_kernel: Callable[..., KernelMachine], protocol: str, scheme: str
) -> None:
    """Two faulting CPUs beside one that mostly changes mappings."""
    machine = make_kernel("native", protocol, scheme)
    for seed in seeds(4):
        found = run(machine, seed, 10_000, (FAULTING, FAULTING, WRITING))
        assert found == [], f"seed {seed}: {found}"
        assert scratch(machine, Scratch.SUCCESSES) > 1000


@protocols
def test_two_writers(make_kernel: Callable[..., KernelMachine], protocol: str) -> None:
    """One faulting CPU beside two that mostly change mappings."""
    machine = make_kernel("native", protocol, "rcu")
    for seed in seeds(3):
        found = run(machine, seed, 10_000, (FAULTING, WRITING, WRITING))
        assert found == [], f"seed {seed}: {found}"


@protocols
def test_plain_beside_native(make_kernel: Callable[..., KernelMachine], protocol: str) -> None:
    """An interpreted CPU and compiled ones on one segment."""
    machine = make_kernel("native", protocol, "rcu")
    plain = kernel_engine("plain", protocol, "rcu")
    for seed in seeds(2):
        machine.reset(seed)
        machine.on(0, "data_setup")
        with machine.workers() as workers:
            workers.start(0, "data_program", machine.cpu(0), 3000, WRITING)
            workers.start(1, "data_program", machine.cpu(1), 3000, FAULTING)
            workers.start_python(2, lambda: plain.call("data_program", machine.cpu(2), 60, 4))
            workers.join()
        found = after(machine)
        assert found == [], f"seed {seed}: {found}"


@pytest.mark.parametrize("engine", ["native", "plain"])
@protocols
@schemes
def test_cpus_taking_turns(
    make_kernel: Callable[..., KernelMachine], engine: str, protocol: str, scheme: str
) -> None:
    """The same programs without any race, and repeatable."""
    machine = make_kernel(engine, protocol, scheme)
    for seed in seeds(1 if engine == "plain" else 10):
        found = take_turns(machine, seed, 200)
        assert found == [], f"seed {seed}: {found}"
    assert scratch(machine, Scratch.SUCCESSES) > 10


def run_or_die(machine: KernelMachine, seed: int, rounds: int, calls: tuple[int, ...]) -> list[str]:
    """Run programs on a mutant; a worker that dies or gets stuck is a finding as well."""
    try:
        return run(machine, seed, rounds, calls, MUTANT_SECONDS)
    except WorkersError as failure:
        return [str(failure)]


@pytest.mark.parametrize(
    ("mutant", "rounds", "calls"),
    [
        ("flush nobody else", 3000, (FAULTING, FAULTING, WRITING)),
        ("finish without flush", 3000, (FAULTING, FAULTING, WRITING)),
        ("flush only here", 3000, (FAULTING, FAULTING, WRITING)),
        ("put nothing", 3000, (FAULTING, FAULTING, WRITING)),
    ],
)
def test_mutants_are_found(
    make_kernel: Callable[..., KernelMachine], mutant: str, rounds: int, calls: tuple[int, ...]
) -> None:
    """Seeds are tried until one finds the mutant; most do."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores: CPUs that never run at once do not race")
    machine = make_kernel("native", "spf", "rcu", mutant)
    assert any(run_or_die(machine, seed, rounds, calls) for seed in seeds(40))


def test_mutant_is_found_without_race(make_kernel: Callable[..., KernelMachine]) -> None:
    """A flush that nobody is told of is found by CPUs that take turns, always."""
    machine = make_kernel("native", "classic", "rcu", "flush only here")
    for seed in range(5):
        assert take_turns(machine, seed, 200), f"seed {seed}"
