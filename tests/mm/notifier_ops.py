# SPDX-License-Identifier: MIT
"""A process that forks while threads write, read by subscribers: what they read is never old.

Beside the writers and the forker of `fork_ops`.
"""

from fork_ops import PAGES, WORDS, Scratch, Wrong, fork_address, fork_scratch, fork_wrong

from spfemu.kernel import kernel
from spfemu.layout import CPU, WORD
from spfemu.mm.mmu_notifier import mmu_notifier_register, mmu_notifier_unregister
from spfemu.mm.sched import cond_resched
from spfemu.mm.secondary_mmu import notifier_read
from spfemu.primitives import load, read_once

ALL_WORDS = PAGES * WORDS
READS = 64
"""Reads of one subscription."""


@kernel
def notifier_check_word(cpu: int, subscription: int, index: int) -> int:
    """Read a writer's word; it must be a count that it has had meanwhile.  0 or a Wrong."""
    count = fork_scratch(cpu) + Scratch.COUNTS + index * WORD
    low = read_once(count)
    error, value = notifier_read(cpu, subscription, fork_address(index))
    # a writer notes a count after it has written it
    high = read_once(count) + 1
    if error != 0:
        return fork_wrong(cpu, Wrong.ERROR, fork_address(index), 0, error)
    if value < low or value > high:
        return fork_wrong(cpu, Wrong.LOST_UPDATE, fork_address(index), low, value)
    return 0


@kernel
def notifier_reader(cpu: int) -> int:
    """Subscribe, read, end the subscription, until the forker ends; 0 or a Wrong."""
    scratch = fork_scratch(cpu)
    index = 0
    result = 0
    while result == 0 and read_once(scratch + Scratch.STOP) == 0:
        subscription = mmu_notifier_register(cpu, load(cpu + CPU.mm))
        if subscription < 0:
            return fork_wrong(cpu, Wrong.ERROR, 0, 0, subscription)
        for _ in range(READS):
            if result == 0:
                result = notifier_check_word(cpu, subscription, index)
            index = (index + 1) % ALL_WORDS
            cond_resched(cpu)
        mmu_notifier_unregister(cpu, subscription)
    return result


@kernel
def notifier_keeper(cpu: int, subscription: int) -> int:
    """Read through one subscription until the forker ends; 0 or a Wrong."""
    index = 0
    result = 0
    while result == 0 and read_once(fork_scratch(cpu) + Scratch.STOP) == 0:
        result = notifier_check_word(cpu, subscription, index)
        index = (index + 5) % ALL_WORDS
        cond_resched(cpu)
    return result


# Mutants


@kernel
def mutant_tell_nobody(cpu: int, mm: int, start: int, end: int) -> None:
    """Let subscribers keep what they have."""
