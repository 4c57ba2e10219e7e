# SPDX-License-Identifier: MIT
"""A kernel that leaves the pages of a cut file mapped."""

from spfemu.kernel import kernel


@kernel
def truncate_pagecache(cpu: int, mapping: int, size: int) -> None:
    pass
