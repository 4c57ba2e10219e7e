# SPDX-License-Identifier: MIT
"""Page tables, their entries and frames that are not as they must be are reported."""

from typing import Any

from corruption import Corrupt, Corruptions, check_reported
from good_segment import FAR, GoodSegment, area

from spfemu.layout import PAGE, PAGE_SIZE
from spfemu.mm.flags import PTE_ADDR_MASK, PageKind, Pte
from spfemu.mm.pgtable import TABLE_BITS

corruptions = Corruptions()


# Page tables


@corruptions.reports(
    r"^mm 0: the pmd entry of 0x8000000000 is bad: 0x",
    "^pgtables of mm 0 is 12, but it has 11 page tables$",
    "^frame .* is lost: neither free nor mapped nor a page table, flags 2, ",
)
def bad_pmd(good: GoodSegment) -> None:
    good.segment.words[good.entry(FAR, level=1)] |= int(Pte.SPECIAL)


@corruptions.reports(
    r"^mm 0: the pgd entry of 0x18000000000 is bad: 0x1067$",
)
def pgd_entry_astray(good: GoodSegment) -> None:
    good.segment.words[good.entry(3 * FAR, level=3)] = 0x1067


@corruptions.reports("^pgtables of mm 0 is 13, but it has 12 page tables$")
def table_count_wrong(good: GoodSegment) -> None:
    good.segment.mms["pgtables"][0] += 1


@corruptions.reports(
    "^mm 0: the page table below the pgd entry of 0x18000000000, frame .*, covers no VMA$",
    "^mm 0: the page table below the pud entry of 0x18000000000, frame .*, covers no VMA$",
    "^mm 0: the page table below the pmd entry of 0x18000000000, frame .*, covers no VMA$",
    # the first page's translation in the TLB of its CPU, and those of its mapped neighbours
)
def table_without_vma(good: GoodSegment) -> None:
    """Move the tables of a mapping without pages to where no VMA is."""
    words = good.segment.words
    here, there = good.entry(FAR, level=3), good.entry(3 * FAR, level=3)
    words[here], words[there] = 0, words[here]


@corruptions.reports(
    "^frame .* has two owners: a page table \\(below a pgd entry\\) of mm 0 and once"
)
def table_linked_twice(good: GoodSegment) -> None:
    words = good.segment.words
    words[good.entry(3 * FAR, level=3)] = words[good.entry(FAR, level=3)]


@corruptions.reports(
    "^frame .* has two owners: a page table .below a pgd entry. of mm 0 and the page table .pgd.",
)
def pgd_as_its_own_table(good: GoodSegment) -> None:
    words, mms = good.segment.words, good.segment.mms
    words[good.entry(3 * FAR, level=3)] = int(mms["pgd"][0]) | TABLE_BITS


@corruptions.reports("^frame .* is a page table .*of mm 0, but names 0x0 as its mm$")
def table_of_no_mm(good: GoodSegment) -> None:
    good.page(FAR, level=1)["private"] = 0


@corruptions.reports("^frame .* is a page table .*of mm 0, but names 0x.* as its mm$")
def table_of_another_mm(good: GoodSegment) -> None:
    good.page(FAR, level=1)["private"] = good.segment.mm(1)


@corruptions.reports(
    "^mm 1: pgd 0x5 is no frame$",
    "^mm 1 counts 0 anonymous pages .3 more on its CPUs., but 0 are mapped",
    r"^frame .* is lost",
    r"^frame .* is lost",
    r"^frame .* is lost",
    r"^frame .* is lost",
    r"^frame .* is lost",
    r"^frame .* is lost",
    r"^frame .* is lost",
    "^CPU 2 has a stale TLB entry",
    "^CPU 2 has a stale TLB entry",
    "^CPU 2 has a stale TLB entry",
    "^CPU 2 has a stale paging-structure cache: the pmd entry of 0x10000000",
)
def pgd_astray(good: GoodSegment) -> None:
    good.segment.mms["pgd"][1] = 5


# Entries.  Each changes the pte of one page that no TLB has.


def _entry(good: GoodSegment, index: int, page: int) -> int:
    return good.entry(area(index, page))


@corruptions.reports("^mm 0: the pte of 0x10208000 .* lies in no VMA$")
def entry_outside_vmas(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 2, 8)] = _zero_page(good)


def _zero_page(good: GoodSegment) -> int:
    """A good entry for a read of an area that was never written."""
    return int(good.segment.words[_entry(good, 8, 5)])


@corruptions.reports(r"^mm 0: the pte of 0x10305000 .* is present, but VMA \[.* --- at .* gives no")
def entry_accessible_in_protnone(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 3, 5)] = _zero_page(good)


@corruptions.reports(r"^mm 0: the pte of 0x10805000 .* is PROT_NONE in VMA \[0x10800000, .* rw- at")
def entry_protnone_in_accessible(good: GoodSegment) -> None:
    entry = _entry(good, 8, 5)
    good.segment.words[entry] &= ~int(Pte.PRESENT)
    good.segment.words[entry] |= int(Pte.PROTNONE)


@corruptions.reports("^mm 0: the pte of 0x10805000 .* is neither present nor PROT_NONE, or both$")
def entry_not_present(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 8, 5)] &= ~int(Pte.PRESENT | Pte.USER)


@corruptions.reports(r"^mm 0: the pte of 0x10203000 .* is writable in VMA \[.* r-- at")
def entry_writable_in_read_only(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 2, 3)] |= int(Pte.RW)


@corruptions.reports(r"^mm 0: the pte of 0x10803000 .* is executable in VMA \[.* rw- at")
def entry_executable(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 8, 3)] &= ~int(Pte.NX)


@corruptions.reports("^mm 0: the pte of 0x10803000 .* has unknown bits$")
def entry_with_unknown_bits(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 8, 3)] |= 1 << 55


@corruptions.reports(
    "^mm 0: the pte of 0x10903000 .* names no frame$",
    "^frame .* is lost: neither free nor mapped nor a page table, flags 1, refcount 1, mapcount 1$",
)
def entry_astray(good: GoodSegment) -> None:
    entry = _entry(good, 9, 3)
    good.segment.words[entry] &= ~PTE_ADDR_MASK
    good.segment.words[entry] |= PAGE_SIZE


@corruptions.reports("^mm 0: the pte of 0x10805000 .* names the zero page and is not SPECIAL$")
def zero_page_not_special(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 8, 5)] &= ~int(Pte.SPECIAL)


@corruptions.reports("^mm 0: the pte of 0x10903000 .* is SPECIAL and does not name the zero page$")
def frame_special(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 9, 3)] |= int(Pte.SPECIAL)


@corruptions.reports("^mm 0: the pte of 0x10805000 .* makes the zero page writable$")
def zero_page_writable(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 8, 5)] |= int(Pte.RW)


# What a mapped frame says


@corruptions.reports("^mm 0: frame .*, mapped at 0x10903000, has mapping 0x101 instead of 0x.*1$")
def mapping_wrong(good: GoodSegment) -> None:
    good.page(area(9, 3))["mapping"] = 0x101


@corruptions.reports("^mm 0: frame .*, mapped at 0x10903000, has index 0x0 instead of 0x10903$")
def index_wrong(good: GoodSegment) -> None:
    good.page(area(9, 3))["index"] = 0


@corruptions.reports("^frame .* has kind 2 instead of 1 .owner: page tables that map it.$")
def kind_wrong(good: GoodSegment) -> None:
    good.page(area(9, 3))["flags"] = PageKind.TABLE


@corruptions.reports("^frame .* has refcount 2 instead of 1 .owner: page tables that map it.$")
def refcount_wrong(good: GoodSegment) -> None:
    good.page(area(9, 3))["refcount"] = 2


@corruptions.reports("^frame .* has mapcount 0 instead of 1 .owner: page tables that map it.$")
def mapcount_wrong(good: GoodSegment) -> None:
    good.page(area(9, 3))["mapcount"] = 0


@corruptions.reports("^frame 0 at .* has kind 1 instead of 3 .owner: the zero page.$")
def zero_page_kind(good: GoodSegment) -> None:
    good.segment.pages["flags"][0] = PageKind.ANON


@corruptions.reports(
    "^frame .* has refcount 1 instead of 2",
    "^frame .* has mapcount 1 instead of 2",
    "^mm 0: frame .*, mapped at 0x10906000, has index 0x10903 instead of 0x10906$",
    "^mm 0: the pte of 0x10903000 is writable, but frame .* is mapped by 2 ptes$",
    "^mm 0: the pte of 0x10906000 is writable, but frame .* is mapped by 2 ptes$",
    "^mm 0 counts .* but .* are mapped",
)
def mapped_twice(good: GoodSegment) -> None:
    words = good.segment.words
    words[_entry(good, 9, 6)] = words[_entry(good, 9, 3)]


# Frames and their lists


@corruptions.reports(
    "^frame .* is lost: neither free nor mapped nor a page table, flags 1, ",
    r"^mm 0 counts -?\d+ anonymous pages .-?\d+ more on its CPUs., but \d+ are mapped",
)
def entry_lost(good: GoodSegment) -> None:
    good.segment.words[_entry(good, 9, 3)] = 0


@corruptions.reports("^mm 1 counts 5 anonymous pages .3 more on its CPUs., but 3 are mapped")
def rss_wrong(good: GoodSegment) -> None:
    good.segment.mms["rss_anon"][1] += 5


def _head(good: GoodSegment, field: str) -> Any:
    """The first PAGE on a list of CPU 0."""
    address = int(good.segment.cpus[field][0])
    return good.segment.pages[(address - good.segment.address["vmemmap"]) // PAGE.SIZE]


@corruptions.reports(
    "^pcp_list of CPU 0 holds 27 frames, but counts 28$",
    "^frame .* is lost: neither free nor mapped nor a page table, flags 0, refcount 0, mapcount 0$",
)
def frame_lost(good: GoodSegment) -> None:
    good.segment.cpus["pcp_list"][0] = _head(good, "pcp_list")["lru"]


@corruptions.reports("^pcp_spare of CPU 0 holds 63 frames, but counts 62$")
def spare_count_wrong(good: GoodSegment) -> None:
    good.segment.cpus["pcp_spare_count"][0] -= 1


@corruptions.reports("^the zone holds 345 frames, but counts 344$")
def zone_count_wrong(good: GoodSegment) -> None:
    good.segment.system["zone_free"] -= 1


@corruptions.reports("^frame .* has refcount 1 instead of 0 .owner: pcp_list of CPU 0.$")
def free_frame_referenced(good: GoodSegment) -> None:
    _head(good, "pcp_list")["refcount"] = 1


@corruptions.reports("^frame .* has kind 1 instead of 0 .owner: pcp_spare of CPU 0.$")
def free_frame_in_use(good: GoodSegment) -> None:
    _head(good, "pcp_spare")["flags"] = PageKind.ANON


@corruptions.reports(
    "^pcp_list of CPU 0 runs in a circle through struct page",
    "^pcp_list of CPU 0 holds 1 frames, but counts 28$",
    r"^frame .* is lost: .*\(and 19 more like this\)$",
    *["^frame .* is lost: "] * 7,
)
def free_list_in_a_circle(good: GoodSegment) -> None:
    _head(good, "pcp_list")["lru"] = good.segment.cpus["pcp_list"][0]


@corruptions.reports(
    "^pcp_list of CPU 0 leads from struct page .* to what is no struct page$",
    "^pcp_list of CPU 0 holds 1 frames, but counts 28$",
    r"^frame .* is lost: .*\(and 19 more like this\)$",
    *["^frame .* is lost: "] * 7,
)
def free_list_astray(good: GoodSegment) -> None:
    _head(good, "pcp_list")["lru"] = -64


@corruptions.reports(
    "^pcp_list of CPU 2 holds 63 frames, but counts 57$",
    r"^frame .* has two owners: pcp_list of CPU 2 and pcp_spare of CPU 0 \(and 55 more",
    *["^frame .* has two owners: pcp_list of CPU 2 and pcp_spare of CPU 0$"] * 7,
    r"^frame .* is lost: .*\(and 49 more like this\)$",
    *["^frame .* is lost: "] * 7,
)
def list_on_two_cpus(good: GoodSegment) -> None:
    good.segment.cpus["pcp_list"][2] = good.segment.cpus["pcp_spare"][0]


@corruptions.reports(
    "^frame .* has two owners: pcp_list of CPU 0 and page tables that map it$",
    "^pcp_list of CPU 0 holds 29 frames, but counts 28$",
    "^frame .* has kind 1 instead of 0 .owner: page tables that map it.$",
    "^frame .* has refcount 1 instead of 0 .owner: page tables that map it.$",
)
def mapped_frame_is_free(good: GoodSegment) -> None:
    page = good.page(area(9, 3))
    page["lru"] = good.segment.cpus["pcp_list"][0]
    index = (page.__array_interface__["data"][0] - good.segment.address["vmemmap"]) // PAGE.SIZE
    good.segment.cpus["pcp_list"][0] = good.segment.address["vmemmap"] + index * PAGE.SIZE


@corruptions.reports(
    "^the chain of struct page .* in the zone holds 62 frames, not 63$",
    "^the zone holds 344 frames, but counts 345$",
    "^frame .* is lost: ",
)
def chain_too_short(good: GoodSegment) -> None:
    address = int(good.segment.system["zone_chains"])
    head = (address - good.segment.address["vmemmap"]) // PAGE.SIZE
    pages = good.segment.pages
    second = (int(pages["lru"][head]) - good.segment.address["vmemmap"]) // PAGE.SIZE
    pages["lru"][head] = pages["lru"][second]


@corruptions.parametrize
def test_reported(good: GoodSegment, corrupt: Corrupt, patterns: tuple[str, ...]) -> None:
    check_reported(good, corrupt, patterns)
