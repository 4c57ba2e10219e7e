# SPDX-License-Identifier: MIT
"""The same workloads against the real kernel of this machine.

`spfemu.host.calls` replaces the system calls and the memory accesses of a workload by real ones;
the loop around them, the counters and the way they are sampled stay what they are.
"""
