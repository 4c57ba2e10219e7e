# SPDX-License-Identifier: MIT
"""Compile a `Program` to machine code: syntax tree -> LLVM IR -> object, the program at once.

Everything is a 64-bit integer, so there is no type inference to do; the whole program is one
module, so LLVM sees every callee and a change anywhere is a change of the one cached object.
In `stepped` code a switch to the scheduler stands before every primitive and at the entry and
return of every function (see native_shims/fiber.c).

If the program has oracles (spfemu/stress), it has the HOOKS; those that one stands around are
called before every primitive that touches memory and at the entry and return of every function.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir

from spfemu.engines.emitter import I64, PTR, VOID, ZERO, FunctionEmitter
from spfemu.engines.source import KernelFunction, Program
from spfemu.engines.steps import HOOKS, Site


class _Attributes(ir.values.FunctionAttributes):  # type: ignore[misc]
    """Function attributes, with one that llvmlite does not list.

    To LLVM an access at address 0 cannot happen, so it removes the paths that lead there: a broken
    override would run on as if it were sound.  This makes it trap, as the kernel's own build does
    with -fno-delete-null-pointer-checks.
    """

    _known = ir.values.FunctionAttributes._known | {"null_pointer_is_valid"}  # noqa: SLF001


class Compiler:
    """Emit one LLVM module for `program`; after `emit`, `sites` lists the stops and hook calls."""

    def __init__(self, program: Program, *, stepped: bool, triple: str) -> None:
        self.program = program
        self.stepped = stepped
        self.triple = triple
        self.module = ir.Module("spfemu")
        self.module.triple = triple
        self.functions: dict[str, ir.Function] = {}
        self.sites: list[Site] = []
        self.this_cpu: ir.GlobalVariable | None = None
        self.hooks = {h for h in HOOKS if h in program.functions and program.functions[h].inner}
        self.noinstr = self._noinstr()

    def emit(self) -> str:
        """Return the module as LLVM assembly."""
        if any("this_cpu" in f.primitives for f in self.program.functions.values()):
            self.this_cpu = ir.GlobalVariable(self.module, I64, "this_cpu")
            self.this_cpu.linkage = "internal"
            self.this_cpu.initializer = ZERO
        for function in self.program.functions.values():
            self.functions[function.name] = self._declare(function)
        for function in self.program.functions.values():
            FunctionEmitter(self, function).emit()
            self._emit_entry(function)
        return str(self.module)

    def _noinstr(self) -> set[str]:
        """Names of the functions that no hook and no stop is compiled into."""
        functions = self.program.functions
        pending = list(self.hooks)
        found = {name for name, function in functions.items() if function.noinstr}
        while pending:
            name = pending.pop()
            found.add(name)
            pending.extend(functions[name].calls)
        return found

    def site(self, function: str, line: int, primitive: str) -> ir.Constant:
        """Register a stop and return its number."""
        self.sites.append(Site(function, line, primitive))
        return ir.Constant(I64, len(self.sites) - 1)

    def extern(self, name: str, result: ir.Type, arguments: list[ir.Type]) -> ir.Function:
        """Declare (once) a symbol of the shim or an LLVM intrinsic."""
        known = self.module.globals.get(name)
        if known is not None:
            return known
        return ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def _declare(self, function: KernelFunction) -> ir.Function:
        result: ir.Type = I64
        if function.results > 1:
            result = ir.LiteralStructType([I64] * function.results)
        signature = ir.FunctionType(result, [I64] * len(function.parameters))
        declared = ir.Function(self.module, signature, "k_" + function.name)
        declared.linkage = "internal"
        declared.attributes = _Attributes(("nounwind", "null_pointer_is_valid"))
        if function.name in self.hooks:
            declared.attributes.add("noinline")  # or every access would be code of a hundred bytes
        if function.slowpath:
            declared.attributes.add("cold")
            declared.attributes.add("noinline")
        for argument, name in zip(declared.args, function.parameters, strict=True):
            argument.name = name
        return declared

    def _emit_entry(self, function: KernelFunction) -> None:
        """Emit ``e_NAME(i64 *words) -> i64``: arguments from the words, tuple results into them.

        A fiber keeps a copy of its arguments, so there the only one is the address of the words.
        """
        entry = ir.Function(self.module, ir.FunctionType(I64, [PTR]), "e_" + function.name)
        entry.attributes.add("noinline")
        entry.attributes.add("optnone")
        builder = ir.IRBuilder(entry.append_basic_block())
        words = entry.args[0]
        if self.stepped:
            words = builder.inttoptr(builder.load(words, typ=I64), PTR)

        def at(index: int) -> ir.Value:
            return builder.gep(words, [ir.Constant(I64, index)], source_etype=I64)

        arguments = [builder.load(at(i), typ=I64) for i in range(len(function.parameters))]
        if self.this_cpu is not None and function.parameters[:1] == ("cpu",):
            self._set_this_cpu(builder, arguments[0])
        result = builder.call(self.functions[function.name], arguments)
        if function.results > 1:
            for i in range(function.results):
                builder.store(builder.extract_value(result, i), at(i))
            result = builder.extract_value(result, 0)
        builder.ret(result)

    def _set_this_cpu(self, builder: ir.IRBuilder, cpu: ir.Value) -> None:
        if self.stepped:
            builder.call(self.extern("spf_fiber_set_cpu", VOID, [I64]), [cpu])
        else:
            builder.store(cpu, self.this_cpu)


def optimise(assembly: str, machine: llvm.TargetMachine, level: int) -> bytes:
    """Parse, verify and optimise LLVM assembly; return the object file."""
    module = llvm.parse_assembly(assembly)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)  # type: ignore[no-any-return]
