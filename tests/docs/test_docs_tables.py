# SPDX-License-Identifier: MIT
"""Tables of the pages say what the code says."""

import importlib
import pkgutil
import re

import pytest
from field_tables import between_markers, field_tables

import spfemu.mm
import spfemu.protocols
from spfemu.engines.source import functions_of
from spfemu.events import ABORT_REASONS
from spfemu.measure.build import compose, protocols, workloads
from spfemu.segment import Geometry


def kernel_functions():
    """Kernel functions by name of their file, of the kernel and of the protocols."""
    found = {}
    for package in (spfemu.mm, spfemu.protocols):
        for module in pkgutil.iter_modules(package.__path__):
            functions = functions_of(importlib.import_module(f"{package.__name__}.{module.name}"))
            if functions:
                found[f"{module.name}.py"] = set(functions)
    return found


def sections(text):
    """Sections of a page by the file names in their headings."""
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        files = re.findall(r"\w+\.py", heading.partition(":")[0])
        found[tuple(files)] = body
    return found


def test_the_kernel_map_has_every_function_in_the_section_of_its_file(read_page, rows, names_in):
    documented = {}
    for files, body in sections(read_page("kernel-map.md")).items():
        names = [name for row in rows(body) for name in names_in(row[0])]
        assert len(names) == len(set(names)), files
        documented[files] = set(names)

    functions = kernel_functions()

    assert {file for files in documented for file in files} == set(functions)
    for files, names in documented.items():
        assert names == set().union(*(functions[file] for file in files)), files


def test_the_kernel_map_names_a_counterpart_or_none(read_page, rows):
    for body in sections(read_page("kernel-map.md")).values():
        for row in rows(body):
            assert len(row) == 3, row
            assert row[1], row


def test_the_fields_are_those_of_the_layout(read_page):
    _, tables, _ = between_markers(read_page("locking.md"))
    assert tables == field_tables(), "run: python tests/docs/field_tables.py docs/locking.md"


def test_barriers_name_functions_that_have_them(read_page, rows, names_in):
    text = read_page("locking.md").split("\n## Barriers\n")[1].split("\n## ")[0]
    functions = {name for names in kernel_functions().values() for name in names}
    for row in rows(text):
        for side in row[:2]:
            named = [name for name in names_in(side) if not name.startswith("smp_")]
            assert set(named) <= functions, row


def test_the_areas_are_those_of_the_segment(read_page, rows, names_in):
    named = [names_in(row[0])[0] for row in rows(read_page("architecture.md"), "areas")]
    expected = list(Geometry().areas())
    assert named == expected


def test_every_abort_reason_is_explained(read_page, rows, names_in):
    named = [names_in(row[0])[0] for row in rows(read_page("protocols.md"), "aborts")]
    assert [f"SPF_ABORT_{name}" for name in named] == [event.name for event in ABORT_REASONS]


@pytest.mark.parametrize("protocol", sorted(protocols()))
def test_protocols_name_functions_that_they_call(read_page, protocol):
    text = read_page("protocols.md").split(f"\n## {protocol}\n")[1].split("\n## ")[0]
    steps = text.split("\n### ")[0]
    functions = {name for names in kernel_functions().values() for name in names}
    named = {name for name in re.findall(r"`(\w+)`", steps) if name in functions}
    reached = set(compose("page_fault1", protocol).functions)
    assert named - reached == set()


def test_every_workload_is_described(read_page, rows, names_in):
    said = {names_in(r[0])[0]: (r[1], r[2]) for r in rows(read_page("workloads.md"), "workloads")}
    assert said == {
        name: (workload.description, "yes" if workload.faults else "no")
        for name, workload in sorted(workloads().items())
    }


def test_every_workload_has_its_size(read_page, rows, names_in):
    sizes = {names_in(row[0])[0]: row[1] for row in rows(read_page("measuring.md"), "sizes")}
    known = workloads()
    assert sorted(sizes) == sorted(known)
    for name, text in sizes.items():
        defaults = known[name].defaults
        for count, unit in re.findall(r"(\d+) (MiB|KiB|areas|pages)", text):
            value = {
                "MiB": defaults.size / (1 << 20),
                "KiB": defaults.size / (1 << 10),
                "areas": defaults.areas,
                "pages": defaults.pages,
            }[unit]
            assert value == int(count), (name, unit)
