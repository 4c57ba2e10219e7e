# SPDX-License-Identifier: MIT
"""spfemu: a multiprocess, shared-memory emulator of Linux page-fault concurrency."""

__version__ = "0.1.0"
