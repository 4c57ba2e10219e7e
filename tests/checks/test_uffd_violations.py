# SPDX-License-Identifier: MIT
"""userfaultfds, what they serve and who keeps their mm: what is not as it must be is reported."""

from corruption import Corrupt, Corruptions, check_reported
from good_segment import SERVED, GoodSegment, area

from spfemu.layout import CPU, UFFD_WAIT
from spfemu.mm.flags import Pte, Vm

corruptions = Corruptions()


@corruptions.reports("^userfaultfd 0 at .* has refcount 2 instead of 1$")
def a_reference_that_was_never_put(good: GoodSegment) -> None:
    good.segment.uffds["refcount"][0] = 2


@corruptions.reports("^userfaultfd 3 at .* has refcount 1 instead of 0$")
def a_free_context_with_a_reference(good: GoodSegment) -> None:
    good.segment.uffds["refcount"][3] = 1


@corruptions.reports("^faults still wait for userfaultfd 0 ", "^CPU 1 still has a message ")
def a_message_that_nobody_took(good: GoodSegment) -> None:
    wait = CPU.uffd_wait + UFFD_WAIT.state
    good.segment.words[good.cpu_word(1, wait)] = 1
    good.segment.uffds["head"][0] = good.segment.cpu(1) + CPU.uffd_wait


@corruptions.reports("^userfaultfd 0 at .* is released, but not free$")
def a_close_that_never_ended(good: GoodSegment) -> None:
    good.segment.uffds["released"][0] = 1


@corruptions.reports("^uffd_lock is held by CPU 1$")
def the_lock_of_free_contexts(good: GoodSegment) -> None:
    good.segment.system["uffd_lock"] = 2


@corruptions.reports("^the lock of userfaultfd 0 at .* is held by CPU 0$")
def the_lock_of_a_context(good: GoodSegment) -> None:
    good.segment.uffds["lock"][0] = 1


@corruptions.reports("^the list of free userfaultfds leads from .* to what is no userfaultfd$",
                     *[f"^userfaultfd {i} at .* has refcount 0 instead of 1$" for i in range(3, 8)],
                     *[f"^userfaultfd {i} at .* names 0x0 as its mm$" for i in range(3, 8)],
                     )  # fmt: skip
def the_free_list_leads_astray(good: GoodSegment) -> None:
    good.segment.uffds["next_free"][2] = 12


@corruptions.reports(
    "^userfaultfd 0 at .* names 0x[0-9a-f]+ as its mm$",
    "^mm_count of mm 0 is 2 instead of 1$",
    "^mm 0: VMA .* is served by 0x[0-9a-f]+, no open userfaultfd of this mm$",
)
def a_context_of_what_is_no_mm(good: GoodSegment) -> None:
    good.segment.uffds["mm"][0] = 8


@corruptions.reports("^mm_count of mm 1 is 2 instead of 1$")
def a_reference_to_an_mm(good: GoodSegment) -> None:
    good.segment.mms["mm_count"][1] = 2


@corruptions.reports("^tlb_flush_pending of mm 0 is 1$")
def a_flush_that_never_came(good: GoodSegment) -> None:
    good.segment.mms["tlb_flush_pending"][0] = 1


@corruptions.reports("^mm 0: VMA .* has userfaultfd 0x0, but vm_flags 0x[0-9a-f]+$")
def a_served_vma_without_a_context(good: GoodSegment) -> None:
    good.vma(area(SERVED))["vm_userfaultfd_ctx"] = 0


@corruptions.reports("^mm 0: VMA .* has userfaultfd 0x[0-9a-f]+, but vm_flags 0x[0-9a-f]+$")
def a_context_without_its_flags(good: GoodSegment) -> None:
    good.vma(area(0))["vm_userfaultfd_ctx"] = good.segment.address["uffds"]


@corruptions.reports("^mm 0: VMA .* is served by 0x[0-9a-f]+, no open userfaultfd of this mm$")
def a_vma_served_by_a_free_context(good: GoodSegment) -> None:
    uffds = good.segment.uffds
    free = good.segment.address["uffds"] + 5 * uffds.dtype.itemsize
    good.vma(area(SERVED))["vm_userfaultfd_ctx"] = free


@corruptions.reports("^mm 0: the pte of .* is protected for a userfaultfd that does not serve it$")
def protection_outside_of_what_is_served(good: GoodSegment) -> None:
    entry = good.entry(area(5))
    good.segment.words[entry] |= int(Pte.UFFD_WP)


@corruptions.reports("^mm 0: the pte of .* is protected for a userfaultfd that does not serve it$")
def protection_where_only_missing_pages_are_served(good: GoodSegment) -> None:
    good.vma(area(SERVED))["vm_flags"] &= ~int(Vm.UFFD_WP)


@corruptions.reports("^mm 0: the pte of .* is protected for a userfaultfd and writable$")
def protected_and_writable(good: GoodSegment) -> None:
    good.segment.words[good.entry(area(SERVED, 1))] |= int(Pte.RW)


@corruptions.parametrize
def test_it_is_reported(good: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    check_reported(good, corrupt, patterns)
