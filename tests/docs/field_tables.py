# SPDX-License-Identifier: MIT
"""Tables of all fields: ``python tests/docs/field_tables.py docs/locking.md`` writes them."""

import sys
from pathlib import Path

from spfemu.layout import CACHE_LINE, Struct

BEGIN, END = "<!-- fields -->\n", "<!-- end -->\n"


def field_tables():
    """Return the tables, one per struct in order of declaration."""
    parts = []
    for struct in Struct.ALL:
        title = (struct.__doc__ or "").strip().splitlines()[0].rstrip(".")
        parts.append(f"\n### {struct.__name__}: {title[0].lower() + title[1:]}\n\n")
        parts.append("| line | field | is | written under |\n| --- | --- | --- | --- |\n")
        for field in struct.FIELDS:
            name = field.name + (f"[{field.words}]" if field.words > 1 else "")
            parts.append(
                f"| {field.offset // CACHE_LINE} | `{name}` | {field.doc} | {field.lock} |\n"
            )
    return "".join(parts) + "\n"


def between_markers(text):
    """Split a page into what stands before, between and after the markers."""
    before, rest = text.split(BEGIN)
    between, after = rest.split(END)
    return before, between, after


def main(path):
    """Write the tables into the page."""
    page = Path(path)
    before, _, after = between_markers(page.read_text(encoding="utf-8"))
    page.write_text(before + BEGIN + field_tables() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
