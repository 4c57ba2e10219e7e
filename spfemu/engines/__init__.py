# SPDX-License-Identifier: MIT
"""Engines run the kernel functions of `spfemu.mm`, protocols and workloads.

`native` compiles them for measuring, `stepped` compiles them so that a scheduler chooses who
runs next, `plain` interprets them for reading, debugging and coverage.
"""
