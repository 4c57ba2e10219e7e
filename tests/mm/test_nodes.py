# SPDX-License-Identifier: MIT
"""Frames of several NUMA nodes: taken on the own one while there are any, given back to theirs."""

import importlib

import numpy as np
import pytest
from mm_machine import Machine
from whole_kernel import MODULES

from spfemu.checks import check_segment
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link
from spfemu.errors import UsageError
from spfemu.events import Event
from spfemu.layout import PAGE
from spfemu.mm.flags import PageKind
from spfemu.mm.nodes import ZONE_FREE
from spfemu.mm.page_alloc import PCP_BATCH
from spfemu.protocols import classic
from spfemu.segment import Geometry, Segment

NR_FRAMES = 601
NODES = 3
PER_NODE = 201


@pytest.fixture(scope="module")
def engine(own_cache):
    modules = [importlib.import_module("spfemu.mm." + name) for name in MODULES]
    layers = [*map(functions_of, modules), functions_of(classic)]
    return NativeEngine(link(layers, {"CONFIG_NUMA": 1}))


@pytest.fixture
def machine(engine):
    geometry = Geometry(nr_cpus=4, nr_frames=NR_FRAMES, nr_nodes=NODES)
    made = Machine(engine, Segment.create(geometry))
    made.segment.mms["mm_users"] = 4
    yield made
    assert check_segment(made.segment) == []
    made.segment.close()


def takes(machine, cpu, count):
    """Take frames on a CPU; returns their PAGEs, up to the first that is not there."""
    taken = []
    for _ in range(count):
        page = machine.call("alloc_page", machine.cpu(cpu), PageKind.ANON)
        if page == 0:
            break
        taken.append(page)
    return taken


def gives_back(machine, cpu, pages):
    for page in pages:
        machine.call("put_page", machine.cpu(cpu), page)


def nodes_of(machine, pages):
    indexes = (np.asarray(pages) - machine.segment.address["vmemmap"]) // PAGE.SIZE
    return (indexes // PER_NODE).tolist()


def zone_free(machine, node):
    return int(machine.segment.words[machine.segment.zone_word(node, ZONE_FREE)])


def test_frames_and_cpus_are_divided(machine):
    assert machine.segment.cpus["node"].tolist() == [0, 1, 2, 0]
    assert [zone_free(machine, n) for n in range(NODES)] == [PER_NODE - 2, PER_NODE, 199]


@pytest.mark.parametrize("cpu", range(4))
def test_a_cpu_takes_frames_of_its_own_node(machine, cpu):
    pages = takes(machine, cpu, 100)
    assert set(nodes_of(machine, pages)) == {cpu % NODES}
    assert [machine.call("page_to_nid", machine.cpu(0), p) for p in pages] == [cpu % NODES] * 100
    assert machine.event(cpu, Event.NUMA_HIT) == 100
    gives_back(machine, cpu, pages)


def test_an_empty_node_takes_from_the_next(machine):
    pages = takes(machine, 1, NR_FRAMES)
    found = nodes_of(machine, pages)
    # all frames but the zero page and the top-level table
    assert len(pages) == NR_FRAMES - 2
    assert found == [1] * PER_NODE + [2] * 199 + [0] * (PER_NODE - 2)
    assert machine.event(1, Event.NUMA_HIT) == PER_NODE
    assert machine.event(1, Event.NUMA_MISS) == NR_FRAMES - 2 - PER_NODE
    gives_back(machine, 1, pages)
    assert zone_free(machine, 2) == 199
    assert zone_free(machine, 0) == PER_NODE - 2


def test_frames_given_back_from_elsewhere_are_used_again(machine):
    """They come one by one, more than fit on a CPU's list."""
    pages = takes(machine, 0, PER_NODE - 2)
    gives_back(machine, 1, pages)
    assert zone_free(machine, 0) == PER_NODE - 2
    again = takes(machine, 3, PER_NODE - 2)
    assert sorted(again) == sorted(pages)
    assert machine.event(3, Event.NUMA_MISS) == 0
    assert machine.segment.cpus["pcp_count"].max() <= PCP_BATCH
    gives_back(machine, 3, again)


def test_a_machine_has_some_nodes():
    with pytest.raises(UsageError, match="1 to 8 NUMA nodes, not 9"):
        Geometry(nr_nodes=9)
