# SPDX-License-Identifier: MIT
"""A fault looks for the anon_vma of its VMA before it has locked that.

M17: Linux 6.4, fixed by 657b5146955e. mremap may take the anon_vma away in between, and whoever
makes one looks at neighbours, which the lock of a VMA does not keep.

The fault takes up the anon_vma of a neighbour that is being freed.
"""

from spfemu.events import Event
from spfemu.kernel import kernel
from spfemu.layout import VMA
from spfemu.mm.flags import VM_UFFD_FLAGS
from spfemu.mm.rcu import rcu_read_lock, rcu_read_unlock
from spfemu.mm.vma import __find_vma
from spfemu.mm.vma_write import vma_end_read
from spfemu.primitives import load, read_once
from spfemu.protocols.vma_lock import vma_lock_abort, vma_start_read

PROTOCOL = "vma-lock"
PROMISE = "USE_AFTER_FREE"
SCHEDULE = "anon_vma_beside_mremap"
ID = "M17"


@kernel
def lock_vma_under_rcu(cpu: int, mm: int, address: int) -> int:
    """Validate, then lock."""
    rcu_read_lock(cpu)
    vma = __find_vma(cpu, mm, address)
    if vma == 0 or read_once(vma + VMA.vm_start) > address:
        return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_UNMAPPED)
    if load(vma + VMA.vm_ops) != 0 or load(vma + VMA.vm_flags) & VM_UFFD_FLAGS:
        return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_NOT_ANON)
    if load(vma + VMA.anon_vma) == 0:
        return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_ANON_VMA)
    reason = vma_start_read(cpu, mm, vma)
    if reason != 0:
        return vma_lock_abort(cpu, reason)
    if address >= load(vma + VMA.vm_end) or load(vma + VMA.detached) != 0:
        vma_end_read(cpu, vma)
        return vma_lock_abort(cpu, Event.VMA_LOCK_ABORT_RANGE)
    rcu_read_unlock(cpu)
    return vma
