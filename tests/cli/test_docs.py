# SPDX-License-Identifier: MIT
"""The pages on commands and reports name all there is, and nothing else."""

import configparser
import re
from pathlib import Path

import pytest

from spfemu import results
from spfemu.cli.app import COMMANDS, cli
from spfemu.errors import ExitCode

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (CHECKOUT / "docs").exists(), reason="not run from a checkout")


def page(name):
    return (CHECKOUT / "docs" / name).read_text(encoding="utf-8")


def sections(text):
    """Text of each section by its title, from `##` to the next."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_column(section):
    """What stands in backticks in the first column of tables."""
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def options(names):
    """Option names in backticks, without what follows them."""
    return {name.split(" ")[0] for name in names if name.startswith("-")}


def declared(command):
    found = set()
    for parameter in cli.get_command(None, command).params:
        if parameter.param_type_name == "option":
            found |= {*parameter.opts, *parameter.secondary_opts}
    return found


def test_every_command_has_its_section():
    assert set(COMMANDS) <= set(sections(page("cli.md")))


@pytest.mark.parametrize("command", ["run", "scale"])
def test_options_of_measuring_commands_are_documented(command):
    parts = sections(page("cli.md"))
    documented = options(first_column(parts[command]))
    shared = options(first_column(parts["Options of run and scale"]))
    assert documented & shared == set()
    assert documented | shared == declared(command)


@pytest.mark.parametrize("command", ["list", "doctor", "completion"])
def test_options_of_other_commands_are_documented(command):
    section = sections(page("cli.md"))[command]
    assert set(re.findall(r"(--[a-z-]+)", section)) == declared(command)


@pytest.mark.parametrize("command", ["run", "scale"])
def test_documented_defaults_are_the_real_ones(command):
    parts = sections(page("cli.md"))
    text = parts[command] + parts["Options of run and scale"]
    rows = re.findall(r"^\| `(--[a-z-]+) [^`]*` \| `?([^|`]+)`? \|", text, re.MULTILINE)
    documented = dict(rows)
    compared = 0
    for option in cli.get_command(None, command).params:
        text = documented.get(option.opts[0], "").strip()
        if isinstance(option.default, str | int) and not text.startswith("`run`"):
            if option.opts[0] in documented:
                assert text == str(option.default), option.opts[0]
                compared += 1
    assert compared >= 5


def test_every_exit_code_is_documented():
    table = sections(page("cli.md"))["Exit status"]
    documented = re.findall(r"^\| (\d+) \|", table, re.MULTILINE)
    assert [int(code) for code in documented] == [int(code) for code in ExitCode]
    in_help = re.findall(r"^ +(\d+) +\w", cli.help, re.MULTILINE)
    assert in_help == documented


@pytest.mark.parametrize("record", results.Record.__subclasses__(), ids=lambda r: r.__name__)
def test_every_key_of_the_json_is_documented_in_its_order(record):
    if record.__module__ != results.__name__:
        pytest.skip("no part of a report")
    section = sections(page("json.md"))[record.__name__]
    assert first_column(section) == list(record.__struct_encode_fields__)


def test_the_version_of_the_form_is_documented():
    assert f"`{results.SCHEMA}`" in page("json.md")


def test_every_dependency_is_documented():
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    needed = setup["options"]["install_requires"].split()
    names = [re.split(r"[><=]", requirement)[0] for requirement in needed]
    assert sorted(names) == sorted(
        re.findall(r"^\| ([a-z]+) \|", page("dependencies.md"), re.MULTILINE)[1:]
    )
    for requirement in setup["options.extras_require"]["dev"].split():
        name = re.split(r"[><=]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", page("dependencies.md")), name
