# SPDX-License-Identifier: MIT
"""fork on the host: the child is a process, made without the C library and without Python.

It runs compiled code that makes system calls, and exits; so it does not matter which locks other
threads of the worker's process hold.  It has the worker's CPU block, which is shared memory.
"""

import platform
import signal

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import CPU, WORD
from spfemu.mm.flags import Errno
from spfemu.mm.vmstat import count_vm_event, count_vm_events
from spfemu.primitives import load, raw_syscall, store
from spfemu.workloads.fork1 import child_work

_X86 = platform.machine() == "x86_64"
NR_CLONE = 56 if _X86 else 220
NR_WAIT4 = 61 if _X86 else 260
NR_EXIT_GROUP = 231 if _X86 else 94
SIGCHLD = int(signal.SIGCHLD)
STATUS = CPU.tlb
"""Where wait4 puts the status: there is no emulated TLB here."""
RUSAGE = CPU.tlb + WORD
RU_MINFLT = RUSAGE + 8 * WORD
"""Behind two struct timeval and four long."""


@kernel
def sys_fork(cpu: int) -> int:
    """fork(2): 0 in the child, its pid in the parent, or a negative errno."""
    count_vm_event(cpu, Event.CALL_FORK)
    return raw_syscall(NR_CLONE, SIGCHLD, 0, 0, 0, 0, 0)


@kernel
def run_child(cpu: int, parent: int, child: int) -> int:
    """Do the child's work and exit, or wait until the child has; returns what its work did.

    What the child was charged for its faults is added to the worker's: they are not in the
    figures of the thread.
    """
    if child == 0:
        raw_syscall(NR_EXIT_GROUP, -child_work(cpu), 0, 0, 0, 0, 0)
    store(cpu + STATUS, 0)
    result = -Errno.EINTR
    while result == -Errno.EINTR:
        result = raw_syscall(NR_WAIT4, child, cpu + STATUS, 0, cpu + RUSAGE, 0, 0)
    if result < 0:
        return result
    count_vm_events(cpu, Event.PGFAULT, load(cpu + RU_MINFLT))
    status = load(cpu + STATUS)
    if status & 0x7F:  # ended by a signal
        return -Errno.EFAULT
    return -((status >> 8) & 0xFF)
