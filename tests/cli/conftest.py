# SPDX-License-Identifier: MIT
"""Fixtures for tests of the command line."""

import pytest
from click.testing import CliRunner


@pytest.fixture
def spfemu(tmp_path, monkeypatch):
    """Run the command line in an empty directory: `spfemu("run", "pft")`."""
    from spfemu.cli.app import cli

    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(cli, list(arguments), prog_name="spfemu")

    return invoke


@pytest.fixture
def measured(monkeypatch, scale_report, run_report):
    """Replace the measuring by finished reports; returns the plans that were asked for."""
    from spfemu.cli import run
    from spfemu.measure import compare

    asked = []

    def scale(plan, command, **how):
        asked.append((plan, how))
        return scale_report

    def measure(plan, show, **how):
        asked.append((plan, how))
        return run_report

    monkeypatch.setattr(compare, "scale", scale)
    monkeypatch.setattr(run, "_measure", measure)
    return asked
