# SPDX-License-Identifier: MIT
"""The segment's header and the machine's global state."""

from spfemu.layout.locks import RWSEM
from spfemu.layout.struct import CACHE_LINE, WORD, Struct, embed, word

NR_NODES_MAX = 8
"""Most NUMA nodes in one segment."""
ZONE_WORDS = (NR_NODES_MAX - 1) * CACHE_LINE // WORD
"""Words of the zones of all nodes but the first."""


class SYSTEM(Struct, pad_to_line=True):
    """The segment's header and the emulated machine's global state."""

    magic = word("MAGIC", line=True)
    layout_hash = word("LAYOUT_HASH")
    base = word("address at which every process maps the segment")
    size = word("its size [bytes]")
    nr_cpus = word("CPU blocks")
    nr_mms = word("mm_structs in use from the beginning")
    nr_spare_mms = word("mm_structs that fork and exec may use besides")
    nr_frames = word("frames")
    nr_vmas = word("VMA slots")
    cpus = word("address of CPU 0")
    mms = word("address of mm 0")
    vmas = word("address of the VMA slab")
    anon_vmas = word("address of the ANON_VMA slab")
    nr_anon_vmas = word("its slots")
    avcs = word("address of the ANON_VMA_CHAIN slab")
    nr_avcs = word("its slots")
    files = word("address of the FILE slab")
    mappings = word("address of the ADDRESS_SPACE slab")
    nr_files = word("slots of either")
    notifiers = word("address of the MMU_NOTIFIER slab")
    nr_notifiers = word("its slots")
    nr_trace_words = word("words of the area `trace`")
    model = word("address of what a workload knows that memory must hold")
    nr_model_words = word("words of it")
    huge_pages = word("address of the first HUGE_PAGE")
    nr_huge = word("huge frames: the last of all frames")
    huge_vmemmap = word("address of the PAGE of the first frame of the first huge frame")
    vmemmap = word("address of the PAGE of frame 0")
    frames = word("address of frame 0")
    nr_swap = word("swap slots")
    nr_swap_clusters = word("clusters of them")
    swap_slots = word("address of the SWAP_SLOT of slot 0")
    swap_clusters = word("address of the first SWAP_CLUSTER")
    swap_area = word("address of the contents of slot 0")
    wmark_low = word("free frames in the pool below which kswapd is woken")
    wmark_high = word("free frames in the pool at which it rests")
    zero_pfn = word("address of the zero page")
    histograms = word("address of the first HISTOGRAM; two per CPU: faults, writer operations")
    scratch = word("address of scratch words for tests and probes")
    nr_scratch = word("their number")
    cycles_per_tick = word("cycles of the counter in a scheduler tick (4 ms: HZ=250)")
    stress_area = word("address of STRESS, if `stress` is 1")
    vma_stamps = word("address of the VMA_STAMPS of the first VMA slot, if `stress` is 1")

    stop = word("non-zero: workers leave their loops", lock="atomic", line=True)
    gate = word("futex word: 0 closed, 1 open", lock="atomic", line=True)
    ready = word("workers that wait at the gate", lock="atomic")

    zone_lock = word("spinlock over the global frame pool", lock="atomic", line=True)
    zone_chains = word("chains of PCP_BATCH frames", lock="zone_lock")
    zone_list = word("single free frames", lock="zone_lock")
    zone_free = word("free frames in the pool", lock="zone_lock")
    more_zones = word(
        "a line like this for each further node", lock="as above", line=True, count=ZONE_WORDS
    )

    kswapd_asleep = word("futex word: 1 while kswapd sleeps", lock="atomic", line=True)

    vma_lock = word("spinlock over free VMA slots", lock="atomic", line=True)
    vma_free = word("list of free VMA slots", lock="vma_lock")
    anon_vma_lock = word("spinlock over free ANON_VMA slots", lock="atomic", line=True)
    anon_vma_free = word("list of free slots", lock="anon_vma_lock")
    avc_lock = word("spinlock over free ANON_VMA_CHAIN slots", lock="atomic", line=True)
    avc_free = word("list of free slots, linked by same_vma", lock="avc_lock")
    files_lock = word("spinlock over free FILE and ADDRESS_SPACE slots", lock="atomic", line=True)
    file_free = word("list of free FILE slots", lock="files_lock")
    mapping_free = word("list of free ADDRESS_SPACE slots", lock="files_lock")
    mm_slots_lock = word("spinlock over free mms", lock="atomic", line=True)
    mm_free = word("list of free mms", lock="mm_slots_lock")
    huge_lock = word("spinlock over free huge frames", lock="atomic", line=True)
    huge_free = word("list of free huge frames", lock="huge_lock")
    khugepaged_mm = word("index of the mm at which khugepaged is", lock="owner", line=True)
    khugepaged_address = word("where it goes on there [bytes]", lock="owner")
    notifier_slab_lock = word("spinlock over free MMU_NOTIFIERs", lock="atomic", line=True)
    notifier_free = word("list of free slots", lock="notifier_slab_lock")
    mm_all_locks = embed(RWSEM, "mutex of who takes all rmap locks of an mm", line=True)

    rcu_gp = word("number of the running grace period", lock="atomic", line=True)
    drain_seq = word("drains begun: who sees a new one gives away its lists", lock="drain_lock")
    drain_lock = word("spinlock of who drains all CPUs", lock="atomic", line=True)
    rcu_orphan_lock = word("spinlock over `rcu_orphans`", lock="atomic")
    rcu_orphans = word("objects taken from RCU queues, for the drainer's", lock="rcu_orphan_lock")

    uffds = word("address of the USERFAULTFD_CTX slab", line=True)
    nr_uffds = word("its slots")
    nr_nodes = word("NUMA nodes")
    frames_per_node = word("frames of each but the last")
    numa_scan_period = word("time between two scans of an mm [cycles]")
    uffd_lock = word("spinlock over free contexts", lock="atomic")
    uffd_free = word("list of free contexts", lock="uffd_lock")
    stress = word("1: the segment has the area `stress_area`")
