# SPDX-License-Identifier: MIT
"""Typed access to the C shim (`native_shims/`): what Python and LLVM cannot say themselves.

Every parameter and result is an int64, addresses too. What a function does, its errors and its
memory order stand in `native_shims/spf_shims.h`, which has the same names in the same order.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, get_args, get_type_hints

from spfemu.errors import ResourceError

PACKAGE_DIR = Path(__file__).parent
LIBRARY_STEM = "_native_shims"

# enum spf_perf_kind
PERF_CYCLES, PERF_INSTRUCTIONS, PERF_CACHE_REFERENCES, PERF_CACHE_MISSES = range(4)

# enum spf_fiber_state
FIBER_READY, FIBER_RUNNING, FIBER_WAITING, FIBER_DONE = range(4)
FIBER_FREED = -1

# struct spf_fiber: the int64 words at a fiber's handle
FIBER_FIELDS = ("state", "kind", "site", "a0", "a1", "a2", "result", "wake_result", "steps",
                "cpu")  # fmt: skip
FIBER_ARGS_MAX = 16

STEP_FUTEX_WAIT = 20
STEP_FUTEX_WAKE = 21

_Nullary = Callable[[], int]
_Unary = Callable[[int], int]
_Binary = Callable[[int, int], int]
_Ternary = Callable[[int, int, int], int]
_Quaternary = Callable[[int, int, int, int], int]


class ShimsMissingError(ResourceError):
    """The shim library is absent, cannot be loaded, or is older than this package."""


class Shims:
    """The functions of the shim. The annotations are the ctypes signatures."""

    spf_load: _Unary
    spf_read_once: _Unary
    spf_store: Callable[[int, int], None]
    spf_write_once: Callable[[int, int], None]
    spf_smp_load_acquire: _Unary
    spf_smp_store_release: Callable[[int, int], None]
    spf_xchg: _Binary
    spf_cmpxchg: _Ternary
    spf_cmpxchg_acquire: _Ternary
    spf_cmpxchg_release: _Ternary
    spf_cmpxchg_relaxed: _Ternary
    spf_atomic_fetch_add: _Binary
    spf_atomic_fetch_add_acquire: _Binary
    spf_atomic_fetch_add_release: _Binary
    spf_atomic_fetch_add_relaxed: _Binary
    spf_atomic_fetch_or: _Binary
    spf_atomic_fetch_and: _Binary
    spf_smp_mb: Callable[[], None]
    spf_smp_rmb: Callable[[], None]
    spf_smp_wmb: Callable[[], None]
    spf_cpu_relax: Callable[[], None]
    spf_clear_page: Callable[[int], None]
    spf_copy_page: Callable[[int, int], None]
    spf_raw_syscall: Callable[[int, int, int, int, int, int, int], int]
    spf_futex_wait: _Ternary
    spf_futex_wake: _Binary
    spf_read_cycles: _Nullary
    spf_cycles_per_second: _Unary
    spf_getcpu: _Nullary
    spf_perf_open: _Ternary
    spf_perf_enable: _Unary
    spf_perf_disable: _Unary
    spf_perf_reset: _Unary
    spf_perf_read: _Unary
    spf_perf_close: _Unary
    spf_fiber_new: _Quaternary
    spf_fiber_free: Callable[[int], None]
    spf_fiber_resume: _Unary
    spf_fiber_run: _Quaternary
    spf_fiber_timeout: _Unary
    spf_fiber_set_cpu: Callable[[int], None]
    spf_fiber_cpu: _Nullary
    spf_step: Callable[[int, int, int, int, int], None]
    spf_step_futex_wait: _Quaternary
    spf_step_futex_wake: _Ternary
    spf_step_clock: _Nullary
    spf_step_clock_reset: Callable[[], None]

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            for name, signature in get_type_hints(type(self)).items():
                setattr(self, name, _bind(library, name, signature))
        except (OSError, AttributeError) as error:
            raise ShimsMissingError(f"{path.name} is unusable, build it again: {error}") from error


def _bind(library: ctypes.CDLL, name: str, signature: Any) -> Any:
    parameters, returns = get_args(signature)
    function = library[name]
    function.argtypes = [ctypes.c_int64] * len(parameters)
    function.restype = ctypes.c_int64 if returns is int else None
    return function


def library_path(directory: Path = PACKAGE_DIR) -> Path:
    """Return the shim that this interpreter would import from `directory`.

    Raises:
        ShimsMissingError: it has not been built.
    """
    for suffix in EXTENSION_SUFFIXES:
        path = directory / (LIBRARY_STEM + suffix)
        if path.is_file():
            return path
    raise ShimsMissingError(
        f"{directory.name}/{LIBRARY_STEM}{EXTENSION_SUFFIXES[0]} is missing: run "
        "`pip install -e .` or `python setup.py build_ext --inplace`"
    )


@cache
def load() -> Shims:
    """Return the functions of the shim, the same objects every time.

    Raises:
        ShimsMissingError: the library is absent or does not fit this package.
    """
    return Shims(library_path())


def symbol_address(name: str) -> int:
    """Return the address of the shim function `name`, for LLVM to call.

    Raises:
        ShimsMissingError: as `load`.
        AttributeError: the shim has no such function.
    """
    address = ctypes.cast(getattr(load(), name), ctypes.c_void_p).value
    assert address is not None, name
    return address
