# SPDX-License-Identifier: MIT
"""What a CPU runs: a thread of the measured process, or one of the kernel's own.

A kernel thread (kswapd, khugepaged and their kind) works beside the process on an emulated CPU of
its own.  It has no user memory: its mm is an empty one that no process uses, as the kernel's
init_mm.
"""

from enum import IntEnum

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.flags import Errno
from spfemu.mm.khugepaged import khugepaged_op
from spfemu.mm.vmscan import kswapd_op
from spfemu.primitives import load


class Role(IntEnum):
    """CPU.role; what comes behind WRITER is a kernel thread, named as Linux names it."""

    WORKER = 0
    WRITER = 1
    KSWAPD = 2
    KHUGEPAGED = 3


@kernel
def kthread_op(cpu: int) -> int:
    """Do one round of the kernel thread that this CPU is; 0 or a negative errno.

    Returns within some 50 ms even if there is nothing to do: sleep with a timeout.
    """
    role = load(cpu + CPU.role)
    if role == Role.KSWAPD:
        return kswapd_op(cpu)
    if role == Role.KHUGEPAGED:
        return khugepaged_op(cpu)
    return -Errno.EINVAL
