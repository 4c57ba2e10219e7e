# SPDX-License-Identifier: MIT
"""What the emulated threads do, as kernel functions that also run on the real kernel.

A workload is a module with the kernel functions ``workload_setup(cpu)`` and ``workload_op(cpu)``
(both return 0 or a negative errno), and ``writer_setup``, ``writer_op`` if it has writers; those
of `spfemu.workloads.defaults` stand in for what it leaves out.  Set-ups run one worker after
another, before any operation.  Beside them, in ordinary Python, stand

* ``DEFAULTS``, the `Parameters` that are not given;
* ``needs(parameters)``, the frames and VMAs that it may hold at one time (`Needs`);
* ``iterations(parameters)``, what will-it-scale counts for one operation;
* ``NAME``, if the command line's name is not the module's;
* ``LOCKED_FAULTS = True`` if it makes the kernel take faults under the mmap lock;
* ``EXTENDS``, the module of another workload, if it holds only what differs from that one;
* ``FAULTS = False`` if it takes no faults, so that operations are compared;
* ``FORKS = True`` if it makes other processes;
* ``PAGES_SHARED = True`` if workers of one mm may touch the same page, ``OVERLAP_ON_HOST = False``
  if overlapping writers would be real SIGSEGVs there.

The first line of the module's docstring is its description: what it does and what real use that
stands for.
"""
