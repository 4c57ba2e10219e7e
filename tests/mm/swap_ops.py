# SPDX-License-Identifier: MIT
"""What CPUs do that use more memory than there is, and the kswapd beside them."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SIZE, SYSTEM
from spfemu.mm.context import switch_mm
from spfemu.mm.flags import Madv
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.mm.mmu import user_read, user_write
from spfemu.mm.sched import cond_resched
from spfemu.mm.syscalls import sys_madvise
from spfemu.mm.vmscan import kswapd_op
from spfemu.primitives import load, read_once

LOST = -1001
"""A page does not hold what was written to it."""


@kernel
def touch_and_verify(cpu: int, area: int, pages: int, rounds: int, mark: int) -> int:
    """Write to all pages of an area and read them back, the values different in each round."""
    for i in range(rounds):
        for page in range(pages):
            error = user_write(cpu, area + page * PAGE_SIZE, mark + i * pages + page)
            if error != 0:
                return error
            cond_resched(cpu)
        for page in range(pages):
            error, value = user_read(cpu, area + page * PAGE_SIZE)
            if error != 0:
                return error
            if value != mark + i * pages + page:
                return LOST
            cond_resched(cpu)
        if i & 1:
            # half of what this CPU has goes out at once
            sys_madvise(cpu, area, (pages // 2) * PAGE_SIZE, Madv.PAGEOUT)
    return 0


@kernel
def touch_and_fork(cpu: int, area: int, pages: int, rounds: int, mark: int) -> int:
    """Do so, with a child each time that changes its copy and exits."""
    parent = load(cpu + CPU.mm)
    for i in range(rounds):
        for page in range(pages):
            error = user_write(cpu, area + page * PAGE_SIZE, mark + i + page)
            if error != 0:
                return error
            cond_resched(cpu)
        child = sys_fork(cpu)
        if child < 0:
            return child
        switch_mm(cpu, child)
        error = verify_child(cpu, area, pages, mark + i)
        exit_mm(cpu, parent)
        if error != 0:
            return error
        for page in range(pages):
            error, value = user_read(cpu, area + page * PAGE_SIZE)
            if error != 0:
                return error
            if value != mark + i + page:
                return LOST
            cond_resched(cpu)
    return 0


@kernel
def verify_child(cpu: int, area: int, pages: int, mark: int) -> int:
    """Read what the child has inherited and write over it."""
    for page in range(pages):
        error, value = user_read(cpu, area + page * PAGE_SIZE)
        if error == 0 and value != mark + page:
            error = LOST
        if error == 0:
            error = user_write(cpu, area + page * PAGE_SIZE, 1)
        if error != 0:
            return error
        cond_resched(cpu)
    return 0


@kernel
def run_kswapd(cpu: int) -> int:
    """Be kswapd until told to stop."""
    stop = load(cpu + CPU.system) + SYSTEM.stop
    while read_once(stop) == 0:
        kswapd_op(cpu)
        cond_resched(cpu)
    return 0
