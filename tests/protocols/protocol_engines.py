# SPDX-License-Identifier: MIT
"""Engines for tests of several kinds of fault, each made once."""

import functools

from spfemu.engines.native import NativeEngine
from spfemu.engines.stepped import StepEngine
from spfemu.stress.schedules.process import program


@functools.cache
def stepped(protocol):
    """The stepped kernel, with NUMA for those who have nodes."""
    return StepEngine(program(protocol, CONFIG_NUMA=1))


@functools.cache
def native(protocol):
    """The native kernel."""
    return NativeEngine(program(protocol))
