# SPDX-License-Identifier: MIT
"""Measuring: real processes, pinned, started together, sampled from outside, repeated.

`plan` says what to measure, `build` puts the program together, `workers` runs it in processes,
`run` takes samples, `compare` alternates what is compared, `probe` watches the machine meanwhile.
"""
