# SPDX-License-Identifier: MIT
"""Kernel functions that stand around others and check them; see `spfemu.stress`."""
