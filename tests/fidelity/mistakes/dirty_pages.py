# SPDX-License-Identifier: MIT
"""A kernel that hands out pages as their last user left them."""

from spfemu.kernel import kernel
from spfemu.mm.memory import vmf_alloc_page


@kernel
def vmf_alloc_zeroed_page(cpu: int, vmf: int) -> int:
    return vmf_alloc_page(cpu, vmf)
