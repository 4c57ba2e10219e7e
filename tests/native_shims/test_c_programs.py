# SPDX-License-Identifier: MIT
"""Compiles and runs the C tests of the shim: plain, with ucontext, and under the sanitizers."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

VARIANTS = {
    "plain": [],
    "ucontext": ["CPPFLAGS=-DSPF_FIBER_UCONTEXT", "TESTS=fiber"],
    "address": ["SANITIZE=address"],
    "undefined": ["SANITIZE=undefined"],
    "thread": ["SANITIZE=thread"],
}

pytestmark = pytest.mark.skipif(
    not (shutil.which("make") and shutil.which("cc")), reason="needs make and a C compiler"
)


def run(*command: str | Path) -> str:
    result = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


def needs_sanitizer(variant: str, directory: Path) -> None:
    """Skip if the compiler has no such sanitizer, or what it builds does not start here."""
    if variant in ("plain", "ucontext"):
        return
    source, program = directory / "empty.c", directory / "empty"
    source.write_text("int main(void) { return 0; }\n")
    for command in (["cc", f"-fsanitize={variant}", "-o", program, source], [program]):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip(f"the C compiler has no working -fsanitize={variant}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_c_programs(variant: str, tmp_path: Path) -> None:
    needs_sanitizer(variant, tmp_path)
    output = run(
        "make", "-C", Path(__file__).parent / "c", "check", f"BUILD={tmp_path}", *VARIANTS[variant]
    )

    assert output.count("tests passed") == (1 if variant == "ucontext" else 5)


def test_aarch64() -> None:
    output = run(ROOT / "scripts" / "test-aarch64")

    assert output.count("tests passed") == 4 or "skipped, " in output
