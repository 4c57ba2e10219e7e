# SPDX-License-Identifier: MIT
"""The page on overrides shows the files in examples/, and they and its messages are right."""

import re

import pytest
from pages import ROOT

from spfemu.engines.native import NativeEngine
from spfemu.engines.plain import PlainEngine
from spfemu.engines.source import KernelSourceError
from spfemu.layout import PAGE_SIZE
from spfemu.measure.build import compose
from spfemu.mm.flags import Map, Prot
from spfemu.segment import Geometry, Segment

EXAMPLES = sorted((ROOT / "examples" / "overrides").glob("*.py"))
OVERRIDES = [path for path in EXAMPLES if not path.name.startswith("test_")]
PAGES = 8

REFUSED = {
    "replaces no kernel function and none calls it; did you mean 'pte_map_lock'?": """
def pte_map_lok(cpu: int, vmf: int) -> int:
    return 1
""",
    "'pte_map_lock' must take (cpu, vmf) as in": """
def pte_map_lock(cpu: int) -> int:
    return 1
""",
    "'synchronize_rcu' is never called by this workload with this protocol": """
def synchronize_rcu(cpu: int) -> None:
    pass
""",
    "List expressions are outside the restricted style": """
def copy_pvma(pvma: int, vma: int) -> None:
    for i in [1, 2]:
        pass
""",
    "'print' is no kernel function or primitive": """
def copy_pvma(pvma: int, vma: int) -> None:
    print(vma)
""",
    "0.5 is not an integer": """
def spin_trylock(cpu: int, lock: int) -> int:
    return 0.5
""",
    "// and % need a positive constant on the right": """
def spin_trylock(cpu: int, lock: int) -> int:
    return cpu // lock
""",
    "only kernel functions and primitives may be called, by name": """
def spin_trylock(cpu: int, lock: int) -> int:
    return cpu.bit_length()
""",
    "recursion: spin_trylock -> spin_trylock": """
def spin_trylock(cpu: int, lock: int) -> int:
    return spin_trylock(cpu, lock)
""",
    "'spin_trylok' is marked @around, and no kernel function; did you mean 'spin_trylock'?": """
def unused() -> None:
    pass
@around
def spin_trylok(cpu: int, lock: int) -> int:
    return proceed(cpu, lock)
""",
    "'spin_trylock' is marked @around and never calls proceed(...): mark it @kernel": """
def unused() -> None:
    pass
@around
def spin_trylock(cpu: int, lock: int) -> int:
    return 1
""",
    "name 'TRIES' is not defined": """
def spin_trylock(cpu: int, lock: int) -> int:
    return TRIES
""",
}


def blocks(text):
    """Code blocks that are introduced by the name of their file."""
    return dict(re.findall(r"`(examples/[\w/.]+)`:\n\n```python\n(.*?)```", text, re.DOTALL))


def test_the_page_shows_every_example_as_it_is(read_page):
    shown = blocks(read_page("overrides.md"))
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in EXAMPLES}
    assert shown == {name: text.split("\n", 1)[1] for name, text in files.items()}


@pytest.fixture
def segment():
    made = Segment.create(Geometry(nr_frames=128))
    made.mms["mm_users"] = 2
    yield made
    made.close()


@pytest.mark.parametrize("make_engine", [NativeEngine, PlainEngine])
@pytest.mark.parametrize("override", OVERRIDES, ids=lambda path: path.stem)
def test_examples_run(segment, override, make_engine):
    engine = make_engine(compose("page_fault1", "spf", overrides=[str(override)]))
    cpu = segment.cpu(0)
    engine.call("cpu_online", cpu)
    area = engine.call(
        "sys_mmap", cpu, 0, PAGES * PAGE_SIZE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS
    )

    for i in range(PAGES):
        assert engine.call("user_write", cpu, area + i * PAGE_SIZE, i) == 0

    assert engine.program.overridden
    assert engine.call("sys_munmap", cpu, area, PAGES * PAGE_SIZE) == 0
    engine.call("cpu_offline", cpu)


@pytest.mark.parametrize("message", REFUSED, ids=lambda message: message[:30])
def test_messages_are_the_page_s(read_page, tmp_path, message):
    path = tmp_path / "override.py"
    path.write_text(
        f"from spfemu.kernel import around, kernel, proceed\n\n@kernel{REFUSED[message]}"
    )

    with pytest.raises(KernelSourceError, match=re.escape(message)) as error:
        NativeEngine(compose("page_fault1", "spf", overrides=[str(path)]))

    assert re.match(rf"{re.escape(str(path))}:[4-7]: ", str(error.value))
    assert message in read_page("overrides.md")


def test_files_without_kernel_functions_are_refused(read_page, tmp_path):
    path = tmp_path / "override.py"
    for text, message in (
        ("x = 1\n", "defines no kernel function; mark the functions"),
        ("import spfemu.kernl\n", "the override does not load: ModuleNotFoundError:"),
    ):
        path.write_text(text)
        with pytest.raises(KernelSourceError, match=re.escape(message)):
            compose("page_fault1", "spf", overrides=[str(path)])
        assert message in read_page("overrides.md")
