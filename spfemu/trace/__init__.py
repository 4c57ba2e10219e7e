# SPDX-License-Identifier: MIT
"""System calls of real programs, as strace writes them, and the address spaces they leave.

`strace` reads what strace prints, line by line; `calls` knows the calls on memory and their
arguments; `maps` reads and writes the format of /proc/PID/maps; `record` runs strace.
"""
