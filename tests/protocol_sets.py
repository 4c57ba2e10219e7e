# SPDX-License-Identifier: MIT
"""Which protocols tests run under, derived from what there is: a new one is in every set.

A protocol leaves a set only by being named here, with the reason.
"""

from spfemu.measure.build import list_protocols, protocols


def family(name: str) -> str:
    """Return what a protocol is a variant of in the end, which may be itself."""
    base: str | None = getattr(protocols()[name], "EXTENDS", None)
    return family(base) if base else name


UNGUARDED = {"bare"}
"""Takes no notice of writers: it may not run beside them."""
GUARDED = sorted(set(protocols()) - UNGUARDED)
SPECULATIVE = [name for name in GUARDED if family(name) == "spf"]
VMA_LOCKED = [name for name in GUARDED if family(name) == "vma-lock"]
SAFE = [name for name in GUARDED if "UNSAFE" not in list_protocols()[name]]
"""For programs that an unsafe exhibit may fail: those that copy on write, and go on long enough."""
SAME_BEHIND_LOOKUP = {"spf-counted", "spf-vma-v11"}
"""Variants that find a VMA, or count that they have, in another way and then do the same."""
STORMED = [name for name in SAFE if name not in SAME_BEHIND_LOOKUP]
"""For the slowest tests, in which real CPUs fork, swap, collapse and fault on files: there, such a
variant would only repeat what it extends.  Storms of mappings (tests/mm/test_data.py,
tests/protocols/test_every_protocol.py), which find a VMA while it goes, leave nobody out."""
