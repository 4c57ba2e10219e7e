# SPDX-License-Identifier: MIT
"""Options that several commands have; ranges are checked where the values are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from spfemu.cli import output, types

F = TypeVar("F", bound=Callable[..., Any])

protocol = click.option(
    "--protocol",
    type=types.Known("protocol", types.protocol_names),
    default="spf",
    show_default=True,
    metavar="NAME",
    help="How faults are handled: see 'spfemu list'.",
)
override = click.option(
    "--override",
    "overrides",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Python file, run as such, whose kernel functions replace those of the same name; "
    "repeatable.",
)
json_result = click.option(
    "--json",
    "json_path",
    type=output.PATH,
    metavar="PATH",
    help="Write the result; '-' for stdout.",
)
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="No progress and no notes: only results and what is wrong with them.",
)

_SHARED = (
    click.option(
        "--mode",
        type=types.Choice(("threads", "processes")),
        default="threads",
        show_default=True,
        help="Workers share one mm, or have one each.",
    ),
    click.option(
        "--size",
        type=types.Size(),
        metavar="BYTES",
        help="Size of an area: 4096, 64K, 16M.  [default: the workload's]",
    ),
    click.option(
        "--areas", type=int, metavar="V", help="Areas per worker.  [default: the workload's]"
    ),
    click.option(
        "--pages",
        type=int,
        metavar="P",
        help="Pages touched per operation and area.  [default: the workload's]",
    ),
    click.option(
        "--writers",
        type=int,
        default=0,
        show_default=True,
        metavar="M",
        help="Workers that map, protect and unmap meanwhile.",
    ),
    click.option(
        "--rate",
        type=float,
        metavar="HZ",
        help="Operations per second that each writer tries to do.  [default: no limit]",
    ),
    click.option(
        "--overlap", is_flag=True, help="Writers work in the areas in which the workers fault."
    ),
    click.option(
        "--table-free",
        type=types.Choice(("rcu", "irq")),
        default="rcu",
        show_default=True,
        help="What holds off the freeing of page tables.",
    ),
    click.option(
        "--seq-line",
        type=types.Choice(("shared", "own")),
        default="shared",
        show_default=True,
        help="Cache line of mmap_seq: that of mmap_lock, or its own.",
    ),
    click.option(
        "--nodes",
        type=int,
        default=1,
        show_default=True,
        metavar="N",
        help="NUMA nodes of the emulated machine; CPUs are dealt out to them in turn.",
    ),
    click.option(
        "--lookup",
        type=types.Choice(("walk", "latch")),
        default="walk",
        show_default=True,
        help="One tree of VMAs, walked while it changes, or a latched pair of copies.",
    ),
    click.option(
        "--khugepaged",
        is_flag=True,
        help="A kernel thread that makes huge pages of the workers' memory.",
    ),
    click.option(
        "--fault-overhead",
        type=types.Overhead(),
        default=0.0,
        metavar="NS|host",
        help="Time spun in every fault for what the emulator leaves out; 'host' measures it.  "
        "[default: 0]",
    ),
    click.option(
        "--swap",
        type=types.Size(),
        default=0,
        metavar="BYTES",
        help="Swap area of the emulated machine, with kswapd.  [default: 0]",
    ),
    click.option(
        "--memory",
        type=types.Size(),
        metavar="BYTES",
        help="Memory of the emulated machine.  [default: what the workload needs]",
    ),
    override,
    click.option("--thp", is_flag=True, help="Host: leave transparent huge pages on."),
    click.option("--seed", type=types.Seed(), metavar="K", help="Makes random choices the same."),
    quiet,
)


def shared(*, seconds: float, repeats: int) -> Callable[[F], F]:
    """Add the options that `run` and `scale` share, with the length of their samples."""
    own = (
        click.option(
            "--seconds",
            type=types.Seconds(),
            default=seconds,
            show_default=True,
            metavar="S",
            help="Time measured per repeat: 2, 0.5, 200ms.",
        ),
        click.option(
            "--repeats",
            type=int,
            default=repeats,
            show_default=True,
            metavar="R",
            help="How often everything is measured.",
        ),
    )

    def add(function: F) -> F:
        for option in reversed((*own, *_SHARED)):
            function = option(function)
        return function

    return add


def plan_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what the shared options gave into arguments of `spfemu.measure.plan.Plan`.

    What was not given is left out, so that the plan's default holds.
    """
    renamed = {
        "mode": given["mode"],
        "seconds": given["seconds"],
        "repeats": given["repeats"],
        "size": given["size"],
        "areas": given["areas"],
        "pages": given["pages"],
        "writers": given["writers"],
        "rate": given["rate"],
        "overlap": given["overlap"],
        "table_free": given["table_free"],
        "seq_line": given["seq_line"],
        "lookup": given["lookup"],
        "khugepaged": given["khugepaged"],
        "nodes": given["nodes"],
        "swap": given["swap"],
        "memory": given["memory"],
        "overrides": given["overrides"],
        "huge_pages": given["thp"],
        "seed": given["seed"],
    }
    return {name: value for name, value in renamed.items() if value is not None}


def overhead_argument(given: float | str) -> dict[str, Any]:
    """Turn ``--fault-overhead`` into an argument of a plan; ``host`` is measured later."""
    return {} if given == "host" else {"fault_overhead_ns": given}
