# SPDX-License-Identifier: MIT
"""A kernel whose fork leaves private pages writable for parent and child."""

from spfemu.kernel import kernel


@kernel
def is_cow_mapping(vm_flags: int) -> int:
    return 0
