# SPDX-License-Identifier: MIT
"""The only operations with which kernel code touches shared memory or waits.

They are named as the Linux kernel memory model names them.  Addresses are byte addresses of
64-bit words inside the segment, values are signed 64-bit integers.  Here they are declarations:
an engine binds each name to what it executes (`native`: an LLVM atomic instruction, `stepped`:
the same after a switch to the scheduler, `plain`: a call into the shim).  The memory order of
each is given in C11 terms and is the same on x86-64 and arm64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

PRIMITIVES: dict[str, Callable[..., Any]] = {}
"""All primitives by name."""


def primitive(function: F) -> F:
    """Register a declaration; called outside an engine it says so."""
    PRIMITIVES[function.__name__] = function
    return function


def _unbound() -> NoReturn:
    raise RuntimeError("kernel code runs in an engine: see spfemu.engines")


@primitive
def load(addr: int) -> int:
    """Read shared data that the protocol reads without annotation.

    C11: relaxed (LLVM: unordered); never torn, may be reordered, merged or repeated.
    """
    _unbound()


@primitive
def store(addr: int, value: int) -> None:
    """Write shared data without annotation; C11: relaxed (LLVM: unordered)."""
    _unbound()


@primitive
def read_once(addr: int) -> int:
    """READ_ONCE: C11 relaxed load; happens exactly once."""
    _unbound()


@primitive
def write_once(addr: int, value: int) -> None:
    """WRITE_ONCE: C11 relaxed store; happens exactly once."""
    _unbound()


@primitive
def smp_load_acquire(addr: int) -> int:
    """C11 acquire load."""
    _unbound()


@primitive
def smp_store_release(addr: int, value: int) -> None:
    """C11 release store."""
    _unbound()


@primitive
def xchg(addr: int, value: int) -> int:
    """Exchange, C11 seq_cst; returns the old value.  Add `smp_mb` where a full fence is meant."""
    _unbound()


@primitive
def cmpxchg(addr: int, old: int, new: int) -> int:
    """Compare and exchange, C11 seq_cst (acquire on failure); returns the value found."""
    _unbound()


@primitive
def cmpxchg_acquire(addr: int, old: int, new: int) -> int:
    """Compare and exchange, C11 acquire; returns the value found."""
    _unbound()


@primitive
def cmpxchg_release(addr: int, old: int, new: int) -> int:
    """Compare and exchange, C11 release (relaxed on failure); returns the value found."""
    _unbound()


@primitive
def cmpxchg_relaxed(addr: int, old: int, new: int) -> int:
    """Compare and exchange, C11 relaxed; returns the value found."""
    _unbound()


@primitive
def atomic_fetch_add(addr: int, value: int) -> int:
    """Add, C11 seq_cst; returns the old value."""
    _unbound()


@primitive
def atomic_fetch_add_acquire(addr: int, value: int) -> int:
    """Add, C11 acquire; returns the old value."""
    _unbound()


@primitive
def atomic_fetch_add_release(addr: int, value: int) -> int:
    """Add, C11 release; returns the old value."""
    _unbound()


@primitive
def atomic_fetch_add_relaxed(addr: int, value: int) -> int:
    """Add, C11 relaxed; returns the old value."""
    _unbound()


@primitive
def atomic_fetch_or(addr: int, value: int) -> int:
    """Or, C11 seq_cst; returns the old value."""
    _unbound()


@primitive
def atomic_fetch_and(addr: int, value: int) -> int:
    """And, C11 seq_cst; returns the old value."""
    _unbound()


@primitive
def smp_mb() -> None:
    """Full fence: C11 seq_cst fence."""
    _unbound()


@primitive
def smp_rmb() -> None:
    """Order earlier loads before later loads: C11 acquire fence."""
    _unbound()


@primitive
def smp_wmb() -> None:
    """Order earlier stores before later stores: C11 release fence."""
    _unbound()


@primitive
def cpu_relax() -> None:
    """Say that a loop waits: pause or yield instruction.  No memory order."""
    _unbound()


@primitive
def futex_wait(addr: int, expected: int, timeout_ns: int) -> int:
    """Sleep while the word at `addr` is `expected`, at most `timeout_ns` (negative: no limit).

    Returns 0 when woken (possibly spuriously), else a negative errno: -EAGAIN (-11) if the word
    differed, -ETIMEDOUT (-110), -EINTR (-4).  C11: the check is a relaxed load; use an acquire
    load of the word afterwards.
    """
    _unbound()


@primitive
def futex_wake(addr: int, count: int) -> int:
    """Wake up to `count` sleepers; returns their number.  Store with release before it."""
    _unbound()


@primitive
def clear_page(addr: int) -> None:
    """Zero a frame of 4096 bytes that nobody else can reach yet.  No memory order."""
    _unbound()


@primitive
def copy_page(dst: int, src: int) -> None:
    """Copy a frame of 4096 bytes to one that nobody else can reach yet.  No memory order."""
    _unbound()


@primitive
def read_cycles() -> int:
    """Cycle counter of this CPU (`stepped`: steps so far).  No memory order."""
    _unbound()


@primitive
def this_cpu() -> int:
    """Address of the CPU block of the process (`stepped`: of the fiber) that runs this.

    It is the argument `cpu` with which a kernel function was called from outside, by a worker or a
    test.  For what has no such parameter at hand: hooks of instrumented code.
    """
    _unbound()


@primitive
def raw_syscall(number: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Call the real kernel (host target only); returns the result or a negative errno."""
    _unbound()


@primitive
def panic(code: int) -> None:
    """Stop this CPU for good: a kernel assertion failed (`code` says which, see mm/bug.py)."""
    _unbound()
