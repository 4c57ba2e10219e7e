# SPDX-License-Identifier: MIT
"""A kernel that hands out pages as their last user left them."""

from spfemu.kernel import kernel
from spfemu.mm.flags import PageKind
from spfemu.mm.page_alloc import alloc_page, page_address
from spfemu.primitives import clear_page


@kernel
def alloc_zeroed_page(cpu: int, kind: int) -> int:
    page = alloc_page(cpu, kind)
    if page != 0 and kind != PageKind.ANON:
        clear_page(page_address(cpu, page))
    return page
