# SPDX-License-Identifier: MIT
"""One kernel function per construct of the restricted style, for the engines to agree on."""

from enum import IntEnum

from spfemu.kernel import kernel, slowpath
from spfemu.layout import VMA
from spfemu.primitives import load, store

CONFIG_TOY = 1
LIMIT = 10
NEGATIVE = -7


class Colour(IntEnum):
    """Named constants."""

    RED = 3
    GREEN = 5


@kernel
def constants(a: int) -> int:
    """Module constants, enum members, struct offsets, truth values."""
    return a + LIMIT * NEGATIVE + Colour.GREEN + VMA.vm_flags + True


@kernel
def configured(a: int) -> int:
    """A build option decides."""
    if CONFIG_TOY:
        return a + 1
    return a


@kernel
def floor_division(a: int) -> int:
    """Quotient and rest of floor division."""
    return (a // 7) * 1000 + a % 7


@kernel
def divide_in_place(a: int) -> int:
    """Augmented assignments."""
    b = a
    b //= 3
    b += a
    b -= 1
    b *= 3
    b %= 1000
    b <<= 2
    b >>= 1
    b |= 64
    b &= 1023
    b ^= 5
    return b


@kernel
def decide_or(a: int, b: int) -> int:
    """The operand that decides, not a truth value."""
    return a or b


@kernel
def decide_and(a: int, b: int) -> int:
    """The operand that decides, not a truth value."""
    return a and b


@kernel
def logic(a: int, b: int) -> int:
    """Nested and, or, not."""
    return (not a and b > 2) or (a < b and not (b == 4 or a != 3))


@kernel
def between(a: int, b: int) -> int:
    """Chained comparison."""
    return -3 < a <= b < 100


@kernel
def bump(addr: int) -> int:
    """Count up at `addr`; returns the new value."""
    store(addr, load(addr) + 1)
    return load(addr)


@kernel
def chain_stops(a: int, addr: int) -> int:
    """What follows in a chain after it failed is not evaluated."""
    holds = 0 < a < bump(addr)
    return holds * 100 + load(addr)


@kernel
def or_stops(a: int, addr: int) -> int:
    """The right side is evaluated only if needed."""
    result = a or bump(addr)
    return result * 100 + load(addr)


@kernel
def choose(a: int, b: int) -> int:
    """Conditional expression."""
    return a * 2 if a > b else b if b > 5 else -1


@kernel
def sum_range(a: int, b: int) -> int:
    """A for loop whose counter may be changed inside without effect."""
    total = 0
    for i in range(a, b):
        total = total * 3 % 1000003 + i
        i = 0  # noqa: PLW2901 the loop goes on from its own count
        total += i
    return total


@kernel
def last_of_range(a: int) -> int:
    """The counter keeps its last value."""
    i = -1
    for i in range(a):
        total = i
        total += 1
    return i


@kernel
def nested_loops(a: int) -> int:
    """Break and continue leave the inner loop only."""
    count = 0
    for i in range(a):
        if i == 7:
            break
        j = 0
        while True:
            j += 1
            if j % 2 == 0:
                continue
            if j > i:
                break
            count += j
    return count


@kernel
def while_loop(a: int) -> int:
    """Collatz steps, bounded."""
    steps = 0
    while a > 1 and steps < 100:
        if a % 2 == 0:
            a = a // 2
        else:
            a = 3 * a + 1
        steps += 1
    return steps


@slowpath
def divide(a: int, b: int) -> tuple[int, int, int, int]:
    """Several results, b only by powers of two."""
    return a >> b, a - (a >> b << b), a, b


@kernel
def uses_tuple(a: int, b: int) -> int:
    """Unpack a tuple, swap by tuple."""
    quotient, rest, x, y = divide(a, b)
    x, y = y, x
    return quotient * 1000 + rest * 100 + x - y


@kernel
def annotated(a: int) -> int:
    """Annotated assignment, unary operators, pass."""
    b: int = -a
    if b > 0:
        pass
    else:
        b = ~b
    return b + -5


@kernel
def early(a: int) -> int:
    """Return from inside loops and branches."""
    while True:
        if a > 100:
            return a
        if a < 0:
            return -a
        a = a * 2 + 1


@kernel
def nothing(a: int) -> None:
    """No result."""
    if a > 3:
        return
    a += 1


@kernel
def calls_nothing(a: int) -> int:
    """A call for its effect."""
    nothing(a)
    return a
