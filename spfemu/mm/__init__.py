# SPDX-License-Identifier: MIT
"""The emulated kernel, written once: one file per kernel concept."""
