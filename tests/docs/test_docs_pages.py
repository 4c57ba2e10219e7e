# SPDX-License-Identifier: MIT
"""Links of the pages resolve, and files that they name exist."""

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PATH = re.compile(r"`((?:spfemu|bench|docs|examples|native_shims|scripts|tests)/[\w./-]*)`")


def anchor(heading):
    """Name of a heading in links, as the usual renderers make it."""
    text = re.sub(r"[`*]", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page):
    text = CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))
    return {anchor(line.lstrip("#")) for line in text.splitlines() if line.startswith("#")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    broken = []
    for link in LINK.findall(CODE_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    named = PATH.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_in_the_index(root):
    linked = set(LINK.findall((root / "docs" / "index.md").read_text(encoding="utf-8")))
    pages = {page.name for page in Path(root / "docs").glob("*.md")} - {"index.md"}
    assert linked == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_outside_tables_are_short(page):
    long = [
        line
        for line in CODE_BLOCK.sub("", page.read_text(encoding="utf-8")).splitlines()
        if len(line) > 110 and not line.startswith(("|", "!["))
    ]
    assert long == []
