# SPDX-License-Identifier: MIT
"""Writes to shared lines are counted, and what is said about them in the documentation is so."""

import re
from functools import cache
from pathlib import Path

import pytest

from spfemu.errors import UsageError
from spfemu.measure import shared_writes
from spfemu.measure.build import protocols
from spfemu.measure.plan import LOOKUP
from spfemu.measure.shared_writes import (
    shared_writes_per_fault,
    shared_writes_per_mapping,
    shared_writes_table,
)

count = cache(shared_writes_per_fault)
PTE = r"frame\[\d+\]\+0x[0-9a-f]+"
TABLE_LOCK = r"page\[\d+\]\.ptl"


def fields(protocol):
    """Fields with the numbers of slots left out."""
    return {re.sub(r"\d+", "N", name, count=1): n for name, n in count(protocol).fields.items()}


def test_the_floor_writes_the_pte_and_nothing_else():
    found = count("bare")
    assert (found.writes, found.lines) == (1, 1)
    assert re.fullmatch(PTE, *found.fields)


def test_speculation_adds_the_page_table_lock():
    found = count("spf")
    assert (found.writes, found.lines) == (3, 2)
    assert any(re.fullmatch(TABLE_LOCK, name) for name in found.fields)
    assert not any("mmap" in name for name in found.fields)


@pytest.mark.parametrize(
    ("protocol", "more"),
    [
        ("spf-counted", {"vma[N].fault_count": 2}),
        ("spf-vma", {"vma[N].vm_ref_count": 2}),
        ("vma-refcount", {"vma[N].vm_refcnt": 2}),
    ],
)
def test_a_count_of_the_vma_is_two_writes_more(protocol, more):
    assert more.items() <= fields(protocol).items()
    assert count(protocol).writes == count("spf").writes + 2
    assert count(protocol).lines == count("spf").lines + 1


def test_locks_write_their_owner_too():
    assert fields("vma-lock").items() >= {"vma[N].vm_lock.count": 2}.items()
    assert fields("classic").items() >= {"mmN.mmap_lock.count": 2}.items()
    assert count("classic").lines == count("vma-lock").lines == count("spf").lines + 1


def test_the_table_says_what_is_counted():
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    table = page.split("<!-- shared-writes -->")[1].split("<!--")[0]
    said = dict(re.findall(r"^\| `([\w-]+)` \| (\d+ writes? to \d+) ", table, re.MULTILINE))
    assert said == {name: str(count(name)).partition(" shared")[0] for name in protocols()}


def test_writers_pay_twice_for_a_latched_tree():
    found = {lookup: shared_writes_per_mapping("spf", lookup) for lookup in LOOKUP}
    walk, latch = found["walk"].fields, found["latch"].fields
    again = {
        name.replace(".rb_", ".latch_"): n for name, n in walk.items() if not name.endswith("_gap")
    }
    more = {name: n for name, n in latch.items() if name not in walk}
    assert more.pop("mm0.mm_rb_seq") == 2
    # a new VMA's links are cleared with the rest of it before it is linked, those of the copy not
    assert more.keys() == again.keys()
    assert all(again[name] - n in (0, 1) for name, n in more.items())
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    table = page.split("<!-- lookup-writes -->")[1].split("<!--")[0]
    said = dict(re.findall(r"^\| `(\w+)` \| (\d+ writes? to \d+) ", table, re.MULTILINE))
    assert said == {name: str(n).partition(" shared")[0] for name, n in found.items()}


def test_an_unknown_protocol_is_refused():
    with pytest.raises(UsageError, match="did you mean 'spf'"):
        shared_writes_per_fault("spff")


def test_the_table_is_counted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SPFEMU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(shared_writes, "shared_writes_per_fault", count)
    said = []
    first = shared_writes_table(lambda message, _fraction: said.append(message))
    assert first == {name: count(name) for name in protocols()}
    assert len(said) == len(first)
    assert shared_writes_table(lambda message, _fraction: said.append(message)) == first
    assert len(said) == len(first)


def test_other_sources_are_counted_again(monkeypatch, tmp_path):
    before = shared_writes._sources()
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(shared_writes.spfemu, "__file__", str(tmp_path / "__init__.py"))
    one = shared_writes._sources()
    (tmp_path / "__init__.py").write_text("X = 1")
    assert len({before, one, shared_writes._sources()}) == 3
