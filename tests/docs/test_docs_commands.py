# SPDX-License-Identifier: MIT
"""Commands that the pages show exist and take the options shown; so do the exit statuses."""

import re
import shlex

import pytest
from pages import PAGES, ROOT

from spfemu.cli.app import cli
from spfemu.errors import ExitCode

COMMAND = re.compile(r"^    (scripts/spfemu .*)$|`(?:scripts/)?(spfemu [a-z][^`]*)`", re.MULTILINE)


def commands():
    """Arguments of every command shown, each once."""
    found = {}
    for page in PAGES:
        for shown in COMMAND.finditer(page.read_text(encoding="utf-8")):
            words = shlex.split(shown[1] or shown[2], comments=True)[1:]
            found[" ".join(words)] = words
    return found


COMMANDS = commands()


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS.keys())
def test_commands_parse(arguments):
    group = cli.make_context("spfemu", list(arguments))
    words = [*getattr(group, "_protected_args", []), *group.args]  # click 8 keeps the name apart
    name, command, rest = cli.resolve_command(group, words)

    with command.make_context(name, rest, parent=group) as context:
        assert context.command is command
        for path in context.params.get("overrides", ()):
            assert (ROOT / path).exists()


def test_readme_has_every_exit_status(root, rows):
    text = (root / "README.md").read_text(encoding="utf-8").split("\n## Exit status\n")[1]
    shown = [int(row[0]) for row in rows(text.split("\n## ")[0])]
    assert shown == [status.value for status in ExitCode]


def test_readme_shows_the_example_as_it_is(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    source = (root / "examples/overrides/patient_trylock.py").read_text(encoding="utf-8")
    body = source[source.index("from spfemu") :]
    assert f"```python\n{body}```" in text
