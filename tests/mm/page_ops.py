# SPDX-License-Identifier: MIT
"""A program that allocates, marks, passes on and frees frames, and notices a frame given out twice.

A CPU marks each frame that it holds with its own number in the first word.  It exchanges frames
with the others through a few scratch words, so that frames are freed by another CPU than the one
that took them.
"""

from data_ops import data_random, data_scratch

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE, WORD
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import alloc_page, get_page, page_address, put_page
from spfemu.mm.sched import cond_resched
from spfemu.primitives import load, store, xchg

HELD = 150
"""Frames that a CPU holds at most: more than its two lists, so that they go to the pool."""
EXCHANGE = 16
"""Scratch words through which frames pass."""


@kernel
def page_slot(cpu: int, index: int) -> int:
    """Address of the scratch word of a frame that this CPU holds, or may hold."""
    return data_scratch(cpu) + (EXCHANGE + load(cpu + CPU.id) * HELD + index) * WORD


@kernel
def page_take(cpu: int, slot: int) -> int:
    """Take a frame and mark it; 1 if somebody else has it too, -1 if there is none."""
    page = alloc_page(cpu, PageKind.ANON)
    if page == 0:
        return -1
    mark = page_address(cpu, page)
    wrong = load(page + PAGE.refcount) != 1 or load(mark) < 0
    store(mark, -1 - load(cpu + CPU.id))
    store(slot, page)
    return wrong


@kernel
def page_drop(cpu: int, slot: int) -> int:
    """Free a frame, sometimes by two references; 1 if its mark is not this CPU's any more."""
    page = load(slot)
    mark = page_address(cpu, page)
    wrong = load(mark) != -1 - load(cpu + CPU.id)
    store(mark, 0)
    store(slot, 0)
    if data_random(cpu, 2):
        get_page(page)
        put_page(cpu, page)
    put_page(cpu, page)
    return wrong


@kernel
def page_exchange(cpu: int, slot: int) -> int:
    """Put a held frame into an exchange word and mark what comes out; 1 if the mark was wrong."""
    page = load(slot)
    if page != 0:
        if load(page_address(cpu, page)) != -1 - load(cpu + CPU.id):
            return 1
    page = xchg(data_scratch(cpu) + data_random(cpu, EXCHANGE) * WORD, page)
    store(slot, page)
    if page != 0:
        store(page_address(cpu, page), -1 - load(cpu + CPU.id))
    return 0


@kernel
def page_program(cpu: int, rounds: int) -> int:
    """Take, exchange and free frames at random; returns 1 if something was wrong."""
    while rounds > 0:
        rounds -= 1
        slot = page_slot(cpu, data_random(cpu, HELD))
        what = data_random(cpu, 8)
        # phases of mostly taking and mostly freeing, so that lists fill and empty
        taking = (rounds >> 9) & 1
        wrong = 0
        if what == 0:
            wrong = page_exchange(cpu, slot)
        elif load(slot) == 0:
            if taking or what == 1:
                wrong = page_take(cpu, slot)
        elif taking == 0 or what == 1:
            wrong = page_drop(cpu, slot)
        if wrong > 0:
            return wrong
        cond_resched(cpu)
    return 0


@kernel
def page_put_unmarked(cpu: int, page: int) -> None:
    """Free a frame, if it is one, without its mark: contents outlive the test's segment reset."""
    if page != 0:
        store(page_address(cpu, page), 0)
        put_page(cpu, page)


@kernel
def page_program_end(cpu: int) -> int:
    """Free what this CPU holds and what is in the exchange."""
    for index in range(HELD):
        page_put_unmarked(cpu, load(page_slot(cpu, index)))
    for index in range(EXCHANGE):
        page_put_unmarked(cpu, xchg(data_scratch(cpu) + index * WORD, 0))
    return 0
