# SPDX-License-Identifier: MIT
"""The second copy of a latched tree of VMAs is not balanced when a VMA is added.

Synthetic: the two copies of a latch must go through the same changes.

Lookups beside a writer walk what is no red-black tree, and the next removal may lose a part of it.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.rbtree import RB_FIRST

PROTOCOL = "spf"
PROMISE = "ACCOUNTING"
SCHEDULE = "four_areas"
CONFIG = {"CONFIG_VMA_LATCH": 1}


@around
def rb_insert_color(root: int, node: int, links: int) -> None:
    """Balance the first copy."""
    if links == RB_FIRST:
        proceed(root, node, links)
