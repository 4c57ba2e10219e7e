# SPDX-License-Identifier: MIT
"""The real kernel as the oracle of the emulated one.

Random programs of system calls and touches run on the emulator and, in a child process, on the
kernel of this machine; after every operation results, mappings, present pages, fault counts and
contents must be the same.  `run.run_fidelity` is the way in.

The same interpreter (`interpreter`) runs a program on both sides; `emulated` and `host` say how
each side looks at itself.  `executor` makes the two processes, `pair` gives both the same address
space and sends them programs, `generate`, `compare` and `shrink` make, judge and shorten these.
"""
