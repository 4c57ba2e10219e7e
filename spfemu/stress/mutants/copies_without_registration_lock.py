# SPDX-License-Identifier: MIT
"""A speculative copy does not keep subscribers from registering meanwhile.

M03: version 1 of the series, fixed by patches 22 to 26 of version 2. Linux 6.4 solved it by
locking all VMAs.

A subscriber hears of an end without a start, or keeps a translation to the old page.
"""

from spfemu.kernel import kernel

PROTOCOL = "spf"
PROMISE = "NOTIFIERS"
SCHEDULE = "a_subscriber_comes_during_a_copy"
ID = "M03"


@kernel
def percpu_down_read_trylock(cpu: int, sem: int) -> int:
    """Keep nobody out."""
    return 1


@kernel
def percpu_up_read(cpu: int, sem: int) -> None:
    """Let nobody in."""
