# SPDX-License-Identifier: MIT
"""Litmus tests: the smallest programs that tell memory orders apart, and all their outcomes.

Names are those of the Linux kernel memory model (tools/memory-model) and of herd.
"""

from spfemu.engines.script import Script
from spfemu.engines.steps import Step
from spfemu.kernel import kernel
from spfemu.primitives import (
    atomic_fetch_add,
    atomic_fetch_add_relaxed,
    clear_page,
    cmpxchg,
    cmpxchg_acquire,
    load,
    read_once,
    smp_load_acquire,
    smp_mb,
    smp_rmb,
    smp_store_release,
    smp_wmb,
    store,
    write_once,
    xchg,
)


@kernel
def write_two(x: int, y: int) -> int:
    write_once(x, 1)
    write_once(y, 1)
    return 0


@kernel
def write_two_wmb(x: int, y: int) -> int:
    write_once(x, 1)
    smp_wmb()
    write_once(y, 1)
    return 0


@kernel
def write_two_mb(x: int, y: int) -> int:
    write_once(x, 1)
    smp_mb()
    write_once(y, 1)
    return 0


@kernel
def write_two_release(x: int, y: int) -> int:
    write_once(x, 1)
    smp_store_release(y, 1)
    return 0


@kernel
def write_two_failed_cmpxchg(x: int, y: int) -> int:
    write_once(x, 1)
    cmpxchg(y + 8, 5, 6)
    write_once(y, 1)
    return 0


@kernel
def write_two_xchg(x: int, y: int) -> int:
    write_once(x, 1)
    xchg(y + 8, 1)
    write_once(y, 1)
    return 0


@kernel
def release_then_write(x: int, y: int) -> int:
    smp_store_release(x, 1)
    write_once(y, 1)
    return 0


@kernel
def write_one(x: int) -> int:
    write_once(x, 1)
    return 0


@kernel
def write_twice(x: int) -> int:
    write_once(x, 1)
    write_once(x, 2)
    return 0


@kernel
def read_two(x: int, y: int) -> tuple[int, int]:
    first = read_once(y)
    return first, read_once(x)


@kernel
def read_two_rmb(x: int, y: int) -> tuple[int, int]:
    first = read_once(y)
    smp_rmb()
    return first, read_once(x)


@kernel
def read_two_acquire(x: int, y: int) -> tuple[int, int]:
    first = smp_load_acquire(y)
    return first, read_once(x)


@kernel
def read_then_acquire(x: int, y: int) -> tuple[int, int]:
    first = read_once(y)
    return first, smp_load_acquire(x)


@kernel
def read_two_branch(x: int, y: int) -> tuple[int, int]:
    """A control dependency orders no load."""
    if read_once(y):
        return 1, read_once(x)
    return 0, 0


@kernel
def read_two_address(x: int, y: int) -> tuple[int, int]:
    first = read_once(y)
    return first, read_once(x + (first & 0))


@kernel
def read_two_through_memory(x: int, y: int, mine: int) -> tuple[int, int]:
    """The dependency goes through a word of this CPU alone, as when a VMA is copied."""
    store(mine, read_once(y))
    first = load(mine)
    return first, read_once(x + (first & 0))


@kernel
def read_twice(x: int) -> tuple[int, int]:
    first = read_once(x)
    return first, read_once(x)


@kernel
def write_and_read_back(x: int) -> int:
    write_once(x, 2)
    return read_once(x)


@kernel
def write_then_read(x: int, y: int) -> int:
    write_once(x, 1)
    return read_once(y)


@kernel
def write_mb_read(x: int, y: int) -> int:
    write_once(x, 1)
    smp_mb()
    return read_once(y)


@kernel
def write_rmb_read(x: int, y: int) -> int:
    write_once(x, 1)
    smp_rmb()
    return read_once(y)


@kernel
def add_then_read(x: int, y: int) -> int:
    atomic_fetch_add(x, 1)
    return read_once(y)


@kernel
def add_relaxed_then_read(x: int, y: int) -> int:
    atomic_fetch_add_relaxed(x, 1)
    return read_once(y)


@kernel
def read_then_write(x: int, y: int) -> int:
    seen = read_once(x)
    write_once(y, 1)
    return seen


@kernel
def pass_on(x: int, y: int) -> int:
    """Tell of x by y, with release."""
    seen = read_once(x)
    smp_store_release(y, 1)
    return seen


@kernel
def write_values(x: int, y: int) -> int:
    write_once(x, 1)
    write_once(y, 2)
    return 0


@kernel
def write_values_wmb(x: int, y: int) -> int:
    write_once(x, 1)
    smp_wmb()
    write_once(y, 2)
    return 0


@kernel
def clear_then_write(page: int, y: int) -> int:
    clear_page(page)
    write_once(y, 1)
    return read_once(page)


@kernel
def clear_then_release(page: int, y: int) -> int:
    clear_page(page)
    smp_store_release(y, 1)
    return read_once(page)


@kernel
def add_in_order(lock: int, counter: int) -> int:
    """Add one under a lock for which nobody waits; -1 if it is taken."""
    if cmpxchg_acquire(lock, 0, 1) != 0:
        return -1
    value = load(counter)
    store(counter, value + 1)
    smp_store_release(lock, 0)
    return value


@kernel
def add_out_of_order(lock: int, counter: int) -> int:
    """The same with an unlock that is no release."""
    if cmpxchg_acquire(lock, 0, 1) != 0:
        return -1
    value = load(counter)
    store(counter, value + 1)
    write_once(lock, 0)
    return value


SCRATCH_WORDS = 24
"""Words that litmus tests use."""


def poke(segment, address, value):
    """Write a word from outside of any script."""
    segment.words[(address - segment.base) // 8] = value


class Choices:
    """All sequences of choices, one run after the other, the next by the last choice first."""

    def __init__(self):
        self.taken = []
        self._at = 0

    def choose(self, count):
        """Return the choice among `count` of this run."""
        if self._at == len(self.taken):
            self.taken.append([0, count])
        assert self.taken[self._at][1] == count, "the run is not deterministic"
        self._at += 1
        return self.taken[self._at - 1][0]

    def next_run(self):
        """Go on to the next sequence; False if this was the last."""
        while self.taken and self.taken[-1][0] == self.taken[-1][1] - 1:
            self.taken.pop()
        if self.taken:
            self.taken[-1][0] += 1
        self._at = 0
        return bool(self.taken)


def outcomes(engine, segment, memory, calls, words):
    """All outcomes of calls on CPUs of their own: their results, then the values of `words`.

    Every order of steps is tried, with every store held back or not, for every number of steps, and
    every value that a load may have.
    """
    found = set()
    choices = Choices()
    while True:
        for word in range(SCRATCH_WORDS):
            poke(segment, segment.scratch(word), 0)
        with Script(engine, segment, memory=memory) as script:
            cpus = [script.cpu(name, *call) for name, call in zip("ABCD", calls, strict=False)]
            for cpu in cpus:
                # to hold back the only thing that a CPU does for others is to do it later
                if cpu.fiber.function not in ("write_one", "read_two_through_memory"):
                    cpu.view.hold = lambda _address: choices.choose(2) == 1
                cpu.view.pick = lambda _address, back: choices.choose(back + 1)
            _run(cpus, choices)
            found.add((*(cpu.result for cpu in cpus), *map(segment.word, words)))
        if not choices.next_run():
            return found


def _is_no_choice(cpu):
    """Tell whether its next step has no effect on others; a return empties the buffer."""
    event = cpu.fiber.event
    if event is None or event.kind == Step.ENTER or event.site.primitive == "smp_wmb":
        return True
    return event.kind == Step.RETURN and not cpu.view.buffer


def _run(cpus, choices):
    while True:
        for cpu in cpus:
            while cpu.fiber.ready and _is_no_choice(cpu):
                cpu.advance()
        actions = [(cpu, None) for cpu in cpus if cpu.fiber.ready]
        for cpu in cpus:
            actions += [(cpu, i) for i, e in enumerate(cpu.view.buffer)
                        if e.held and cpu.view.may_show(i)]  # fmt: skip
        if not actions:
            return
        cpu, index = actions[choices.choose(len(actions))]
        if index is None:
            cpu.advance()
        else:
            cpu.view.show(index)
