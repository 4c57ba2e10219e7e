# SPDX-License-Identifier: MIT
"""What the emulated threads do under stress: kernel-side code, a file per kind of operation."""
