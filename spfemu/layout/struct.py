# SPDX-License-Identifier: MIT
"""Structs by declaration: offsets for kernel functions, a NumPy dtype for everyone else.

A struct is a class whose attributes are fields::

    class RWSEM(Struct):
        count = word("state word", lock="atomic")

After the class body has run, ``RWSEM.count`` is the *byte offset* of the field, ``RWSEM.SIZE``
the size in bytes, ``RWSEM.dtype`` the NumPy structured dtype and ``RWSEM.FIELDS`` the
declarations.  Kernel functions add the offset to a struct's address; the compiler folds it.

All words are signed 64-bit integers: mixing signedness would make NumPy compute in ``float64``.
A field that starts with ``line=True`` begins a new 64-byte cache line.  Fields bounce together
exactly where they share a line, so the order of fields is part of what is measured.

The ``lock`` of a field says what must be held to write it (``atomic``: by atomic operations,
``owner``: by the CPU that owns the block only, ``init``: before workers start).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np

WORD = 8
CACHE_LINE = 64


@dataclass(frozen=True)
class Field:
    """One declared field: name, byte offset, number of words, what guards it, what it is."""

    name: str
    offset: int
    words: int
    lock: str
    doc: str


@dataclass(frozen=True)
class _Declared:
    words: int
    lock: str
    doc: str
    line: bool


def word(doc: str, *, lock: str = "init", line: bool = False, count: int = 1) -> int:
    """Declare `count` 64-bit words; `line` starts a new cache line."""
    return cast("int", _Declared(count, lock, doc, line))


def embed(struct: type[Struct], doc: str, *, line: bool = False) -> int:
    """Declare an embedded struct; its fields are reached by adding both offsets."""
    return cast("int", _Declared(struct.SIZE // WORD, "see " + struct.__name__, doc, line))


class Struct:
    """Base of all layout declarations; see the module's docstring."""

    SIZE: ClassVar[int] = 0
    FIELDS: ClassVar[tuple[Field, ...]] = ()
    ALL: ClassVar[list[type[Struct]]] = []
    dtype: ClassVar[np.dtype[Any]]

    def __init_subclass__(cls, *, size: int = 0, pad_to_line: bool = False) -> None:
        offset = 0
        fields = []
        for name, declared in list(vars(cls).items()):
            if not isinstance(declared, _Declared):
                continue
            if declared.line:
                offset = -(-offset // CACHE_LINE) * CACHE_LINE
            fields.append(Field(name, offset, declared.words, declared.lock, declared.doc))
            setattr(cls, name, offset)
            offset += declared.words * WORD
        if pad_to_line:
            offset = -(-offset // CACHE_LINE) * CACHE_LINE
        if size and offset > size:
            raise ValueError(f"{cls.__name__} needs {offset} bytes, more than its {size}")
        cls.SIZE = size or offset
        cls.FIELDS = tuple(fields)
        cls.dtype = np.dtype(
            {
                "names": [f.name for f in fields],
                "formats": ["<i8" if f.words == 1 else f"({f.words},)<i8" for f in fields],
                "offsets": [f.offset for f in fields],
                "itemsize": cls.SIZE,
            }
        )
        Struct.ALL.append(cls)
