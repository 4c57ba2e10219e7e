# SPDX-License-Identifier: MIT
"""The page of promises is about those that hunts know, and names mutants that exist."""

import re

from spfemu.stress.mutant import mutants
from spfemu.stress.promises import Promise


def test_the_promises_are_those_of_the_hunt_in_their_words(read_page):
    documented = {}
    page = read_page("promises.md")
    for title, body in re.findall(r"^## ([A-Z_]+)\n\n\*(.*?)\*\n", page, re.MULTILINE | re.DOTALL):
        documented[title] = " ".join(body.split())

    assert documented == {p.name: p.promise for p in Promise}


def test_the_mutants_named_there_exist(read_page):
    named = set(re.findall(r"Shown by (.*?)(?:\n\n|\n-|\Z)", read_page("promises.md"), re.DOTALL))
    names = {name for text in named for name in re.findall(r"`([a-z_0-9]+)`", text)}

    assert names - set(mutants()) == set()
    assert len(names) > 20
