# SPDX-License-Identifier: MIT
"""A kernel whose MADV_DONTNEED does nothing."""

from spfemu.kernel import kernel


@kernel
def zap_page_range(cpu: int, vma: int, start: int, end: int) -> None:
    pass
