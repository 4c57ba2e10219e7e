# SPDX-License-Identifier: MIT
"""The optimistic spin queue: an MCS lock that may be left (Linux 5.12, kernel/locking/osq_lock.c).

Writers that spin for an rw_semaphore stand in line here, so that only the first of them reads the
semaphore's cache line; each of the others spins on its own node.  The lock word holds the number
of the last CPU in line plus one::

    lock --------------------------------+
                                         v
    [CPU 2: spins on the rwsem] <-> [CPU 0] <-> [CPU 5]

The nodes are in the CPU blocks, as the kernel's are per CPU.  A waiter leaves the line when its
time is up (the kernel: need_resched); unlike there the predecessor is never preempted as far as
an emulated CPU can tell, so that reason to leave does not exist.

What makes leaving safe: a node's `next` is taken by exactly one CPU, by xchg or cmpxchg - its owner
that lets go or leaves, or the successor that leaves - so no two neighbours leave at once without
one of them seeing it and waiting for the other.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, OSQ_NODE, SYSTEM
from spfemu.mm.irq import cpu_relax_poll
from spfemu.mm.rcu import rcu_quiescent
from spfemu.primitives import (
    cmpxchg,
    cmpxchg_release,
    load,
    read_cycles,
    read_once,
    smp_load_acquire,
    smp_store_release,
    smp_wmb,
    write_once,
    xchg,
)


@kernel
def cpu_by_number(cpu: int, number: int) -> int:
    """Return the address of the CPU block with index `number` - 1, as lock words name CPUs."""
    return load(load(cpu + CPU.system) + SYSTEM.cpus) + (number - 1) * CPU.SIZE


@kernel
def osq_relax(cpu: int) -> None:
    """Wait a moment in a spin of a sleeping lock: no RCU reader can be here, so say so.

    Without the report a lock owner in synchronize_rcu would wait for the spinner and the spinner
    for the owner, until the spinner's time is up.
    """
    rcu_quiescent(cpu)
    cpu_relax_poll(cpu)


@slowpath
def osq_lock(cpu: int, lock: int, until: int) -> int:
    """Stand in line until first (returns 1) or until cycle count `until` (returns 0)."""
    node = cpu + CPU.osq
    me = load(cpu + CPU.id) + 1
    write_once(node + OSQ_NODE.locked, 0)
    write_once(node + OSQ_NODE.next, 0)
    # The exchange publishes the cleared node; whoever finds us through the lock word has acquired
    # it with an exchange of its own.
    last = xchg(lock, me)
    if last == 0:
        return 1
    prev = cpu_by_number(cpu, last) + CPU.osq
    write_once(node + OSQ_NODE.prev, prev)
    # Our prev before prev's next: a predecessor that leaves reads its next and then writes our
    # prev (osq_unqueue), and that must not be overwritten by ours.
    smp_wmb()
    write_once(prev + OSQ_NODE.next, node)
    # Acquire pairs with the release in osq_pass.
    while smp_load_acquire(node + OSQ_NODE.locked) == 0:
        if read_cycles() > until:
            return osq_unqueue(cpu, lock)
        osq_relax(cpu)
    return 1


@slowpath
def osq_unqueue(cpu: int, lock: int) -> int:
    """Leave the line; returns 1 if the lock was passed to us first, else 0."""
    node = cpu + CPU.osq
    prev = read_once(node + OSQ_NODE.prev)
    # First cut prev -> node, so that prev can neither pass us the lock nor leave past us.  If the
    # link is not there, prev has taken it: to pass us the lock (then `locked` comes), or to leave
    # itself (then a new prev comes).
    while cmpxchg(prev + OSQ_NODE.next, node, 0) != node:
        if smp_load_acquire(node + OSQ_NODE.locked) != 0:
            return 1
        cpu_relax_poll(cpu)
        prev = smp_load_acquire(node + OSQ_NODE.prev)
    # Then take our successor out of its link to us, or give the end of the line back to prev.
    following = osq_take_next(cpu, lock, load(prev - CPU.osq + CPU.id) + 1)
    if following != 0:
        # Both are bound to wait for us now, prev because its next is 0 and it is not the last.
        # The release pairs with the acquire load of prev above: whoever sees the new prev comes
        # after our cmpxchg that cleared prev's next.
        smp_store_release(following + OSQ_NODE.prev, prev)
        smp_store_release(prev + OSQ_NODE.next, following)
    return 0


@slowpath
def osq_take_next(cpu: int, lock: int, before: int) -> int:
    """Take the node after ours, or 0 if we were last and the line now ends with `before`."""
    node = cpu + CPU.osq
    me = load(cpu + CPU.id) + 1
    while True:
        # The release half of this cmpxchg orders the cut of prev -> node before it: the next to
        # arrive finds `before` in the lock word and links itself to prev.
        if read_once(lock) == me and cmpxchg(lock, me, before) == me:
            return 0
        # Not the last: the successor is linking itself, or is cutting the link to leave.
        if read_once(node + OSQ_NODE.next) != 0:
            following = xchg(node + OSQ_NODE.next, 0)
            if following != 0:
                return following
        cpu_relax_poll(cpu)


@slowpath
def osq_unlock(cpu: int, lock: int) -> None:
    """Let the next in line be first."""
    me = load(cpu + CPU.id) + 1
    if cmpxchg_release(lock, me, 0) == me:
        return
    following = osq_take_next(cpu, lock, 0)
    if following != 0:
        osq_pass(following)


@kernel
def osq_pass(node: int) -> None:
    """Make `node` the first; pairs with the acquire in osq_lock and osq_unqueue."""
    smp_store_release(node + OSQ_NODE.locked, 1)
