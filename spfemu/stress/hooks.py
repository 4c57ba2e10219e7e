# SPDX-License-Identifier: MIT
"""Hooks of instrumented code, for oracles to stand around.

As soon as one does, the compiler (spfemu/engines/compiler.py) calls the hook all over the program,
but not in what oracles define, nor in what the hooks call.  `site` is an index of the engine's
`sites`.  In code of the stepped engine a stop comes before the hook, none between hook and access.
The engine `plain` calls no hooks.
"""

from spfemu.kernel import kernel


@kernel
def trace_enter(site: int, a0: int) -> None:
    """Be told that a function begins, with its first argument (0 if it has none).

    Not of functions that are marked `notrace` or neither touch memory nor call others.
    """


@kernel
def trace_return(site: int, result: int) -> None:
    """Be told that a function returns, with its first result (0 if it has none)."""


@kernel
def trace_access(site: int, address: int) -> None:
    """Be told that a primitive is about to touch memory; of ``copy_page`` twice."""
