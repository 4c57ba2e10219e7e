# SPDX-License-Identifier: MIT
"""What each CPU did last: its calls and returns of kernel functions, until a promise is broken.

It checks nothing; `spfemu.stress.history` shows it.  Give it as the first of the oracles.
"""

from spfemu.kernel import around, kernel, proceed, slowpath
from spfemu.layout import CPU, HISTORY_ENTRIES, HISTORY_WORDS, STRESS, STRESS_CPU, WORD
from spfemu.primitives import load, read_cycles, smp_store_release, store, this_cpu


@around
def trace_enter(site: int, a0: int) -> None:
    """Note the call."""
    note_step(site, a0)
    proceed(site, a0)


@around
def trace_return(site: int, result: int) -> None:
    """Note the return."""
    note_step(site, result)
    proceed(site, result)


@around
def worker_operation(cpu: int) -> int:
    """Keep what led to a failure: the others go on until the parent stops them."""
    result: int = proceed(cpu)
    if result < 0:
        freeze(cpu)
    return result


@around
def vm_bug_on(condition: int, code: int) -> None:
    """Keep what led to an assertion that fails, as where an oracle sees a promise broken."""
    if condition != 0 and this_cpu() != 0:
        freeze(this_cpu())
    proceed(condition, code)


@slowpath
def freeze(cpu: int) -> None:
    """Let no CPU note any more."""
    smp_store_release(load(load(cpu + CPU.stress) + STRESS_CPU.stress) + STRESS.frozen, 1)


@kernel
def note_step(site: int, word: int) -> None:
    """Write an entry to this CPU's history, over the oldest one."""
    cpu = this_cpu()
    if cpu == 0:  # called from outside, for no CPU
        return
    own = load(cpu + CPU.stress)
    if load(load(own + STRESS_CPU.stress) + STRESS.frozen) != 0:
        return
    count = load(own + STRESS_CPU.nr_history)
    at = own + STRESS_CPU.history + count % HISTORY_ENTRIES * (HISTORY_WORDS * WORD)
    store(at, read_cycles())
    store(at + WORD, site)
    store(at + 2 * WORD, word)
    # pairs with the parent's look at the ring once CPUs have stopped: what is counted is there
    smp_store_release(own + STRESS_CPU.nr_history, count + 1)
