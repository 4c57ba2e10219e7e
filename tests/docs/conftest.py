# SPDX-License-Identifier: MIT
"""What tests look at in the pages."""

import re

import pytest
from pages import ROOT


@pytest.fixture
def root():
    return ROOT


@pytest.fixture
def read_page():
    """Text of a page of docs/."""
    return lambda name: (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.fixture
def rows():
    """First cells of all tables between ``<!-- name -->`` and ``<!-- end -->``, or of a page."""

    def get(text, name=None):
        if name is not None:
            text = text.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0]
        lines = [line for line in text.splitlines() if line.startswith("| ")]
        cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        return [row for i, row in enumerate(cells) if not _is_head(lines, i)]

    return get


def _is_head(lines, i):
    return lines[i].startswith("| ---") or (i + 1 < len(lines) and lines[i + 1].startswith("| ---"))


@pytest.fixture
def names_in():
    """Names in backticks."""
    return lambda cell: re.findall(r"`([^`]+)`", cell)
