# SPDX-License-Identifier: MIT
"""Small kernel functions for tests of the engines: a sequence count, a mutex, a ticket lock."""

from spfemu.kernel import kernel, slowpath
from spfemu.mm.bug import Bug, vm_bug_on
from spfemu.mm.irq import cpu_relax_poll
from spfemu.primitives import (
    cmpxchg_acquire,
    cpu_relax,
    futex_wait,
    futex_wake,
    load,
    read_cycles,
    read_once,
    smp_rmb,
    smp_store_release,
    smp_wmb,
    write_once,
    xchg,
)


@kernel
def pair_write(seq: int, value: int) -> None:
    """Write `value` to the two words behind the sequence count."""
    write_once(seq, read_once(seq) + 1)
    smp_wmb()  # the count is odd before the first word changes; pairs with pair_read's second
    write_once(seq + 8, value)
    write_once(seq + 16, value)
    smp_store_release(seq, read_once(seq) + 1)


@kernel
def pair_read(seq: int) -> tuple[int, int, int]:
    """Read both words; returns whether no writer ran meanwhile, and the words."""
    start = read_once(seq)
    smp_rmb()  # pairs with the release in pair_write
    first = load(seq + 8)
    second = load(seq + 16)
    smp_rmb()  # pairs with smp_wmb in pair_write
    return start % 2 == 0 and read_once(seq) == start, first, second


@kernel
def pair_read_unchecked(seq: int) -> tuple[int, int]:
    """Read both words and hope."""
    return load(seq + 8), load(seq + 16)


@kernel
def mutex_lock(lock: int) -> None:
    """Take a mutex: 0 free, 1 held, 2 held with sleepers."""
    if cmpxchg_acquire(lock, 0, 1) != 0:
        mutex_lock_slowpath(lock, -1)


@slowpath
def mutex_lock_slowpath(lock: int, timeout_ns: int) -> int:
    """Sleep until the lock was free; a negative errno if a sleep timed out."""
    while xchg(lock, 2) != 0:
        error = futex_wait(lock, 2, timeout_ns)
        if error == -110:
            return error
    return 0


@kernel
def mutex_unlock(lock: int) -> None:
    """Release a mutex and wake a sleeper."""
    if xchg(lock, 0) == 2:
        futex_wake(lock, 1)


@kernel
def add_locked(lock: int, counter: int) -> int:
    """Add one under the mutex; returns the new value."""
    mutex_lock(lock)
    value = load(counter) + 1
    write_once(counter, value)
    mutex_unlock(lock)
    return value


@kernel
def add_unlocked(counter: int) -> int:
    """Add one without any lock: another CPU's addition may get lost."""
    value = load(counter) + 1
    write_once(counter, value)
    return value


@kernel
def two_locks(first: int, second: int) -> int:
    """Take two mutexes in the order given."""
    mutex_lock(first)
    mutex_lock(second)
    mutex_unlock(second)
    mutex_unlock(first)
    return 1


@kernel
def wait_for_word(cpu: int, word: int, value: int) -> int:
    """Spin until `word` is `value`, serving IPIs; returns the steps it took by the clock."""
    start = read_cycles()
    while read_once(word) != value:
        cpu_relax_poll(cpu)
    return read_cycles() - start


@kernel
def wait_a_while(word: int, rounds: int) -> int:
    """Spin until `word` is set, at most `rounds` times; returns whether it was."""
    for _ in range(rounds):
        if read_once(word) != 0:
            return 1
        cpu_relax()
    return 0


@kernel
def set_words(first: int, count: int, value: int) -> int:
    """Write `value` to `count` words."""
    for i in range(count):
        write_once(first + 8 * i, value)
    return count


@kernel
def never_negative(value: int) -> int:
    """Stop the CPU if `value` is negative."""
    vm_bug_on(value < 0, Bug.REFCOUNT_UNDERFLOW)
    return value
