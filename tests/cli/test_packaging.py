# SPDX-License-Identifier: MIT
"""The sdist builds a package that works; every source file names its licence."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
TIMEOUT = 300
SPDX = "SPDX-License-Identifier: MIT"

pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "setup.cfg").exists(), reason="not run from a checkout"
)


def run(*arguments, **how):
    subprocess.run(
        [sys.executable, *map(str, arguments)],
        check=True,
        capture_output=True,
        timeout=TIMEOUT,
        **how,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What git would hand out, so that nothing is built inside the checkout."""
    root = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (CHECKOUT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((CHECKOUT / name).read_bytes())
    return root


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check", "-o", output, source)
    (path,) = output.iterdir()
    return path


def test_the_sdist_has_what_the_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"LICENSE", "setup.cfg", "pyproject.toml", "setup.py", "spfemu/py.typed",
                     "native_shims/spf_shims.h", "native_shims/futex.c", "scripts/spfemu",
                     "tests/conftest.py"}  # fmt: skip


def test_the_sdist_installs_and_runs(sdist, tmp_path):
    site = tmp_path / "site"
    run("-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index",
        "--disable-pip-version-check", "--target", site, sdist)  # fmt: skip
    assert (site / "bin" / "spfemu").exists()
    assert (site / "spfemu" / "py.typed").exists()
    code = (
        "import spfemu, sys; from spfemu import shims; "
        f"assert spfemu.__file__.startswith({str(site)!r}), spfemu.__file__; "
        "assert shims.load().spf_getcpu() >= 0"
    )
    run("-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}", cwd=tmp_path)


def test_every_source_file_names_its_licence(source):
    kinds = (".py", ".c", ".h", ".bash")
    files = [p for p in source.rglob("*") if p.suffix in kinds]
    files += [source / "scripts" / "spfemu", source / "scripts" / "test", source / ".ci" / "run"]
    missing = [
        str(path.relative_to(source))
        for path in files
        if SPDX not in "".join(path.read_text().splitlines()[:2])
    ]
    assert missing == []
