# SPDX-License-Identifier: MIT
"""From the syntax tree of one kernel function to LLVM IR."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any, cast

from llvmlite import ir

from spfemu.engines.flow import names_in
from spfemu.engines.source import KernelFunction, constant
from spfemu.engines.steps import CMPXCHG, FENCES, HOOK_OF, LOADS, RMW, STEP_KINDS, STORES, Step
from spfemu.engines.style import called

if TYPE_CHECKING:
    from spfemu.engines.compiler import Compiler

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
PTR = ir.PointerType()
WORD_PTR = I64.as_pointer()
VOID = ir.VoidType()
ZERO, ONE = ir.Constant(I64, 0), ir.Constant(I64, 1)

_BINARY = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.LShift: "shl",
    ast.RShift: "ashr",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
    ast.BitXor: "xor",
}
_COMPARE = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def _hooks_in(function: KernelFunction, hooks: set[str]) -> set[str]:
    """Those of the hooks that are called in a function: its calls may be of no interest."""
    kinds = [STEP_KINDS[name] for name in function.primitives if name in STEP_KINDS]
    touches_memory = any(HOOK_OF.get(kind) == "trace_access" for kind in kinds)
    if function.notrace or not (function.calls or touches_memory):
        return hooks - {"trace_enter", "trace_return"}
    return hooks


class FunctionEmitter:
    """Emit the body of one function."""

    def __init__(self, compiler: Compiler, function: KernelFunction) -> None:
        self.compiler = compiler
        self.function = function
        self.target = compiler.functions[function.name]
        instrumented = function.name not in compiler.noinstr
        self.stops = compiler.stepped and instrumented
        self.hooks = _hooks_in(function, compiler.hooks) if instrumented else set()
        entry = self.target.append_basic_block("entry")
        self.allocas = ir.IRBuilder(entry)
        start = self.target.append_basic_block("start")
        self.builder = ir.IRBuilder(start)
        self.start = start
        self.variables: dict[str, ir.Value] = {}
        self.loops: list[tuple[ir.Block, ir.Block]] = []

    def emit(self) -> None:
        """Fill the function that the compiler has declared."""
        names = [name.id for name in names_in(self.function.tree, ast.Store)]
        for name in dict.fromkeys([*self.function.parameters, *names]):
            self.variables[name] = self.allocas.alloca(I64, name=name)
            self.allocas.store(ZERO, self.variables[name])
        for argument in self.target.args:
            self.allocas.store(argument, self.variables[argument.name])
        self._event(Step.ENTER, self.function.tree, "enter", list(self.target.args))
        self._block(self.function.tree.body)
        if not self.builder.block.is_terminated:
            self._finish(self.function.tree, [])
        self.allocas.branch(self.start)

    # statements

    def _block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if self.builder.block.is_terminated:
                return
            getattr(self, "_" + type(statement).__name__.lower())(statement)

    def _pass(self, node: ast.Pass) -> None:
        """Emit nothing."""

    def _expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return
        self._value(node.value, allow_tuple=True)

    def _assign(self, node: ast.Assign) -> None:
        if len(node.targets) != 1:
            raise self.function.error(node, "assign to one target at a time")
        target = node.targets[0]
        if isinstance(target, ast.Name):
            self.builder.store(self._value(node.value), self.variables[target.id])
            return
        if not isinstance(target, ast.Tuple):
            raise self.function.error(node, "only locals may be assigned; use a primitive")
        if isinstance(node.value, ast.Tuple):
            values = [self._value(v) for v in node.value.elts]
        else:
            packed = self._value(node.value, allow_tuple=True)
            if not isinstance(packed.type, ir.LiteralStructType):
                raise self.function.error(node, "the right side is not a tuple")
            count = len(packed.type.elements)
            values = [self.builder.extract_value(packed, i) for i in range(count)]
        if len(values) != len(target.elts):
            raise self.function.error(
                node, f"{len(values)} results cannot fill {len(target.elts)} names"
            )
        for element, value in zip(target.elts, values, strict=True):
            if not isinstance(element, ast.Name):
                raise self.function.error(node, "only locals may be assigned; use a primitive")
            self.builder.store(value, self.variables[element.id])

    def _annassign(self, node: ast.AnnAssign) -> None:
        if not isinstance(node.target, ast.Name) or node.value is None:
            raise self.function.error(node, "only locals may be assigned; use a primitive")
        self.builder.store(self._value(node.value), self.variables[node.target.id])

    def _augassign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            raise self.function.error(node, "only locals may be assigned; use a primitive")
        variable = self.variables[node.target.id]
        old = self.builder.load(variable, typ=I64)
        self.builder.store(self._binary(node, node.op, old, node.value), variable)

    def _finish(self, node: ast.AST, values: list[ir.Value]) -> None:
        self._event(Step.RETURN, node, "return", values)
        if self.function.results > 1:
            packed: Any = ir.Constant(self.target.ftype.return_type, ir.Undefined)
            for i in range(self.function.results):
                value = values[i] if values else ZERO
                packed = self.builder.insert_value(packed, value, i)
            self.builder.ret(packed)
        else:
            self.builder.ret(values[0] if values else ZERO)

    def _return(self, node: ast.Return) -> None:
        if node.value is None:
            self._finish(node, [])
        elif isinstance(node.value, ast.Tuple):
            self._finish(node, [self._value(v) for v in node.value.elts])
        else:
            self._finish(node, [self._value(node.value)])

    def _if(self, node: ast.If) -> None:
        then = self.target.append_basic_block("then")
        orelse = self.target.append_basic_block("else") if node.orelse else None
        end = self.target.append_basic_block("endif")
        self.builder.cbranch(self._condition(node.test), then, orelse or end)
        self.builder.position_at_end(then)
        self._block(node.body)
        if not self.builder.block.is_terminated:
            self.builder.branch(end)
        if orelse is not None:
            self.builder.position_at_end(orelse)
            self._block(node.orelse)
            if not self.builder.block.is_terminated:
                self.builder.branch(end)
        self.builder.position_at_end(end)

    def _while(self, node: ast.While) -> None:
        if node.orelse:
            raise self.function.error(node, "'else' of a loop is outside the restricted style")
        head = self.target.append_basic_block("while")
        body = self.target.append_basic_block("do")
        end = self.target.append_basic_block("done")
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(self._condition(node.test), body, end)
        self._loop(node.body, body, head, end)

    def _loop(
        self, statements: list[ast.stmt], body: ir.Block, next_: ir.Block, end: ir.Block
    ) -> None:
        self.builder.position_at_end(body)
        self.loops.append((next_, end))
        self._block(statements)
        self.loops.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(next_)
        self.builder.position_at_end(end)

    def _for(self, node: ast.For) -> None:
        call = node.iter
        is_range = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        if not is_range or call.func.id != "range" or node.orelse:  # type: ignore[attr-defined]
            raise self.function.error(node, "'for' goes over range(...) only")
        if not isinstance(node.target, ast.Name) or not isinstance(call, ast.Call):
            raise self.function.error(node, "'for' takes one plain name")
        bounds = [self._value(a) for a in call.args]
        first, last = (ZERO, bounds[0]) if len(bounds) == 1 else (bounds[0], bounds[1])
        if len(bounds) > 2:
            raise self.function.error(node, "range takes a start and an end only; use 'while'")
        counter = self.allocas.alloca(I64)
        self.builder.store(first, counter)
        head = self.target.append_basic_block("for")
        body = self.target.append_basic_block("do")
        step = self.target.append_basic_block("next")
        end = self.target.append_basic_block("done")
        self.builder.branch(head)
        self.builder.position_at_end(head)
        now = self.builder.load(counter, typ=I64)
        self.builder.cbranch(self.builder.icmp_signed("<", now, last), body, end)
        self.builder.position_at_end(body)
        self.builder.store(now, self.variables[node.target.id])
        self._loop(node.body, body, step, end)
        self.builder.position_at_end(step)
        self.builder.store(self.builder.add(self.builder.load(counter, typ=I64), ONE), counter)
        self.builder.branch(head)
        self.builder.position_at_end(end)

    def _break(self, _node: ast.Break) -> None:
        self.builder.branch(self.loops[-1][1])

    def _continue(self, _node: ast.Continue) -> None:
        self.builder.branch(self.loops[-1][0])

    # expressions

    def _condition(self, node: ast.expr) -> ir.Value:
        """Evaluate to an i1, short-circuiting."""
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            return self._holds(node.ops[0], self._value(node.left), node.comparators[0])[0]
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return self.builder.not_(self._condition(node.operand))
        return self.builder.icmp_signed("!=", self._value(node), ZERO)

    def _value(self, node: ast.expr, *, allow_tuple: bool = False) -> ir.Value:
        if isinstance(node, ast.Constant):
            return ir.Constant(I64, int(cast("int", node.value)))
        if isinstance(node, ast.Name) and node.id in self.variables:
            return self.builder.load(self.variables[node.id], typ=I64)
        if isinstance(node, ast.Name | ast.Attribute):
            return ir.Constant(I64, constant(self.function, node, self.compiler.program.config))
        if isinstance(node, ast.BinOp):
            return self._binary(node, node.op, self._value(node.left), node.right)
        if isinstance(node, ast.UnaryOp):
            return self._unary(node)
        if isinstance(node, ast.BoolOp):
            return self._boolop(node)
        if isinstance(node, ast.Compare):
            return self._compare(node)
        if isinstance(node, ast.IfExp):
            return self._choose(node.test, node.body, node.orelse)
        if isinstance(node, ast.Call):
            result = self._call(node)
            if isinstance(result.type, ir.LiteralStructType) and not allow_tuple:
                raise self.function.error(node, "a tuple must be assigned to as many names")
            return result
        raise self.function.error(node, f"{type(node).__name__} is outside the restricted style")

    def _binary(
        self, node: ast.AST, op: ast.operator, left: ir.Value, right_node: ast.expr
    ) -> ir.Value:
        right = self._value(right_node)
        if isinstance(op, ast.LShift | ast.RShift):
            right = self._shift_count(node, right)
        name = _BINARY.get(type(op))
        if name is not None:
            return getattr(self.builder, name)(left, right)
        if not isinstance(right, ir.Constant) or right.constant <= 0:
            raise self.function.error(node, "// and % need a positive constant on the right")
        # Python rounds down; the machine rounds to zero
        quotient = self.builder.sdiv(left, right)
        rest = self.builder.srem(left, right)
        below = self.builder.zext(self.builder.icmp_signed("<", rest, ZERO), I64)
        if isinstance(op, ast.FloorDiv):
            return self.builder.sub(quotient, below)
        return self.builder.add(rest, self.builder.mul(below, right))

    def _shift_count(self, node: ast.AST, count: ir.Value) -> ir.Value:
        """Refuse a constant that shifts all bits out; of a variable take the low six bits.

        To LLVM the result of such a shift is poison, which may take any branch; x86-64 and arm64
        look at six bits, so the mask costs nothing.
        """
        if not isinstance(count, ir.Constant):
            return self.builder.and_(count, ir.Constant(I64, 63))
        if not 0 <= count.constant < 64:
            raise self.function.error(node, f"a shift is by 0 to 63 bits, not {count.constant}")
        return count

    def _unary(self, node: ast.UnaryOp) -> ir.Value:
        if isinstance(node.op, ast.Not):
            return self.builder.zext(self._condition(node), I64)
        value = self._value(node.operand)
        if isinstance(node.op, ast.Invert):
            return self.builder.not_(value)
        return self.builder.neg(value)

    def _boolop(self, node: ast.BoolOp) -> ir.Value:
        """Evaluate ``a or b`` and ``a and b`` to the operand that decides, as Python does."""
        result = self.allocas.alloca(I64)
        end = self.target.append_basic_block("decided")
        for i, operand in enumerate(node.values):
            value = self._value(operand)
            self.builder.store(value, result)
            if i == len(node.values) - 1:
                self.builder.branch(end)
                break
            more = self.target.append_basic_block("more")
            true = self.builder.icmp_signed("!=", value, ZERO)
            if isinstance(node.op, ast.Or):
                self.builder.cbranch(true, end, more)
            else:
                self.builder.cbranch(true, more, end)
            self.builder.position_at_end(more)
        self.builder.position_at_end(end)
        return self.builder.load(result, typ=I64)

    def _compare(self, node: ast.Compare) -> ir.Value:
        """Evaluate a comparison or a chain; the chain ends at the first that does not hold."""
        left = self._value(node.left)
        if len(node.ops) == 1:
            return self.builder.zext(self._holds(node.ops[0], left, node.comparators[0])[0], I64)
        result = self.allocas.alloca(I64)
        end = self.target.append_basic_block("compared")
        for op, comparator in zip(node.ops, node.comparators, strict=True):
            one, left = self._holds(op, left, comparator)
            self.builder.store(self.builder.zext(one, I64), result)
            more = self.target.append_basic_block("more")
            self.builder.cbranch(one, more, end)
            self.builder.position_at_end(more)
        self.builder.branch(end)
        self.builder.position_at_end(end)
        return self.builder.load(result, typ=I64)

    def _holds(
        self, op: ast.cmpop, left: ir.Value, comparator: ast.expr
    ) -> tuple[ir.Value, ir.Value]:
        """Return whether `left` compares so to `comparator`, and the value of `comparator`."""
        right = self._value(comparator)
        return self.builder.icmp_signed(_COMPARE[type(op)], left, right), right

    def _choose(self, test: ast.expr, body: ast.expr, orelse: ast.expr) -> ir.Value:
        result = self.allocas.alloca(I64)
        then = self.target.append_basic_block("then")
        other = self.target.append_basic_block("else")
        end = self.target.append_basic_block("endif")
        self.builder.cbranch(self._condition(test), then, other)
        for block, value in ((then, body), (other, orelse)):
            self.builder.position_at_end(block)
            self.builder.store(self._value(value), result)
            self.builder.branch(end)
        self.builder.position_at_end(end)
        return self.builder.load(result, typ=I64)

    def _call(self, node: ast.Call) -> ir.Value:
        name = called(node)
        arguments = [self._value(a) for a in node.args]
        if name in self.compiler.functions:
            return self.builder.call(self.compiler.functions[name], arguments)
        if name == "range":
            raise self.function.error(node, "range stands in 'for' only")
        return self._primitive(node, name, arguments)

    # primitives

    def _primitive(self, node: ast.Call, name: str, arguments: list[ir.Value]) -> ir.Value:
        if name in ("futex_wait", "futex_wake"):
            return self._futex(node, name, arguments)
        if name == "panic" and self.compiler.stepped:
            return self._park(node, arguments[0])
        if name in STEP_KINDS:
            self._event(STEP_KINDS[name], node, name, arguments)
        if name in LOADS:
            return self.builder.load_atomic(self._pointer(arguments[0]), LOADS[name], 8, typ=I64)
        if name in STORES:
            return self._nothing(
                self.builder.store_atomic(
                    arguments[1], self._pointer(arguments[0]), STORES[name], 8
                )
            )
        if name in RMW:
            operation, ordering = RMW[name]
            return self.builder.atomic_rmw(
                operation, self._pointer(arguments[0]), arguments[1], ordering
            )
        if name in CMPXCHG:
            pair = self.builder.cmpxchg(
                self._pointer(arguments[0]), arguments[1], arguments[2], *CMPXCHG[name]
            )
            return self.builder.extract_value(pair, 0)
        if name in FENCES:
            return self._nothing(self.builder.fence(FENCES[name]))
        return self._special(node, name, arguments)

    def _special(self, node: ast.Call, name: str, arguments: list[ir.Value]) -> ir.Value:
        module = self.compiler.module
        if name == "cpu_relax":
            return self._relax()
        if name == "clear_page":
            fill = module.declare_intrinsic("llvm.memset", [WORD_PTR, I64])
            size = ir.Constant(I64, 4096)
            pointer = self._pointer(arguments[0])
            call = [pointer, ir.Constant(I8, 0), size, ir.Constant(I1, 0)]
            return self._nothing(self.builder.call(fill, call))
        if name == "copy_page":
            copy = module.declare_intrinsic("llvm.memcpy", [WORD_PTR, WORD_PTR, I64])
            pointers = [self._pointer(a) for a in arguments]
            call = [*pointers, ir.Constant(I64, 4096), ir.Constant(I1, 0)]
            return self._nothing(self.builder.call(copy, call))
        if name == "read_cycles":
            if self.compiler.stepped:
                return self.builder.call(self.compiler.extern("spf_step_clock", I64, []), [])
            if "x86_64" in self.compiler.triple:
                counter = self.compiler.extern("llvm.readcyclecounter", I64, [])
                return self.builder.call(counter, [])
            return self.builder.call(self.compiler.extern("spf_read_cycles", I64, []), [])
        if name == "this_cpu":
            if self.compiler.stepped:
                return self.builder.call(self.compiler.extern("spf_fiber_cpu", I64, []), [])
            return self.builder.load(self.compiler.this_cpu, typ=I64)
        if name == "raw_syscall":
            call_kernel = self.compiler.extern("spf_raw_syscall", I64, [I64] * 7)
            return self.builder.call(call_kernel, arguments)
        if name == "panic":
            stop = self.compiler.extern("_exit", VOID, [I32])
            self.builder.call(stop, [self.builder.trunc(arguments[0], I32)])
            return ZERO
        raise self.function.error(node, f"no engine knows the primitive '{name}'")

    def _futex(self, node: ast.Call, name: str, arguments: list[ir.Value]) -> ir.Value:
        if self.compiler.stepped:
            # the shim stops by itself, in `noinstr` functions too: it is no real sleep
            site = self.compiler.site(self.function.name, node.lineno, name)
            self._trace(STEP_KINDS[name], site, arguments)
            arguments = [site, *arguments]
            name = "step_" + name
        else:
            self._event(STEP_KINDS[name], node, name, arguments)
        symbol = self.compiler.extern("spf_" + name, I64, [I64] * len(arguments))
        return self.builder.call(symbol, arguments)

    def _park(self, node: ast.Call, code: ir.Value) -> ir.Value:
        """Stop, then wait for ever on a word that nobody knows: who goes on cannot pass."""
        site = self.compiler.site(self.function.name, node.lineno, "panic")
        self._step(Step.PANIC, site, [code])
        word = self.allocas.alloca(I64)
        self.builder.store(code, word)
        wait = self.compiler.extern("spf_step_futex_wait", I64, [I64] * 4)
        loop = self.target.append_basic_block("parked")
        self.builder.branch(loop)
        self.builder.position_at_end(loop)
        address = self.builder.ptrtoint(word, I64)
        self.builder.call(wait, [site, address, code, ir.Constant(I64, -1)])
        self.builder.branch(loop)
        self.builder.position_at_end(self.target.append_basic_block("never"))
        return ZERO

    def _relax(self) -> ir.Value:
        if "x86_64" in self.compiler.triple:
            pause = self.compiler.extern("llvm.x86.sse2.pause", VOID, [])
            return self._nothing(self.builder.call(pause, []))
        if "aarch64" in self.compiler.triple:
            hint = self.compiler.extern("llvm.aarch64.hint", VOID, [I32])
            return self._nothing(self.builder.call(hint, [ir.Constant(I32, 1)]))
        return ZERO

    def _event(self, kind: Step, node: ast.AST, primitive: str, arguments: list[ir.Value]) -> None:
        """Stop and call the hook, as far as the code is stepped and instrumented."""
        if not self.stops and HOOK_OF.get(kind) not in self.hooks:
            return
        site = self.compiler.site(self.function.name, getattr(node, "lineno", 0), primitive)
        if self.stops:
            self._step(kind, site, arguments)
        self._trace(kind, site, arguments)

    def _trace(self, kind: Step, site: ir.Constant, arguments: list[ir.Value]) -> None:
        """Call the hook of an event, if the program has it; a copy accesses two addresses."""
        hook = HOOK_OF.get(kind)
        if hook not in self.hooks:
            return
        words = arguments[: 2 if kind is Step.PAGE else 1] or [ZERO]
        for word in words:
            self.builder.call(self.compiler.functions[hook], [site, word])

    def _step(self, kind: Step, site: ir.Constant, arguments: list[ir.Value]) -> None:
        words = [*arguments[:3], ZERO, ZERO, ZERO][:3]
        step = self.compiler.extern("spf_step", VOID, [I64] * 5)
        self.builder.call(step, [ir.Constant(I64, int(kind)), site, *words])

    def _pointer(self, address: ir.Value) -> ir.Value:
        return self.builder.inttoptr(address, WORD_PTR)

    @staticmethod
    def _nothing(_instruction: ir.Value) -> ir.Value:
        return ZERO
