# SPDX-License-Identifier: MIT
"""A private page is written in place if one entry maps it, whoever else refers to it.

CVE-2020-29374: Linux up to 5.8 went by the number of mappings.

Who has taken a reference to a page that was shared sees what its owner writes there later.
"""

from spfemu.kernel import kernel
from spfemu.layout import PAGE
from spfemu.primitives import smp_load_acquire

PROTOCOL = "classic"
PROMISE = "DATA"
SCHEDULE = "a_childs_reference_outlives_it"


@kernel
def wp_can_reuse(page: int) -> int:
    """Count the mappings."""
    return smp_load_acquire(page + PAGE.mapcount) == 1
