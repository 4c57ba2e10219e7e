# SPDX-License-Identifier: MIT
"""Latency histograms in the segment, built in with CONFIG_LATENCY.

Log-linear buckets, 32 per power of two: bucket index of value v is v below 64, else
``(e << 5) + (v >> e)`` with e = floor(log2 v) - 5, so a bucket is at most 3.2 % wide.
"""

from spfemu.kernel import kernel, slowpath
from spfemu.layout import CPU, HIST_SUB_BITS, HISTOGRAM, SYSTEM, WORD
from spfemu.primitives import load, store

FAULT_LATENCY = 0
WRITER_LATENCY = 1
LINEAR = 2 << HIST_SUB_BITS


@kernel
def histogram_index(value: int) -> int:
    """Bucket of a value of 0 or more."""
    if value < LINEAR:
        return value
    e = 0
    rest = value >> HIST_SUB_BITS
    for i in range(6):
        width = 32 >> i
        if rest >> width != 0:
            rest = rest >> width
            e += width
    return (e << HIST_SUB_BITS) + (value >> e)


@slowpath
def record_latency(cpu: int, kind: int, cycles: int) -> None:
    """Count one latency of `kind` (FAULT_LATENCY or WRITER_LATENCY) on this CPU."""
    if cycles < 0:
        cycles = 0  # the clock of another core may lag after a migration
    first = load(load(cpu + CPU.system) + SYSTEM.histograms)
    histogram = first + (2 * load(cpu + CPU.id) + kind) * HISTOGRAM.SIZE
    bucket = histogram + HISTOGRAM.bucket + histogram_index(cycles) * WORD
    store(bucket, load(bucket) + 1)
    if cycles > load(histogram + HISTOGRAM.max):
        store(histogram + HISTOGRAM.max, cycles)
