# SPDX-License-Identifier: MIT
"""Recorded calls of real programs, made once more on the emulated kernel.

`size` reads a trace to see how large a machine it needs, `machine` is that machine with its
processes and threads, `run` makes the calls and compares.  What runs in the emulated kernel beside
its own functions is in `placing`.
"""
