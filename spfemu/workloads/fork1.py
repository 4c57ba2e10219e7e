# SPDX-License-Identifier: MIT
"""Fork, let the child write some pages and exit: fork servers, snapshots of databases.

Before each fork the parent writes to its area.  `size` is the area, 1 MiB, `pages` are those that
the child writes, 16.  Both sides' writes fault: the first side to write to a page copies it, the
other takes it as it is.  The worker plays parent and child in turn; on the host the child is a
process of its own, for which the parent waits.
"""

from spfemu.kernel import kernel
from spfemu.layout import CPU, PAGE_SHIFT
from spfemu.mm.context import switch_mm
from spfemu.mm.fork import exit_mm, sys_fork
from spfemu.primitives import load, store
from spfemu.workloads.common import map_anonymous, write_pages
from spfemu.workloads.parameters import Needs, Param, Parameters, State, table_frames

DEFAULTS = Parameters(size=1 << 20, pages=16)
FORKS = True


def needs(parameters: Parameters) -> Needs:
    """A child per worker, each with all areas of the process; what any side writes is copied."""
    workers = parameters.workers
    pages = parameters.size_pages * workers
    tables = table_frames(pages, workers) + 1
    frames = (1 + workers) * (pages + tables)
    vmas = (1 + workers) * workers
    return Needs(frames, vmas, mms=workers, chains=vmas)


def iterations(parameters: Parameters) -> int:
    """One fork."""
    return 1


@kernel
def workload_setup(cpu: int) -> int:
    """Map the worker's own area."""
    area = map_anonymous(cpu, load(cpu + Param.SIZE))
    if area < 0:
        return area
    store(cpu + State.AREA, area)
    return 0


@kernel
def workload_op(cpu: int) -> int:
    """Write, fork, let the child run until it exits."""
    area = load(cpu + State.AREA)
    result = write_pages(cpu, area, area + load(cpu + Param.SIZE))
    if result < 0:
        return result
    parent = load(cpu + CPU.mm)
    child = sys_fork(cpu)
    if child < 0:
        return child
    return run_child(cpu, parent, child)


@kernel
def run_child(cpu: int, parent: int, child: int) -> int:
    """Go over to the child, do its work, and come back as it exits; what the work returned."""
    switch_mm(cpu, child)
    result = child_work(cpu)
    exit_mm(cpu, parent)
    return result


@kernel
def child_work(cpu: int) -> int:
    """Write to the first pages; 0 or -errno."""
    area = load(cpu + State.AREA)
    return write_pages(cpu, area, area + (load(cpu + Param.PAGES) << PAGE_SHIFT))
