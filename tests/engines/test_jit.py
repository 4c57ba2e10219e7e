# SPDX-License-Identifier: MIT
"""The object cache finds what is the same, never what is not, and never stands in the way."""

from pathlib import Path

import pytest

from spfemu.engines import jit
from spfemu.engines.cache import cache_directory
from spfemu.engines.native import NativeEngine
from spfemu.engines.source import functions_of, link, load_override
from spfemu.engines.stepped import StepEngine

CALLEE = "@kernel\ndef callee(a: int) -> int:\n    return a + {}\n"
CALLER = (
    "STEP = {step}\n"
    "CONFIG_MORE = 0\n"
    "@kernel\ndef caller(a: int) -> int:\n    return callee(a) * STEP + CONFIG_MORE\n"
)
HEADER = "from spfemu.kernel import kernel\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    monkeypatch.setenv("SPFEMU_CACHE_DIR", str(tmp_path / "objects"))
    return tmp_path / "objects"


def program(directory, *, add=1, step=10, config=0, overrides=()):
    """Link a caller and its callee, which stand in different files."""
    layers = []
    for name, text in (("callee", CALLEE.format(add)), ("caller", CALLER.format(step=step))):
        path = directory / f"{name}.py"
        path.write_text(HEADER + text)
        layers.append(load_override(str(path)))
    return link(layers, {"CONFIG_MORE": config}, overrides)


def compiled(directory, **changes):
    """Result of caller(1), and whether the object came from the cache."""
    engine = NativeEngine(program(directory, **changes))
    return engine.call("caller", 1), engine.compiled.from_cache


def test_the_same_program_is_found(cache, tmp_path):
    assert compiled(tmp_path) == (20, False)
    assert compiled(tmp_path) == (20, True)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "result"), [({"add": 2}, 30), ({"step": 11}, 22), ({"config": 1}, 21)]
)
def test_any_change_misses(cache, tmp_path, change, result):
    compiled(tmp_path)
    assert compiled(tmp_path, **change) == (result, False)
    assert compiled(tmp_path) == (20, True)


def test_an_override_misses(cache, tmp_path):
    compiled(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(HEADER + CALLEE.format(5))
    assert compiled(tmp_path, overrides=[str(path)]) == (60, False)
    path.write_text(HEADER + CALLEE.format(6))
    assert compiled(tmp_path, overrides=[str(path)]) == (70, False)


def test_engines_do_not_share_objects(cache, tmp_path):
    compiled(tmp_path)
    engine = StepEngine(program(tmp_path))
    assert not engine.compiled.from_cache
    assert engine.call("caller", 1) == 20


def test_another_compiler_misses(cache, tmp_path, monkeypatch):
    compiled(tmp_path)
    monkeypatch.setattr(jit, "compiler_versions", lambda: {"llvmlite": "another"})
    assert compiled(tmp_path) == (20, False)


def test_a_cache_that_cannot_be_made_is_only_slower(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SPFEMU_CACHE_DIR", str(tmp_path / "file" / "objects"))
    assert compiled(tmp_path) == (20, False)
    assert compiled(tmp_path) == (20, False)


def test_a_cache_that_may_only_be_read_is_used(cache, tmp_path, monkeypatch):
    compiled(tmp_path)

    def refuse(*_arguments, **_keywords):
        raise PermissionError

    monkeypatch.setattr(Path, "touch", refuse)
    assert compiled(tmp_path) == (20, True)


def test_a_write_that_fails_leaves_nothing_behind(cache, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert compiled(tmp_path) == (20, False)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: b"",
        lambda stored: stored[:20],
        lambda stored: stored[: len(stored) // 2],
        lambda stored: stored[:-1] + bytes([stored[-1] ^ 1]),
        lambda stored: bytes(len(stored)),
    ],
)
def test_a_damaged_object_is_compiled_again(cache, tmp_path, damage):
    compiled(tmp_path)
    (path,) = cache.iterdir()
    path.write_bytes(damage(path.read_bytes()))

    assert compiled(tmp_path) == (20, False)
    assert compiled(tmp_path) == (20, True)


def test_the_least_recently_used_objects_go(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(jit, "KEEP_OBJECTS", 2)
    for add in (1, 2, 1, 3):
        compiled(tmp_path, add=add)
    assert len(list(cache.iterdir())) == 2
    assert compiled(tmp_path, add=1)[1]
    assert not compiled(tmp_path, add=2)[1]


def test_the_cache_directory_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SPFEMU_CACHE_DIR", "/own")
    assert cache_directory() == Path("/own")
    monkeypatch.delenv("SPFEMU_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/spfemu")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "spfemu"


def test_a_call_with_other_arguments_is_refused(cache, tmp_path):
    engine = NativeEngine(program(tmp_path))
    with pytest.raises(TypeError, match="caller takes 1 arguments, not 2"):
        engine.call("caller", 1, 2)
    with pytest.raises(KeyError, match="nosuch"):
        engine.call("nosuch")


def test_results_name_the_compiler():
    versions = jit.compiler_versions()
    assert set(versions) == {"llvmlite", "llvm", "target"}
    assert all(versions.values())


def test_a_linked_module_is_compiled_once_for_all_its_functions(cache):
    import toys

    from spfemu.mm import bug, irq, vmstat

    engine = NativeEngine(link([functions_of(m) for m in (bug, vmstat, irq, toys)], {}))
    assert {engine.compiled.entry(name) for name in engine.program.functions}.isdisjoint({0})
