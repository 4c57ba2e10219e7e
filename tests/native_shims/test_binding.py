# SPDX-License-Identifier: MIT
"""The ctypes binding agrees with the header, and carries what the shim says into Python."""

import ctypes
import errno
import mmap
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args, get_type_hints

import llvmlite.binding as llvm
import pytest

from spfemu import shims
from spfemu.shims import Shims, ShimsMissingError

HEADER = Path(__file__).parents[2] / "native_shims" / "spf_shims.h"
PROTOTYPE = re.compile(r"^(int64_t|void) (spf_\w+)\(([^)]*)\);", re.MULTILINE)

# A fiber whose body steps once, waits on the futex at its argument, and returns why it went on.
FIBER_IR = """
declare void @spf_step(i64, i64, i64, i64, i64)
declare i64 @spf_step_futex_wait(i64, i64, i64, i64)

define i64 @step_then_wait(ptr %args) {
  %addr = load i64, ptr %args
  call void @spf_step(i64 5, i64 6, i64 -1, i64 8, i64 9)
  %why = call i64 @spf_step_futex_wait(i64 7, i64 %addr, i64 0, i64 100)
  ret i64 %why
}
"""


@pytest.fixture
def lib() -> Shims:
    return shims.load()


@pytest.fixture
def shared() -> memoryview:
    """One page of int64 words that forked children share."""
    return memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")


def address(words: memoryview) -> int:
    return ctypes.addressof(ctypes.c_int64.from_buffer(words))


def in_children(n: int, body: Callable[[], None]) -> None:
    children = []
    for _ in range(n):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                body()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * n


def test_binding_declares_what_the_header_declares() -> None:
    header = {
        name: (0 if parameters == "void" else parameters.count(",") + 1, returns)
        for returns, name, parameters in PROTOTYPE.findall(HEADER.read_text())
    }
    binding = {
        name: (len(parameters), "int64_t" if returns is int else "void")
        for name, signature in get_type_hints(Shims).items()
        for parameters, returns in [get_args(signature)]
    }

    assert list(binding.items()) == list(header.items())


def test_constants_are_the_headers() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    fields = re.search(r"struct spf_fiber \{(.*?)\}", text, re.DOTALL)
    assert fields is not None

    assert tuple(re.findall(r"\w+(?=[,;])", fields[1])) == shims.FIBER_FIELDS
    for name, value in re.findall(r"SPF_(\w+) = (-?\d+)", text):
        assert getattr(shims, name) == int(value)
    for kind in ("perf_kind", "fiber_state"):
        names = re.search(rf"enum spf_{kind} \{{(.*?)\}}", text, re.DOTALL)
        assert names is not None
        for value, name in enumerate(re.findall(r"SPF_(\w+),", names[1])):
            assert getattr(shims, name) == value


def test_one_object_per_function(lib: Shims) -> None:
    assert shims.load() is lib
    assert shims.load().spf_load is lib.spf_load


def test_words_are_signed_and_64_bits_wide(lib: Shims, shared: memoryview) -> None:
    addr = address(shared)

    for value in (-1, 2**63 - 1, -(2**63)):
        lib.spf_store(addr, value)
        assert shared[0] == value == lib.spf_load(addr)


def test_processes_lose_no_update(lib: Shims, shared: memoryview) -> None:
    addr = address(shared)

    def add() -> None:
        for _ in range(5000):
            lib.spf_atomic_fetch_add(addr, 1)

    in_children(3, add)

    assert shared[0] == 15000


def test_a_waiting_thread_lets_others_run(lib: Shims, shared: memoryview) -> None:
    addr = address(shared)

    with ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(lib.spf_futex_wait, addr, 0, -1)
        while not lib.spf_futex_wake(addr, 1):
            lib.spf_cpu_relax()

    assert waiter.result() == 0


def test_errors_arrive_as_negative_errno(lib: Shims, shared: memoryview) -> None:
    assert lib.spf_futex_wait(address(shared), 1, -1) == -errno.EAGAIN
    assert lib.spf_perf_open(99, 0, 0) == -errno.EINVAL
    assert lib.spf_raw_syscall(-1, 0, 0, 0, 0, 0, 0) == -errno.ENOSYS


def test_compiled_code_runs_on_a_fiber(lib: Shims, shared: memoryview) -> None:
    for name in ("spf_step", "spf_step_futex_wait"):
        llvm.add_symbol(name, shims.symbol_address(name))
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(FIBER_IR), machine)
    engine.finalize_object()

    shared[1] = address(shared)
    entry = engine.get_function_address("step_then_wait")
    fiber = lib.spf_fiber_new(entry, address(shared) + 8, 1, 65536)
    words = (ctypes.c_int64 * len(shims.FIBER_FIELDS)).from_address(fiber)

    def field(name: str) -> int:
        return int(words[shims.FIBER_FIELDS.index(name)])

    assert lib.spf_fiber_resume(fiber) == shims.FIBER_READY
    assert list(words) == [shims.FIBER_READY, 5, 6, -1, 8, 9, 0, 0, 1, 0]
    assert lib.spf_fiber_run(fiber, shims.STEP_FUTEX_WAIT, 7, 10) == shims.FIBER_READY
    assert lib.spf_fiber_resume(fiber) == shims.FIBER_WAITING
    assert field("a0") == address(shared)
    assert lib.spf_fiber_timeout(fiber) == 0
    assert lib.spf_fiber_resume(fiber) == shims.FIBER_DONE
    assert field("result") == field("wake_result") == -errno.ETIMEDOUT
    lib.spf_fiber_free(fiber)


def test_symbol_address_is_that_of_the_function(lib: Shims) -> None:
    by_address = ctypes.CFUNCTYPE(ctypes.c_int64)(shims.symbol_address("spf_step_clock"))

    assert by_address() == lib.spf_step_clock()
    with pytest.raises(AttributeError, match="spf_no_such"):
        shims.symbol_address("spf_no_such")


def test_missing_library_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ShimsMissingError, match=r"^.*_native_shims\S* is missing: run .*$"):
        shims.library_path(tmp_path)


def test_library_of_this_interpreter_comes_first(tmp_path: Path) -> None:
    for suffix in (".so", shims.EXTENSION_SUFFIXES[0]):
        (tmp_path / f"_native_shims{suffix}").touch()

    assert shims.library_path(tmp_path).name == f"_native_shims{shims.EXTENSION_SUFFIXES[0]}"


def test_damaged_library_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "_native_shims.so"
    broken.write_bytes(b"not a library")

    with pytest.raises(ShimsMissingError, match="unusable"):
        Shims(broken)


def test_library_of_an_older_package_is_refused(tmp_path: Path) -> None:
    class NewerShims(Shims):
        spf_added_later: Callable[[], int]

    copy = shutil.copy(shims.library_path(), tmp_path)

    with pytest.raises(ShimsMissingError, match="spf_added_later"):
        NewerShims(Path(copy))
