# SPDX-License-Identifier: MIT
"""What oracles keep: only segments of stress runs have it."""

from spfemu.layout.struct import Struct, embed, word

NR_STAMPS = 7
"""States of a VMA that are remembered: more than writers go through while one is copied."""
HISTORY_ENTRIES = 4096
"""Steps that the history of a CPU holds, in a stress run."""
HISTORY_WORDS = 3
"""Words of each."""
HELD_MAX = 256
"""Locks that a CPU is known to hold at a time: mm_take_all_locks takes two hundred."""
HELD_WORDS = 3
"""Words of the note on each: the lock, its class, 1 if it is held for writing."""
QUARANTINE_ENTRIES = 128
"""Freed objects, or frames, that a CPU can keep from reuse, in a stress run."""
QUARANTINE_WORDS = 5
"""Words of the note on each: the object and how it is given back."""
LOCK_CLASSES = 32
"""Room for classes of locks (see stress/lock_class.py)."""
SITES_MAX = 1 << 14
FOCUS_MAX = 512
"""Sites of instrumented code that may be chosen for delays."""


class SHADOW(Struct):
    """Whether an object of a slab or a frame is free, and who freed it, for the oracle `kasan`."""

    freed_by = word("address of the CPU block of who freed it last; 0: in use", lock="that of it")
    time = word("cycle count then", lock="as freed_by")
    site = word("last access of that CPU before: a site, plus 1", lock="as freed_by")
    nr_frees = word("how often it was freed", lock="as freed_by")


class STRESS(Struct, pad_to_line=True):
    """What oracles share: the first broken promise that one of them saw, parameters of delays."""

    violation = word("1 once one has been seen, by the CPU that writes the rest", lock="atomic")
    kind = word("Promise that is broken", lock="who has set violation")
    cpu = word("address of the CPU block of who saw it", lock="who has set violation")
    a = word("first detail: an address, mostly", lock="who has set violation")
    b = word("second detail", lock="who has set violation")
    time = word("cycle count when it was seen", lock="who has set violation")
    frozen = word("1: histories take no more entries, the record is complete", lock="atomic")
    quarantine = word("most objects, and frames, that each CPU keeps from reuse")
    delay_epoch = word("time for which a CPU delays at one site [cycles]; 0: no delays", line=True)
    delay_spin = word("longest delay in which a CPU spins [cycles]")
    delay_sleep = word("longest one in which it sleeps [ns]")
    nr_focus = word("sites in `focus`")
    focus = word("sites that are chosen half of the time", count=FOCUS_MAX)
    frame_shadow = word("address of the SHADOW of frame 0", line=True)
    mm_shadow = word("that of the first mm")
    anon_vma_shadow = word("that of the first ANON_VMA")
    avc_shadow = word("that of the first ANON_VMA_CHAIN")
    file_shadow = word("that of the first FILE")
    mapping_shadow = word("that of the first ADDRESS_SPACE")
    notifier_shadow = word("that of the first MMU_NOTIFIER")
    vma_shadow = word("that of the first VMA")
    uffd_shadow = word("that of the first USERFAULTFD_CTX")
    nr_sites = word("sites in `sites`", lock="atomic", line=True)
    sites = word("sites that some CPU has passed", lock="nr_sites", line=True, count=SITES_MAX)
    passed = word("by site: 1 if it is among them", lock="atomic", count=SITES_MAX)
    orders = word(
        "by class of a lock: a bit for each class taken while it was held",
        lock="atomic",
        line=True,
        count=LOCK_CLASSES,
    )


class QUARANTINE(Struct):
    """What a CPU has freed and keeps from reuse for a while, for the oracle `kasan`: a ring."""

    first = word("the oldest entry", lock="owner")
    nr = word("entries", lock="owner")
    entries = word(
        "(object, cache, lock, free, link), the latter as of `slab_cache_give`; 0 for frames",
        lock="owner",
        count=QUARANTINE_ENTRIES * QUARANTINE_WORDS,
    )


class STRESS_CPU(Struct, pad_to_line=True):
    """What oracles keep for each CPU."""

    stress = word("address of STRESS")
    nr_history = word("entries written to `history` so far", lock="owner")
    nr_delays = word("delays so far", lock="owner")
    random = word("state of the random generator of its delays", lock="owner")
    countdown = word("accesses until it looks at the time again", lock="owner")
    epoch_end = word("cycle count from which on another site is chosen", lock="owner")
    hot_site = word("site at which it delays, plus 1; 0: none", lock="owner")
    hot_left = word("delays left there", lock="owner")
    commit_denied = word(
        "1: the gate must not let the fault commit; 2: it is about to lock", lock="owner"
    )
    relaxes = word("rounds of waiting loops", lock="owner")
    copies = word("copies of VMAs made by speculative faults", lock="owner")
    torn = word("of them, torn ones", lock="owner")
    torn_vma = word("the VMA if the last copy was torn, else 0", lock="owner")
    hot_spin = word("longest of them [cycles]", lock="owner", line=True)
    site = word("its last access: a site, plus 1", lock="owner")
    exempt = word("Exempt: free objects that it may touch now", lock="owner")
    vma = word("VMA that its fault has locked, or 0", lock="owner")
    vma_generation = word("its generation then", lock="owner")
    timer = word("futex word of its sleeps: 0", lock="init")
    wait_class = word("LockClass of what it waits for, or 0", lock="owner")
    wait_on = word("the lock, or the CPU that has been sent an IPI", lock="owner")
    wait_number = word("of this wait; each has its own", lock="owner")
    nr_waits = word("waits so far", lock="owner")
    sleep_on = word("futex word on which it sleeps until it is woken, or 0", lock="owner")
    sleep_value = word("what the word was then", lock="owner")
    releases = word("1: it is giving back what it kept from reuse", lock="owner")
    nr_held = word("locks in `held`", lock="owner", line=True)
    lost_held = word("locks that it holds besides, for want of room", lock="owner")
    held = word("(lock, its class, 1: for writing)", lock="owner", count=HELD_MAX * HELD_WORDS)
    kept_objects = embed(QUARANTINE, "freed objects of slabs that it keeps", line=True)
    kept_frames = embed(QUARANTINE, "freed frames that it keeps", line=True)
    history = word(
        "ring of (time, site, argument or result)",
        lock="owner",
        line=True,
        count=HISTORY_ENTRIES * HISTORY_WORDS,
    )


class VMA_STAMPS(Struct, pad_to_line=True):
    """The last states in which writers have left a VMA, as hashes (see oracles/torn_read.py)."""

    newest = word("states so far; the newest is at this index modulo NR_STAMPS", lock="mmap_lock")
    stamp = word("hashes", lock="mmap_lock", count=NR_STAMPS)
