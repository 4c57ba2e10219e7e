# SPDX-License-Identifier: MIT
"""How large a machine a trace needs: found by reading it once, keeping only counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from spfemu.layout import NR_CPUS_MAX, PAGE_SIZE
from spfemu.mm.flags import DEFAULT_MAP_COUNT, Map, Prot
from spfemu.segment import Geometry
from spfemu.trace.calls import Call, MemoryCall
from spfemu.trace.maps import Mapping
from spfemu.trace.strace import Clone, Event, Exec, Exit, Maps

TOUCHES = ("none", "all", "once")
ACCESSIBLE = int(Prot.READ | Prot.WRITE)
SLACK_OF_A_RANGE = 4 + 2 * 16
"""Frames of a range beside its pages and one for each 512: upper page tables, and what reading a
page of a file brings along."""
SPARE_FRAMES = 512
"""Frames on a CPU's own lists, and those that wait for a grace period."""
SPARE_VMAS = 512
SPLITS = 2
"""VMAs that a call adds at most."""


@dataclass
class _Image:
    """One address space: upper bounds of what it holds."""

    vmas: int = 0
    frames: int = 0
    generation: int = 1
    """Forks between the first ancestor and it, plus one: how many anon_vmas a VMA may have."""
    brk: int = 0


@dataclass
class Sizes:
    """What a trace needs at most at one time."""

    threads: int = 0
    images: int = 0
    vmas: int = 0
    chains: int = 0
    frames: int = 0
    calls: int = 0
    paths: set[str] = field(default_factory=set)
    shared_mappings: int = 0

    def geometry(self, workers: int | None, frames_max: int) -> Geometry:
        """Return a machine that is large enough, but for frames beyond `frames_max`."""
        cpus = min(max(self.threads, 1) if workers is None else workers, NR_CPUS_MAX)
        frames = self.frames + self.images + cpus * SPARE_FRAMES
        vmas = self.vmas + cpus * SPARE_VMAS
        return Geometry(
            nr_cpus=cpus,
            nr_mms=1,
            nr_frames=min(frames, frames_max),
            nr_vmas=vmas,
            nr_anon_vmas=vmas,
            nr_spare_mms=self.images + 1,
            nr_avcs=self.chains + vmas,
            nr_files=len(self.paths) + self.shared_mappings + 1,
        )


class _Scan:
    """Goes through the events, adding up."""

    def __init__(self, touch: str) -> None:
        self.touch = touch
        self.sizes = Sizes()
        self.images: dict[int, _Image] = {}

    def event(self, event: Event) -> None:
        if isinstance(event, MemoryCall):
            self.sizes.calls += 1
            self._call(self._image(event.pid), event)
        elif isinstance(event, Clone):
            self._clone(event)
        elif isinstance(event, Exec):
            self.images.pop(event.pid, None)
            self._image(event.pid)
        elif isinstance(event, Exit):
            self.images.pop(event.pid, None)
        elif event.initial:
            self.initial(event)
        self._peak()

    def initial(self, maps: Maps) -> None:
        image = self._image(maps.pid)
        for mapping in maps.mappings:
            image.vmas += 1
            for _ in range(2 if mapping.is_file else 1):
                self._pages(image, mapping.end - mapping.start, mapping.prot)
            self.sizes.paths.add(mapping.name)

    def _image(self, pid: int) -> _Image:
        image = self.images.get(pid)
        if image is None:
            image = self.images[pid] = _Image()
        return image

    def _clone(self, event: Clone) -> None:
        parent = self._image(event.pid)
        if event.shares_mm and event.child not in self.images:
            self.images[event.child] = parent
            return
        # the child's first calls may come before
        child = self._image(event.child)
        child.vmas += parent.vmas
        child.frames += parent.frames
        child.generation += parent.generation
        child.brk = child.brk or parent.brk

    def _call(self, image: _Image, call: MemoryCall) -> None:
        if call.result is None or call.result < 0:
            return
        arguments = call.arguments
        image.vmas = min(image.vmas + SPLITS, DEFAULT_MAP_COUNT)
        if call.call is Call.MMAP:
            prot = ACCESSIBLE if arguments[3] & (Map.POPULATE | Map.LOCKED) else arguments[2]
            populated = bool(arguments[3] & (Map.POPULATE | Map.LOCKED))
            self._pages(image, arguments[1], prot, populated=populated)
            if call.path is not None:
                # the file's own page beside a private copy
                self._pages(image, arguments[1], prot, populated=populated)
                self.sizes.paths.add(call.path)
            elif arguments[3] & Map.SHARED:
                self.sizes.shared_mappings += 1
        elif call.call is Call.MPROTECT:
            self._pages(image, arguments[1], arguments[2])
        elif call.call is Call.MREMAP:
            self._pages(image, arguments[2], ACCESSIBLE)
        elif call.call in (Call.MLOCK, Call.MLOCK2):
            self._pages(image, arguments[1], ACCESSIBLE, populated=True)
        elif call.call is Call.BRK:
            if image.brk and call.result > image.brk:
                self._pages(image, call.result - image.brk, ACCESSIBLE)
            image.brk = call.result

    def _pages(self, image: _Image, length: int, prot: int, *, populated: bool = False) -> None:
        """Count the frames of a range that may be touched."""
        if not prot & ACCESSIBLE or (self.touch == "none" and not populated):
            return
        pages = -(-length // PAGE_SIZE) if populated or self.touch == "all" else 1
        image.frames += pages + pages // 512 + SLACK_OF_A_RANGE

    def _peak(self) -> None:
        sizes = self.sizes
        sizes.threads = max(sizes.threads, len(self.images))
        images = {id(image): image for image in self.images.values()}.values()
        sizes.images = max(sizes.images, len(images))
        sizes.vmas = max(sizes.vmas, sum(i.vmas for i in images))
        sizes.frames = max(sizes.frames, sum(i.frames for i in images))
        sizes.chains = max(sizes.chains, sum(i.vmas * i.generation for i in images))


def scan(events: Iterable[Event], touch: str, initial: tuple[Mapping, ...] = ()) -> Sizes:
    """Return what a trace needs; `initial` is the first process's map if the trace has none."""
    found = _Scan(touch)
    for number, event in enumerate(events):
        if number == 0 and initial:
            found.initial(Maps(0, event.pid, initial=True, mappings=initial))
        found.event(event)
    return found.sizes
