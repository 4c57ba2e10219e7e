# SPDX-License-Identifier: MIT
"""What stands for the kernel's threads where there are none, so that their code is not compiled."""

from spfemu.kernel import kernel
from spfemu.mm.flags import Errno


@kernel
def kthread_op(cpu: int) -> int:
    """No kernel thread was planned."""
    return -Errno.EINVAL
