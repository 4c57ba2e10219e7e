# SPDX-License-Identifier: MIT
"""Huge entries get a bit that means something in small ones only.

What the bit for PAT is in a small entry says in a huge one that it is huge, and PAT has another bit
there: Linux has had to repair what became of the one as the other.

A page counts as one without a struct page, and its references are not counted.
"""

from spfemu.kernel import around, proceed
from spfemu.mm.flags import Pte

PROTOCOL = "classic"
PROMISE = "ACCOUNTING"
SCHEDULE = "a_range_is_collapsed"


@around
def set_pte(pte: int, value: int) -> None:
    """Make huge ones special."""
    proceed(pte, value | Pte.SPECIAL if value & Pte.PSE else value)
