# SPDX-License-Identifier: MIT
"""Turn a `Program` into callable machine code, through a cache of object files.

The cache key is a hash of the unoptimised LLVM IR and of everything else that decides the
machine code, so a stale object cannot be found.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import time
from collections.abc import Callable

import llvmlite
import llvmlite.binding as llvm

from spfemu import shims
from spfemu.engines import cache
from spfemu.engines.compiler import Compiler, optimise
from spfemu.engines.source import Program
from spfemu.engines.steps import Site

KEEP_OBJECTS = 500
"""Objects kept in the cache; the least recently used go first."""

NATIVE_LEVELS = (2, 3)
"""Levels of LLVM's code generator and of its passes for code that has to be fast."""
STEPPED_LEVELS = (0, 0)
"""The same for code that stops at every access: making it takes a fifth of the time."""

SHIM_SYMBOLS = (
    "spf_futex_wait",
    "spf_futex_wake",
    "spf_read_cycles",
    "spf_raw_syscall",
    "spf_step",
    "spf_step_futex_wait",
    "spf_step_futex_wake",
    "spf_step_clock",
    "spf_fiber_cpu",
    "spf_fiber_set_cpu",
)


def compiler_versions() -> dict[str, str]:
    """Versions that decide what machine code comes out; part of every result."""
    return {
        "llvmlite": llvmlite.__version__,
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
        "target": f"{llvm.get_process_triple()} {llvm.get_host_cpu_name()}",
    }


def _machine(opt: int) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=opt,
        reloc="pic",
        codemodel="small",
        jit=True,
    )


class Compiled:
    """A program in machine code.

    Attributes: `program`; `sites`, the stops of stepped code; `from_cache`, whether the object
    was found; `seconds`, how long it took.
    """

    def __init__(self, program: Program, *, stepped: bool) -> None:
        started = time.perf_counter()
        self.program = program
        opt, level = STEPPED_LEVELS if stepped else NATIVE_LEVELS
        machine = _machine(opt)
        compiler = Compiler(program, stepped=stepped, triple=machine.triple)
        assembly = compiler.emit()
        self.sites: list[Site] = compiler.sites
        image, self.from_cache = self._object(assembly, machine, level)
        # all symbols of the shim are defined before the object is linked: a missing one would
        # otherwise end the process at its first call
        builder = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
        for symbol in SHIM_SYMBOLS:
            builder.import_symbol(symbol, shims.symbol_address(symbol))
        for name in program.functions:
            builder.export_symbol("e_" + name)
        self._engine = llvm.create_lljit_compiler(machine)
        self._library = builder.link(self._engine, f"spfemu-{id(self):x}")
        self.seconds = time.perf_counter() - started

    @staticmethod
    def _object(assembly: str, machine: llvm.TargetMachine, level: int) -> tuple[bytes, bool]:
        key = hashlib.sha256(
            repr(
                (
                    assembly,
                    level,
                    sorted(compiler_versions().items()),
                    llvm.get_host_cpu_features().flatten(),
                    platform.machine(),
                )
            ).encode()
        ).hexdigest()
        name = f"{key[:40]}.o"
        found = cache.find(name)
        if found is not None:
            return found, True
        image = optimise(assembly, machine, level)
        cache.keep(name, image, KEEP_OBJECTS)
        return image, False

    def entry(self, name: str) -> int:
        """Address of ``int64_t entry(const int64_t *words)`` of a kernel function.

        Raises KeyError if the program has no such function.
        """
        if name not in self.program.functions:
            raise KeyError(f"no kernel function '{name}'")
        return int(self._library["e_" + name])

    def function(self, name: str) -> Callable[..., int | tuple[int, ...]]:
        """Return a Python callable for a kernel function; it releases the GIL while it runs."""
        declared = self.program.functions[name]
        count, results = len(declared.parameters), declared.results
        words_type = ctypes.c_int64 * max(count, results, 1)
        call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(self.entry(name))

        def kernel_function(*arguments: int) -> int | tuple[int, ...]:
            if len(arguments) != count:
                raise TypeError(f"{name} takes {count} arguments, not {len(arguments)}")
            words = words_type(*arguments)
            value = call(ctypes.addressof(words))
            return tuple(words[:results]) if results > 1 else value

        kernel_function.__name__ = name
        return kernel_function
