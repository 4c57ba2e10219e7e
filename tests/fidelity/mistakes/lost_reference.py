# SPDX-License-Identifier: MIT
"""A kernel that shares an anon_vma without counting it: an assertion stops it later."""

from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.primitives import load, smp_store_release


@kernel
def anon_vma_clone(dst: int, src: int) -> None:
    smp_store_release(dst + VMA.anon_vma, load(src + VMA.anon_vma))
