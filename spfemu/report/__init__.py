# SPDX-License-Identifier: MIT
"""What people look at: tables, plots and CSV, all made from a `spfemu.results.Report` alone."""
