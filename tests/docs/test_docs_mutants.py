# SPDX-License-Identifier: MIT
"""The table of mutants says what their files say."""

from spfemu.stress.mutant import mutants
from spfemu.stress.schedules import schedules


def test_every_mutant_is_in_the_table(read_page, rows):
    table = rows(read_page("mutants.md"), "mutants")
    found = {row[0].strip("`"): row[1:] for row in table}
    assert list(found) == list(mutants())
    for name, mutant in mutants().items():
        number, protocol, promise, what, schedule = found[name]
        assert number == (mutant.id or "")
        assert protocol == f"`{mutant.protocol}`"
        assert promise == mutant.promise.name
        assert what == mutant.what
        without = "none: hunts find it" if mutant.survives is None else f"none: {mutant.survives}"
        assert schedule == (f"`{mutant.schedule}`" if mutant.schedule else without)


def test_every_schedule_shows_a_mutant():
    assert {mutant.schedule for mutant in mutants().values()} - {None} == set(schedules())
