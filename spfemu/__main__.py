# SPDX-License-Identifier: MIT
"""``python -m spfemu``."""

from spfemu.cli import main

main()
