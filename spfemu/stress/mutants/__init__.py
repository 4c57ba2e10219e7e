# SPDX-License-Identifier: MIT
"""Known-bad variants of the kernel, an override file each; see `spfemu.stress.mutant`."""
