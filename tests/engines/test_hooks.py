# SPDX-License-Identifier: MIT
"""Instrumented code tells its hooks every step; code without oracles is as if they were not."""

import pytest
import toys

from spfemu.engines.compiler import Compiler
from spfemu.engines.native import NativeEngine
from spfemu.engines.script import Script, after, before
from spfemu.engines.source import functions_of, link, load_override
from spfemu.engines.stepped import StepEngine
from spfemu.layout import PAGE_SIZE
from spfemu.mm import bug, irq, spinlock, vmstat
from spfemu.stress import oracle_layers

BASE = [functions_of(m) for m in (bug, vmstat, irq, spinlock, toys)]
HEADER = "from spfemu.kernel import *\nfrom spfemu.primitives import *\n"
ENGINES = (NativeEngine, StepEngine)
TRIPLE = "x86_64-unknown-linux-gnu"

# The log is an array of (kind, site, word) behind a counter, all at the address of this_cpu().
ORACLE = """
@kernel
def note(kind: int, site: int, word: int) -> None:
    log = this_cpu()
    count = atomic_fetch_add(log, 1)
    store(log + 8 + count * 24, kind)
    store(log + 16 + count * 24, site)
    store(log + 24 + count * 24, word)


@around
def trace_enter(site: int, a0: int) -> None:
    note(1, site, a0)
    proceed(site, a0)


@around
def trace_return(site: int, result: int) -> None:
    note(2, site, result)
    proceed(site, result)


@around
def trace_access(site: int, address: int) -> None:
    note(3, site, address)
    proceed(site, address)
"""
WATCHED = """
@kernel
def top(cpu: int, at: int) -> int:
    write_once(at, 5)
    smp_mb()
    quiet(at)
    copy_page(at + 4096, at)
    return middle(at) + 1


@noinstr
@kernel
def quiet(at: int) -> None:
    store(at, load(at) + 1)


@kernel
def middle(at: int) -> int:
    return atomic_fetch_add(at, 1)
"""


@pytest.fixture
def layer(tmp_path):
    def write(text):
        path = tmp_path / f"layer{len(list(tmp_path.iterdir()))}.py"
        path.write_text(HEADER + text)
        return load_override(str(path))

    return write


@pytest.fixture
def instrumented(layer):
    return link([*BASE, layer(WATCHED)], {}, wrappers=[*oracle_layers([]), layer(ORACLE)])


def told(engine, segment):
    """What the hooks were told, with names for the sites."""
    log = segment.scratch(0)
    noted = []
    for i in range(segment.word(log)):
        kind, site, word = (segment.word(log + 8 + 24 * i + 8 * j) for j in range(3))
        where = engine.sites[site]
        noted.append((kind, where.function, where.primitive, word))
    return noted


@pytest.mark.parametrize("make_engine", ENGINES)
def test_hooks_are_told_every_step(own_cache, segment, instrumented, make_engine):
    engine = make_engine(instrumented)
    at = segment.address["frames"] + 20 * PAGE_SIZE
    assert engine.call("top", segment.scratch(0), at) == 7

    assert told(engine, segment) == [
        (1, "top", "enter", segment.scratch(0)),
        (3, "top", "write_once", at),
        (3, "top", "copy_page", at + PAGE_SIZE),
        (3, "top", "copy_page", at),
        (1, "middle", "enter", at),
        (3, "middle", "atomic_fetch_add", at),
        (2, "middle", "return", 6),
        (2, "top", "return", 7),
    ]


def watched(sites):
    """Sites outside of what every program with oracles has."""
    return [site for site in sites if site.function != "stress_violation"]


def test_stops_are_the_same_but_for_what_is_not_watched(own_cache, instrumented, layer):
    plain = StepEngine(link([*BASE, layer(WATCHED)], {}))
    assert watched(StepEngine(instrumented).sites) == plain.sites
    assert not [site for site in plain.sites if site.function == "quiet"]


@pytest.mark.parametrize("stepped", [False, True])
def test_hooks_that_nobody_stands_around_change_nothing(layer, stepped):
    def assembly(*arguments, **more):
        compiler = Compiler(link(*arguments, **more), stepped=stepped, triple=TRIPLE)
        return compiler.emit(), compiler.sites

    layers = [*BASE, layer(WATCHED)]
    plain, sites = assembly(layers, {})
    assert "trace_" not in plain
    assert "this_cpu" not in plain
    assert bool(sites) == stepped
    wrapped, same_sites = assembly(layers, {}, wrappers=oracle_layers([]))
    kernel = "define internal "  # entries, which set this_cpu, are not internal
    assert set(plain.split(kernel)[1:-1]) <= set(wrapped.split(kernel)[1:])
    assert watched(same_sites) == sites


def test_scripts_name_functions_that_oracles_stand_around(own_cache, segment, layer):
    oracle = "@around\ndef middle(at: int) -> int:\n    return proceed(at) * 2\n"
    program = link([*BASE, layer(WATCHED)], {}, wrappers=[layer(oracle)])
    at = segment.address["frames"] + 20 * PAGE_SIZE
    with Script(StepEngine(program), segment) as script:
        cpu = script.cpu("A", "top", segment.cpu(0), at)
        cpu.runs_until(before("middle"))
        assert segment.word(at) == 6
        assert cpu.stack == ("top", "middle__1")
        cpu.runs_until(after("atomic_fetch_add", inside="middle"))
        assert segment.word(at) == 7
        assert "in top (" in script.where()
        assert cpu.runs_to_end() == 13
