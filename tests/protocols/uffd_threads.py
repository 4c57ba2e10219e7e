# SPDX-License-Identifier: MIT
"""Engines for processes with a userfaultfd, made once."""

import functools

from spfemu.engines.native import NativeEngine
from spfemu.engines.stepped import StepEngine
from spfemu.stress.schedules.process import program


@functools.cache
def stepped(protocol):
    """The stepped kernel."""
    return StepEngine(program(protocol))


@functools.cache
def native(protocol):
    """The native kernel."""
    return NativeEngine(program(protocol))
