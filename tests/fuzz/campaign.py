# SPDX-License-Identifier: MIT
"""Fuzzes the readers with atheris, one after the other, each in a process of its own.

atheris watches which code an input reaches and changes those further that reach something new.
`scripts/fuzz` runs this.
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
INPUT_BYTES = 4096


def fuzz(name: str, seconds: str) -> None:
    """Fuzz one reader; ends the process."""
    import atheris

    sys.path.insert(0, str(HERE))
    # it names each module
    with contextlib.redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["spfemu"]):
        from readers import TARGETS

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as directory:
        os.environ["SPFEMU_CACHE_DIR"] = f"{directory}/cache"
        corpus = Path(directory) / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(target.seeds):
            (corpus / str(number)).write_bytes(seed)
        words = Path(directory) / "words"
        escaped = ("".join(f"\\x{byte:02x}" for byte in word[:60]) for word in target.words)
        words.write_text("".join(f'"{word}"\n' for word in escaped if word), encoding="ascii")
        options = [
            *(f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES}", "-timeout=60"),
            *("-report_slow_units=60", f"-artifact_prefix=fuzz-{name}-", "-verbosity=0"),
            *([f"-dict={words}"] if target.words else []),
            *("-print_final_stats=1", str(corpus)),
        ]
        atheris.Setup([sys.argv[0], *options], target.feed)
        atheris.Fuzz()


def campaign(seconds: str, names: list[str]) -> int:
    """Fuzz each reader for so long; returns the status of the command."""
    failed = []
    for name in names:
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        command = [sys.executable, __file__, "--one", name, seconds]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    sys.stdout.write(f"== failed: {' '.join(failed)}\n" if failed else "== nothing found\n")
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz(*sys.argv[2:])
    else:
        sys.path.insert(0, str(HERE))
        from readers import TARGETS

        sys.exit(campaign((sys.argv[1:] or ["60"])[0], sys.argv[2:] or list(TARGETS)))
