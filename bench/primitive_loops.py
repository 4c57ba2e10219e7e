# SPDX-License-Identifier: MIT
"""Loops over one primitive each; primitive_loops.c has the same in C.

A loop's result depends on what every turn did, so that neither compiler can drop one.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE_SIZE, WORD
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
    store,
    write_once,
    xchg,
)

PAGE_WORDS = PAGE_SIZE // WORD


@kernel
def loop_load(word: int, count: int) -> int:
    """Walk over the words of a page, for a compiler may read one and the same word only once."""
    total = 0
    for i in range(count):
        total += load(word + (i & (PAGE_WORDS - 1)) * WORD)
    return total


@kernel
def loop_store(word: int, count: int) -> int:
    """Walk over the words of a page."""
    for i in range(count):
        store(word + (i & (PAGE_WORDS - 1)) * WORD, i)
    return load(word)


@kernel
def loop_read_once(word: int, count: int) -> int:
    """Read a word that stays in the cache."""
    total = 0
    for _ in range(count):
        total += read_once(word)
    return total


@kernel
def loop_write_once(word: int, count: int) -> int:
    """Write a word that stays in the cache."""
    for i in range(count):
        write_once(word, i)
    return read_once(word)


@kernel
def loop_smp_load_acquire(word: int, count: int) -> int:
    """Read a word that stays in the cache."""
    total = 0
    for _ in range(count):
        total += smp_load_acquire(word)
    return total


@kernel
def loop_smp_store_release(word: int, count: int) -> int:
    """Write a word that stays in the cache."""
    for i in range(count):
        smp_store_release(word, i)
    return read_once(word)


@kernel
def loop_xchg(word: int, count: int) -> int:
    """Exchange a word."""
    total = 0
    for i in range(count):
        total += xchg(word, i)
    return total


@kernel
def loop_cmpxchg(word: int, count: int) -> int:
    """Compare and exchange with success."""
    failed = 0
    write_once(word, 0)
    for i in range(count):
        if cmpxchg(word, i, i + 1) != i:
            failed += 1
    return failed


@kernel
def loop_atomic_fetch_add(word: int, count: int) -> int:
    """Add in full order."""
    total = 0
    for _ in range(count):
        total += atomic_fetch_add(word, 1)
    return total


@kernel
def loop_atomic_fetch_add_relaxed(word: int, count: int) -> int:
    """Add in no order."""
    total = 0
    for _ in range(count):
        total += atomic_fetch_add_relaxed(word, 1)
    return total


@kernel
def loop_smp_mb(word: int, count: int) -> int:
    """Store, fence, load: what a full fence is for."""
    total = 0
    for i in range(count):
        write_once(word, i)
        smp_mb()
        total += read_once(word + WORD)
    return total


@kernel
def loop_clear_page(word: int, count: int) -> int:
    """Clear a page that stays in the cache."""
    for i in range(count):
        clear_page(word)
        write_once(word + (i & (PAGE_WORDS - 1)) * WORD, i)
    return read_once(word)


@kernel
def loop_commit(word: int, count: int) -> int:
    """Commit as a speculative fault does: check a sequence, try a lock, check again, write.

    Words: the sequence, on lines of their own the lock and the entry.
    """
    failed = 0
    for i in range(count):
        seq = read_once(word)
        smp_rmb()
        if cmpxchg_acquire(word + 8 * WORD, 0, 1) != 0:
            failed += 1
        else:
            smp_rmb()
            if read_once(word) == seq:
                write_once(word + 16 * WORD, i)
            else:
                failed += 1
            smp_store_release(word + 8 * WORD, 0)
    return failed + read_once(word + 16 * WORD)
