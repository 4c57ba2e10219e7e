# SPDX-License-Identifier: MIT
"""Delays before accesses to memory, so that what others do comes in between.

It checks nothing: it makes windows wide that are otherwise hit once in an hour.  A delay everywhere
would only make everything slow.  So every CPU delays at one *hot* site at a time, drawn from those
that some CPU has passed, and half of the time from a focus: for some milliseconds (an epoch), at
most HOT_DELAYS times, for up to a length that is drawn with it; besides, rarely, for a moment
anywhere.  Most delays spin, some sleep:
then other CPUs run even if there are fewer cores.  IPIs are not served meanwhile, and locks are
kept: kernel code may do there what it may do without the delay.

Nothing happens until `spfemu.stress.delays.set_delays` has set the parameters.  For the native
engine: stepped code has schedules instead.
"""

from spfemu.kernel import around, kernel, proceed, slowpath
from spfemu.layout import CPU, SITES_MAX, STRESS, STRESS_CPU, SYSTEM, WORD
from spfemu.primitives import (
    atomic_fetch_add_relaxed,
    cpu_relax,
    futex_wait,
    load,
    read_cycles,
    read_once,
    store,
    this_cpu,
    write_once,
    xchg,
)

OUTERMOST = True
"""Around all other oracles: a delay comes before they look, or it would part look and access."""
HOT_DELAYS = 20
LOOK_MASK = 511
"""A CPU looks at the time after at most so many accesses."""
SPINS_MAX = 1 << 16
"""Rounds after which a spin ends at the latest."""
RANDOM_MASK = (1 << 62) - 1


@around
def trace_access(site: int, address: int) -> None:
    """Delay, perhaps, before the access."""
    cpu = this_cpu()
    if cpu != 0:
        own = load(cpu + CPU.stress)
        if site + 1 == load(own + STRESS_CPU.hot_site):
            delay_at_hot_site(own)
        left = load(own + STRESS_CPU.countdown) - 1
        store(own + STRESS_CPU.countdown, left)
        if left < 0:
            look_at_time(own)
        stress = load(own + STRESS_CPU.stress)
        if site < SITES_MAX and read_once(stress + STRESS.passed + site * WORD) == 0:
            note_site(stress, site)
    proceed(site, address)


@slowpath
def note_site(stress: int, site: int) -> None:
    """Let CPUs choose `site` from now on."""
    if xchg(stress + STRESS.passed + site * WORD, 1) == 0:
        index = atomic_fetch_add_relaxed(stress + STRESS.nr_sites, 1)
        # who reads the new count before this finds site 0 here, which is as good
        write_once(stress + STRESS.sites + index * WORD, site)


@slowpath
def look_at_time(own: int) -> None:
    """Choose another hot site if the epoch is over; delay for a moment, rarely."""
    stress = load(own + STRESS_CPU.stress)
    drawn = delay_random(own)
    store(own + STRESS_CPU.countdown, drawn & LOOK_MASK)
    epoch = load(stress + STRESS.delay_epoch)
    if epoch == 0:
        return
    if (drawn >> 16) & 15 == 0:
        spin_for(own, delay_below(own, load(stress + STRESS.delay_spin) >> 6))
    now = read_cycles()
    if now < load(own + STRESS_CPU.epoch_end):
        return
    store(own + STRESS_CPU.epoch_end, now + (epoch >> 1) + delay_below(own, epoch))
    store(own + STRESS_CPU.hot_site, choose_site(own, stress) + 1)
    store(own + STRESS_CPU.hot_left, HOT_DELAYS)
    # from the longest down to a hundredth of it: some windows are hit by short delays only
    store(own + STRESS_CPU.hot_spin, load(stress + STRESS.delay_spin) >> delay_below(own, 8))


@kernel
def choose_site(own: int, stress: int) -> int:
    """Draw a site: half of the time one in the focus, else any that some CPU has passed."""
    focus = load(stress + STRESS.nr_focus)
    if focus != 0 and delay_random(own) & 1:
        return load(stress + STRESS.focus + delay_below(own, focus) * WORD)
    index = delay_below(own, read_once(stress + STRESS.nr_sites))
    return read_once(stress + STRESS.sites + index * WORD)


@slowpath
def delay_at_hot_site(own: int) -> None:
    """Spin or sleep, unless this CPU has done so often enough in this epoch."""
    left = load(own + STRESS_CPU.hot_left)
    if left == 0:
        store(own + STRESS_CPU.hot_site, 0)
        return
    store(own + STRESS_CPU.hot_left, left - 1)
    if delay_random(own) & 7 != 0:
        spin_for(own, delay_below(own, load(own + STRESS_CPU.hot_spin)))
        return
    longest = load(load(own + STRESS_CPU.stress) + STRESS.delay_sleep)
    if longest != 0:
        store(own + STRESS_CPU.nr_delays, load(own + STRESS_CPU.nr_delays) + 1)
        futex_wait(own + STRESS_CPU.timer, 0, delay_below(own, longest))


@kernel
def spin_for(own: int, cycles: int) -> None:
    """Spin so long, or until the run stops."""
    stop = load(this_cpu() + CPU.system) + SYSTEM.stop
    end = read_cycles() + cycles
    store(own + STRESS_CPU.nr_delays, load(own + STRESS_CPU.nr_delays) + 1)
    for _ in range(SPINS_MAX):
        if read_cycles() >= end or read_once(stop) != 0:
            return
        cpu_relax()


@kernel
def delay_random(own: int) -> int:
    """Draw the next random number of this CPU's delays, 62 bits (Marsaglia's xorshift)."""
    x = load(own + STRESS_CPU.random)
    x = (x ^ (x << 13)) & RANDOM_MASK
    x = x ^ (x >> 7)
    x = (x ^ (x << 17)) & RANDOM_MASK
    store(own + STRESS_CPU.random, x)
    return x


@kernel
def delay_below(own: int, limit: int) -> int:
    """Draw a number from 0 to limit - 1, 0 if there is none; `limit` is below 2^31."""
    return ((delay_random(own) >> 31) * limit) >> 31
