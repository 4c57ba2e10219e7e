# SPDX-License-Identifier: MIT
"""Allocations that fail when a test says so, as by the kernel's lib/fault-inject.c.

A layer of functions that stand around whatever hands out memory: frames (the first try too, so that
reclaim is entered), huge frames, slots of slabs and of the swap area.
"""

from enum import IntEnum

from spfemu.kernel import around, kernel, proceed
from spfemu.layout import CPU, SYSTEM, WORD
from spfemu.primitives import atomic_fetch_add, load


class Inject(IntEnum):
    """Scratch words, by their index."""

    COUNTDOWN = 500  # allocations up to the first that fails
    TIMES = 501  # how many fail from that one on
    FAILED = 502  # how many have failed, or more


@kernel
def should_fail(cpu: int) -> int:
    """Tell whether the allocation that asks shall fail."""
    words = load(load(cpu + CPU.system) + SYSTEM.scratch)
    if load(words + Inject.TIMES * WORD) <= 0:
        return 0
    if atomic_fetch_add(words + Inject.COUNTDOWN * WORD, -1) > 1:
        return 0
    if atomic_fetch_add(words + Inject.TIMES * WORD, -1) <= 0:
        return 0
    atomic_fetch_add(words + Inject.FAILED * WORD, 1)
    return 1


@around
def rmqueue(cpu: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu)


@around
def alloc_page(cpu: int, kind: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu, kind)


@around
def vmf_alloc_page(cpu: int, vmf: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu, vmf)


@around
def alloc_huge_page(cpu: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu)


@around
def get_swap_page(cpu: int, page: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu, page)


@around
def slab_take(cpu: int, lock: int, free: int, link: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu, lock, free, link)


@around
def slab_cache_take(cpu: int, cache: int, lock: int, free: int, link: int) -> int:
    return 0 if should_fail(cpu) else proceed(cpu, cache, lock, free, link)
