# SPDX-License-Identifier: MIT
"""What a hunt has found is found again in steps, shrunk, and the same each time."""

import random
import sys
from pathlib import Path

import pytest

from spfemu.stress.hunt import HuntPlan
from spfemu.stress.promises import Promise
from spfemu.stress.stepping import Stepper, reproduce_apart

NO_SEQ2 = str(Path(__file__).parents[2] / "examples/overrides/no_seq2.py")
CRASHES = """
from spfemu.kernel import kernel
from spfemu.layout import CPU
from spfemu.primitives import load

@kernel
def access_error(vm_flags: int, flags: int) -> int:
    return load(vm_flags & 0)
"""


def plan(protocol="spf", *overrides, seed=1):
    return HuntPlan(protocol, workers=1, writers=1, overrides=overrides).plan(seed)


@pytest.fixture
def steppers():
    made = []

    def make(*given, **options):
        made.append(Stepper(plan(*given, **options)))
        return made[-1]

    yield make
    for stepper in made:
        stepper.segment.close()


def test_a_gate_without_its_last_check_is_found_shrunk_and_repeated(steppers):
    stepper = steppers("spf", NO_SEQ2)

    found = stepper.search(Promise.COMMIT_RIGHTS, 300.0)

    assert found is not None
    assert len(found.attempt.turns) <= 6, found.schedule()
    assert sum(found.attempt.operations) <= 6
    assert "pte_map_lock_speculative" in found.history
    for _ in range(2):
        seen, turns = stepper.run(found.attempt, Promise.COMMIT_RIGHTS)
        assert str(seen) == str(found.violation)
        assert turns == found.attempt.turns


@pytest.mark.parametrize("protocol", ["spf", "vma-refcount"])
def test_nothing_is_found_in_what_is_sound(steppers, protocol):
    first = random.SystemRandom().randrange(1 << 30)
    sys.stdout.write(f"seeds from {first}\n")
    stepper = steppers(protocol, seed=first)

    for promise in Promise:
        for seed in range(first, first + 6):
            attempt = stepper.draw(seed)
            found, _ = stepper.run(attempt, promise, random.Random(seed))
            assert found is None, (attempt, str(found))


def test_a_kernel_that_crashes_ends_the_search_and_nothing_else(tmp_path):
    path = tmp_path / "crash.py"
    path.write_text(CRASHES)

    assert reproduce_apart(plan("spf", str(path)), Promise.DATA, 5.0) is None
