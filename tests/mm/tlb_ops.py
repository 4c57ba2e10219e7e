# SPDX-License-Identifier: MIT
"""What a CPU does while another one flushes its TLB."""

from spfemu.kernel import kernel
from spfemu.layout import CPU, SYSTEM
from spfemu.mm.irq import irq_poll, local_irq_disable, local_irq_enable
from spfemu.mm.mmu import user_read
from spfemu.mm.pgtable import find_pmd, pte_offset
from spfemu.mm.tlb import flush_tlb_mm
from spfemu.primitives import cpu_relax, load, read_once


@kernel
def tlb_stopped(cpu: int) -> int:
    """Tell whether the test wants this CPU to end."""
    return read_once(load(cpu + CPU.system) + SYSTEM.stop)


@kernel
def tlb_read_until_fault(cpu: int, address: int) -> int:
    """Read a word until that fails; returns the error."""
    while True:
        result, _value = user_read(cpu, address)
        if result != 0:
            return result
        cpu_relax()


@kernel
def tlb_poll_until_stop(cpu: int) -> int:
    """Serve IPIs."""
    while tlb_stopped(cpu) == 0:
        irq_poll(cpu)
        cpu_relax()
    return 0


@kernel
def tlb_irqs_off_until_stop(cpu: int) -> int:
    """Serve none until the end."""
    local_irq_disable(cpu)
    while tlb_stopped(cpu) == 0:
        cpu_relax()
    local_irq_enable(cpu)
    return 0


@kernel
def tlb_flush_often(cpu: int, count: int) -> int:
    """Flush everybody's TLB again and again."""
    while count > 0:
        flush_tlb_mm(cpu, load(cpu + CPU.mm))
        count -= 1
    return 0


@kernel
def tlb_flush_irqs_off(cpu: int) -> int:
    """Flush in a way that is not allowed, until both CPUs wait for each other."""
    local_irq_disable(cpu)
    while tlb_stopped(cpu) == 0:
        flush_tlb_mm(cpu, load(cpu + CPU.mm))
    local_irq_enable(cpu)
    return 0


@kernel
def hardware_walk_pte(cpu: int, address: int) -> int:
    """Address of the pte of an address that is mapped."""
    return pte_offset(read_once(find_pmd(load(cpu + CPU.mm), address)), address)
