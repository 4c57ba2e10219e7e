# SPDX-License-Identifier: MIT
"""A small kernel for random overrides to change."""

from spfemu.kernel import kernel, slowpath
from spfemu.primitives import load, store


@kernel
def pair(a: int, b: int) -> tuple[int, int]:
    return a + load(b), b


@slowpath
def note(a: int, b: int) -> None:
    store(a, b)


@kernel
def entry(a: int, b: int) -> int:
    one, two = pair(a, b)
    note(one, two)
    return one
