# SPDX-License-Identifier: MIT
"""Files kept from one run to the next: whole or not there, the least recently used going first.

The directory is ``$SPFEMU_CACHE_DIR``, else ``spfemu`` below ``$XDG_CACHE_HOME`` or ``~/.cache``.
A cache that cannot be read or written is only slower.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

DIGEST_BYTES = hashlib.sha256().digest_size


def cache_directory() -> Path:
    """Where the files are."""
    own = os.environ.get("SPFEMU_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "spfemu"


def find(name: str) -> bytes | None:
    """Return what was kept as `name` if it is there and whole: its digest precedes it."""
    path = cache_directory() / name
    try:
        stored = path.read_bytes()
    except OSError:
        return None
    digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    with suppress(OSError):  # a cache that may only be read keeps no order of use
        path.touch()
    return content


def keep(name: str, content: bytes, most: int) -> None:
    """Write a file for the next run; of those that end alike the `most` newest stay."""
    path = cache_directory() / name
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
            partial = Path(file.name)
            file.write(hashlib.sha256(content).digest() + content)
        partial.replace(path)
        old = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda p: p.stat().st_mtime)
        for stale in old[:-most]:
            stale.unlink(missing_ok=True)
    except OSError:
        if partial is not None:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
