# SPDX-License-Identifier: MIT
"""Programs of one thread in an area that a monitor serves do the same under every protocol."""

import random

import pytest
from protocol_engines import native
from protocol_sets import GUARDED

from spfemu.checks import check_segment
from spfemu.mm.flags import Prot
from spfemu.segment import Geometry, Segment
from spfemu.stress.schedules.calls import FIXED, RW
from spfemu.stress.schedules.served import MISSING, WP, Served

AREA = 1 << 40
PAGES = 16
OPERATIONS = 150
CHOICES = (
    ["write"] * 6 + ["read"] * 4 + ["register", "copy", "zeropage", "writeprotect"] * 3
    + ["unregister", "mmap", "munmap", "mprotect", "dontneed", "mremap"]
)  # fmt: skip


def do_random_calls(process, seed):
    """Make a program's calls; returns their results and the map at the end.

    An access that waits for the monitor ends with -EINTR: a fatal signal is there from the start.
    """
    choose = random.Random(seed)
    process.segment.cpus["fatal_signal"] = 1
    results = []
    for _ in range(OPERATIONS):
        first, last = sorted(choose.sample(range(PAGES + 1), 2))
        start, length = AREA + (first << 12), (last - first) << 12
        name = choose.choice(CHOICES)
        arguments = {
            "write": (start, choose.getrandbits(60)),
            "read": (start,),
            "register": (process.ctx, start, length, choose.choice([MISSING, WP, MISSING | WP])),
            "unregister": (process.ctx, start, length),
            "copy": (process.ctx, start, process.SOURCE, 4096, choose.choice([0, 0, 2])),
            "zeropage": (process.ctx, start, length, 0),
            "writeprotect": (process.ctx, start, length, choose.choice([0, 2])),
            "mmap": (start, length, choose.choice([RW, int(Prot.READ)]), FIXED),
            "munmap": (start, length),
            "mprotect": (start, length, choose.choice([RW, int(Prot.READ), 0])),
            "dontneed": (start, length),
            "mremap": (start, 4096, 4096, 3, AREA + (choose.randrange(PAGES) << 12)),
        }[name]
        results.append((name, process.call(name, *arguments, cpu=choose.randrange(3))))
    vmas = process.segment.vmas
    maps = sorted(
        (int(v["vm_start"]), int(v["vm_end"]), int(v["vm_flags"]))
        for v in vmas[vmas["slab_state"] == 1]
    )
    process.segment.cpus["fatal_signal"] = 0
    return results, maps


@pytest.mark.parametrize("protocol", sorted(set(GUARDED) - {"classic"}))
def test_programs_do_what_they_do_under_classic(own_cache, protocol):
    segment = Segment.create(Geometry(nr_cpus=3))
    for seed in range(24):
        found = []
        for name in ("classic", protocol):
            process = Served(native(name), segment)
            found.append(do_random_calls(process, seed))
            assert check_segment(segment) == [], (name, seed)
        assert found[0] == found[1], seed
    segment.close()
