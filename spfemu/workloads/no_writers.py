# SPDX-License-Identifier: MIT
"""The writer's part of a workload that has none; the command line refuses writers for it."""

from spfemu.kernel import kernel
from spfemu.mm.flags import Errno


@kernel
def writer_setup(cpu: int) -> int:
    """Refuse: this workload has no writers."""
    return -Errno.EINVAL


@kernel
def writer_op(cpu: int) -> int:
    """Refuse: this workload has no writers."""
    return -Errno.EINVAL
