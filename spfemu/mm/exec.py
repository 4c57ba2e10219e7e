# SPDX-License-Identifier: MIT
"""What execve does to the address space (Linux 5.12, fs/exec.c: exec_mmap)."""

from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.mm.flags import Errno
from spfemu.mm.fork import exit_mm, mm_alloc
from spfemu.primitives import load


@kernel
def exec_mmap(cpu: int) -> int:
    """Let this CPU's thread go on with a fresh, empty mm; 0, or -ENOMEM with the old one kept.

    Other users keep the old mm; with the last it is gone.
    """
    mm = mm_alloc(cpu, load(cpu + CPU.mm))
    if mm == 0:
        return -Errno.ENOMEM
    exit_mm(cpu, mm)
    return 0
