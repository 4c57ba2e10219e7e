# SPDX-License-Identifier: MIT
"""What varies between protocols: how a fault is entered and what guards its commit.

A protocol is a module of three kernel functions, `do_user_addr_fault`, `pte_map_lock` and
`pte_spinlock`, and what they need.  Lay two beside each other to see what differs.

A protocol may also replace functions of the kernel, above all those of mm/vma_write.py.  One that
is a variant of another names it in ``EXTENDS`` and holds only what differs.
"""

from __future__ import annotations

import importlib

from spfemu.engines.source import KernelFunction, functions_of


def protocol_functions(name: str) -> dict[str, KernelFunction]:
    """Return the kernel functions of protocol `name`, those of what it extends included."""
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    base = getattr(module, "EXTENDS", None)
    return {**(protocol_functions(base) if base else {}), **functions_of(module)}
