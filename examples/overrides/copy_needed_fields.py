# SPDX-License-Identifier: MIT
"""Copy only those fields of the VMA that an anonymous fault reads, not all of it."""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import load, store


@kernel
def copy_pvma(pvma: int, vma: int) -> None:
    """Copy five words of the VMA's first two cache lines."""
    store(pvma + VMA.vm_start, load(vma + VMA.vm_start))
    store(pvma + VMA.vm_page_prot, load(vma + VMA.vm_page_prot))
    store(pvma + VMA.vm_flags, load(vma + VMA.vm_flags))
    store(pvma + VMA.anon_vma, load(vma + VMA.anon_vma))
    store(pvma + VMA.vm_pgoff, load(vma + VMA.vm_pgoff))
