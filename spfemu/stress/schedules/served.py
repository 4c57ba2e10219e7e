# SPDX-License-Identifier: MIT
"""A process with memory that a monitor serves by userfaultfd."""

from spfemu.mm.userfaultfd_register import UffdMode
from spfemu.stress.schedules.process import Process

MISSING, WP = int(UffdMode.MISSING), int(UffdMode.WP)


class Served(Process):
    """A process with pages of data at SOURCE and a context."""

    SOURCE = 1 << 42
    DATA = 11

    def begin(self, seed: int = 1) -> None:
        """Put everything into the initial state, with the data and the context."""
        super().begin(seed)
        self.map(self.SOURCE, 4)
        for page in range(4):
            self.write(self.SOURCE + (page << 12), self.DATA)
        self.ctx = self.call("open")
        assert self.ctx > 0

    def serves(self, address: int, pages: int, mode: int = MISSING) -> None:
        """Register a range."""
        assert self.call("register", self.ctx, address, pages << 12, mode) == 0

    def copies(self, address: int, pages: int = 1, mode: int = 0) -> int:
        """Fill pages with the data."""
        return int(self.call("copy", self.ctx, address, self.SOURCE, pages << 12, mode))

    def flags_at(self, address: int) -> int:
        """vm_flags of the VMA at an address."""
        vmas = self.segment.vmas
        found = (vmas["vm_start"] <= address) & (vmas["vm_end"] > address)
        (index,) = (found & (vmas["slab_state"] == 1)).nonzero()[0]
        return int(vmas["vm_flags"][index])
