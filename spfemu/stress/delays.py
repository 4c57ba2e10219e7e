# SPDX-License-Identifier: MIT
"""Parameters of the delays of a stress run (oracles/delays.py)."""

from __future__ import annotations

import random

from spfemu.segment import Segment

EPOCH_SECONDS = 3e-3
SPIN_SECONDS = 200e-6
SLEEP_SECONDS = 400e-6


def set_delays(
    segment: Segment,
    seed: int,
    cycles_per_second: float,
    *,
    epoch: float = EPOCH_SECONDS,
    spin: float = SPIN_SECONDS,
    sleep: float = SLEEP_SECONDS,
) -> None:
    """Let the CPUs of `segment` delay from now on; an `epoch` of 0 seconds turns it off.

    Each CPU draws from `seed`, but what it draws for depends on time.
    """
    stress, cpus = segment.stress[0], segment.stress_cpus
    stress["delay_spin"] = round(spin * cycles_per_second)
    stress["delay_sleep"] = round(sleep * 1e9)
    drawn = random.Random(seed)
    cpus["random"] = [drawn.getrandbits(61) | 1 for _ in cpus]
    stress["delay_epoch"] = round(epoch * cycles_per_second)
