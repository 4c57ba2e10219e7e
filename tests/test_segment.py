# SPDX-License-Identifier: MIT
"""Segments belong to their user: no name, no rights for others, and nothing foreign is attached."""

import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from spfemu.errors import SpfemuError, UsageError
from spfemu.segment import Geometry, Segment

NOBODY = 65534


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(Geometry())
    yield made
    made.close()


def test_a_segment_has_no_name_and_no_rights_for_others(segment: Segment) -> None:
    status = os.fstat(segment.fd)

    assert status.st_nlink == 0
    assert stat.S_IMODE(status.st_mode) == 0o600
    name = Path(f"/proc/self/fd/{segment.fd}").readlink()
    assert str(name).startswith("/memfd:spfemu")
    assert not os.get_inheritable(segment.fd)


def attach_as_nobody(path: str) -> None:
    """Exit with 0 if the kernel refuses another user."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        Segment.attach(path)
    except UsageError as error:
        os._exit("Permission denied" not in str(error))
    os._exit(2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_cannot_attach(segment: Segment) -> None:
    path = f"/proc/{os.getpid()}/fd/{segment.fd}"
    process = multiprocessing.get_context("fork").Process(target=attach_as_nobody, args=(path,))
    process.start()
    process.join()

    assert process.exitcode == 0


@pytest.mark.parametrize("field", ["magic", "layout_hash", "size", "nr_cpus", "nr_frames"])
@pytest.mark.parametrize("value", [0, -1, 1 << 40])
def test_what_is_no_segment_of_this_version_is_refused(
    segment: Segment, field: str, value: int
) -> None:
    segment.system[field] = value

    with pytest.raises(SpfemuError):
        Segment.attach(f"/proc/self/fd/{segment.fd}")
