# SPDX-License-Identifier: MIT
"""Commands: what they say, write and return, with the measuring replaced."""

import json
import re
from pathlib import Path

import jsonschema
import pytest
from click.shell_completion import BashComplete
from msgspec.structs import replace

from spfemu import results
from spfemu.cli.app import COMMANDS, cli
from spfemu.errors import ExitCode, ResourceError, WorkerDiedError
from spfemu.measure import build, compare
from spfemu.measure.plan import Plan

INTERRUPTED = results.Partial(status=ExitCode.INTERRUPTED, reason="interrupted")
DIED = results.Partial(status=ExitCode.WORKER_DIED, reason="worker 0 died")
TRACES = Path(__file__).parent.parent / "trace" / "data"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_has_help(spfemu, command):
    answer = spfemu(*command, "--help")
    assert answer.exit_code == ExitCode.OK
    assert answer.stdout.startswith("Usage: spfemu")
    assert answer.stderr == ""


def test_short_help_is_not_cut_off(spfemu):
    assert "..." not in spfemu("--help").stdout.partition("Commands:")[2]


def test_every_option_has_help():
    for name in COMMANDS:
        command = cli.get_command(None, name)
        for option in command.params:
            if option.param_type_name == "option":
                assert option.help, f"{name} {option.name}"


def test_version(spfemu):
    answer = spfemu("--version")
    assert re.fullmatch(r"spfemu \d+\.\d+\.\d+\n", answer.stdout)


def test_defaults_are_those_of_the_measuring_code():
    run = {p.name: p.default for p in cli.get_command(None, "run").params}
    scale = {p.name: p.default for p in cli.get_command(None, "scale").params}
    plan = Plan("page_fault1")
    for name in ("protocol", "target", "engine", "mode", "workers", "writers", "seconds",
                 "repeats", "table_free", "seq_line", "lookup", "nodes"):  # fmt: skip
        assert run[name] == getattr(plan, name), name
    assert not plan.overlap
    assert not plan.latency
    assert scale["seconds"] == compare.SCALE_SECONDS
    assert scale["repeats"] == compare.SCALE_ROUNDS
    assert scale["protocols"] == "classic,spf"
    assert scale["workload"] == "page_fault1"


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "did you mean 'run'?"),
        (["run", "pagefault1"], "did you mean 'page_fault1'?"),
        (["run", "pft", "--protocol", "clasic"], "did you mean 'classic'?"),
        (["scale", "--protocols", "classic,spv"], "did you mean 'spf'?"),
        (["run", "pft", "--target", "hots"], "did you mean 'host'?"),
        (["run", "pft", "--engine", "nativ"], "did you mean 'native'?"),
        (["list", "workload"], "did you mean 'workloads'?"),
        (["RUN", "pft"], "did you mean 'run'?"),
        (["run", "PFT"], "did you mean 'pft'?"),
        (["run", "pft", "--protocol", "SPF"], "did you mean 'spf'?"),
        (["scale", "--protocols", "Classic,SPF"], "did you mean 'classic'?"),
        (["run", "pft", "--target", "HOST"], "did you mean 'host'?"),
        (["run", "pft", "--engine", "Native"], "did you mean 'native'?"),
        (["run", "pft", "--swap", "1"], "swap must be from 1048576"),
        (["run", "pft", "--override", "."], ".: this override is a folder, not a file: give its"),
        (["run", "pft", "--areas", "3"], "--areas means nothing to pft: leave it out"),
        (["scale", "mmap1", "--pages", "3"], "--pages means nothing to mmap1: leave it out"),
        (["replay", "trace", "--workers", "0"], "workers must be from 1 to 512, not 0"),
        (["replay", "trace", "--workers", "99999"], "workers must be from 1 to 512, not 99999"),
        (["run", "pft", "--workers", "0"], "from 1 to 512"),
        (["run", "pft", "--workers", "513"], "from 1 to 512"),
        (["scale", "--workers", "0-2"], "from 1 to 512"),
        (["run", "mixed", "--writers", "-1"], "writers must be from 0 to"),
        (["run", "pft", "--seconds", "0"], "from 0.01 to 3600"),
        (["run", "pft", "--seconds", "2min", "--seconds", "9999"], "from 0.01 to 3600"),
        (["run", "pft", "--repeats", "0"], "from 1 to 1000"),
        (["run", "pft", "--size", "1K"], "size must be from 4096 to"),
        (["run", "pft", "--size", "4X"], "is no size"),
        (["run", "pft", "--seed", "-1"], "seed must be from 0"),
        (["run", "pft", "--fault-overhead", "-1"], "fault overhead"),
        (["run", "pft", "--override", "absent.py"], "absent.py"),
        (["run", "pft", "--protocol", "bare", "--writers", "1"], "no writers"),
        (["run", "mixed", "--protocol", "bare", "--writers", "1"], "cannot run with writers"),
        (["run", "pft", "--target", "host", "--protocol", "spf"], "--protocol means nothing"),
        (["run", "pft", "--target", "host", "--override", "x"], "--override means nothing"),
        (["run", "pft", "--thp"], "--thp means nothing with --target emulator"),
        (["run"], "say what to measure: a WORKLOAD, or --trace FILE"),
        (["completion", "tcsh"], "not one of bash, zsh, fish"),
    ],
)
def test_a_mistake_is_refused_and_explained(spfemu, arguments, message):
    answer = spfemu(*arguments)
    assert message in answer.stderr
    assert "Traceback" not in answer.output
    assert answer.exit_code == ExitCode.USAGE
    assert len(answer.stderr.strip().splitlines()[-1]) > len(message) - 1


@pytest.mark.parametrize("option", ["--json", "--csv", "--plot"])
@pytest.mark.parametrize("path", ["absent/file.svg", ".", "/"])
def test_a_path_that_cannot_be_written_is_found_before_the_run(spfemu, measured, option, path):
    answer = spfemu("scale", option, path)
    assert answer.stderr.startswith("spfemu: cannot write ")
    assert answer.exit_code == ExitCode.USAGE
    assert measured == []


def test_a_directory_without_permission_is_found_before_the_run(spfemu, measured, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_arguments: False)
    answer = spfemu("scale")
    assert "no permission" in answer.stderr
    assert "name a file elsewhere" in answer.stderr
    assert answer.exit_code == ExitCode.USAGE
    assert measured == []


# Results


def test_scale_prints_a_table_and_writes_plot_and_report(spfemu, measured, tmp_path, scale_report):
    answer = spfemu("scale", "--seed", "42")
    assert answer.exit_code == ExitCode.OK
    assert answer.stdout.splitlines()[0] == "seed 0x2a"
    assert "Spf scales and classic does not." in answer.stdout
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"spfemu-page_fault1.{suffix}" for suffix in ("json", "svg", "png")}
    for name in names:
        assert f"wrote {name}" in answer.stdout
    text = (tmp_path / "spfemu-page_fault1.json").read_bytes()
    assert results.decode(text) == scale_report


def test_scale_asks_for_what_was_given(spfemu, measured):
    spfemu("scale", "pft", "--protocols", "spf,bare", "--workers", "1,2", "--without-host",
           "--fault-overhead", "host", "--size", "1M", "--mode", "processes")  # fmt: skip
    ((plan, how),) = measured
    assert (plan.workload, plan.size, plan.mode) == ("pft", 1 << 20, "processes")
    assert how["protocols"] == ("spf", "bare")
    assert how["workers"] == (1, 2)
    assert how["with_host"] is False
    assert how["overhead_from_host"] is True


def test_scale_writes_csv_per_curve(spfemu, measured, tmp_path):
    answer = spfemu("scale", "--csv", "out.csv")
    assert answer.exit_code == ExitCode.OK
    for name in ("classic", "spf", "host"):
        text = (tmp_path / f"out-{name}.csv").read_text()
        assert text.startswith("tasks,processes,processes_idle,threads,threads_idle,linear\n")


def test_json_on_stdout_is_all_that_is_there(spfemu, measured):
    for command in (["scale", "--json", "-"], ["run", "pft", "--json", "-"]):
        answer = spfemu(*command)
        jsonschema.validate(json.loads(answer.stdout), results.schema())
        assert answer.stderr.startswith("seed ")


def test_quiet_json_says_nothing_else_anywhere(spfemu, measured):
    answer = spfemu("scale", "--json", "-", "--quiet")
    json.loads(answer.stdout)
    assert answer.stderr == ""


def test_run_passes_on_every_option(spfemu, measured):
    spfemu("run", "mixed", "--protocol", "classic", "--engine", "plain", "--mode", "processes",
           "--workers", "3", "--writers", "2", "--seconds", "200ms", "--repeats", "4",
           "--size", "64K", "--table-free", "irq", "--seq-line", "own", "--seed", "7",
           "--lookup", "latch", "--nodes", "2", "--swap", "8M", "--memory", "9M",
           "--fault-overhead", "250", "--latency", "--areas", "5", "--pages", "6",
           "--rate", "10", "--overlap")  # fmt: skip
    ((plan, how),) = measured
    assert plan == Plan(
        "mixed", protocol="classic", engine="plain", mode="processes", workers=3, writers=2,
        seconds=0.2, repeats=4, size=65536, table_free="irq", seq_line="own", seed=7,
        lookup="latch", nodes=2, swap=8 << 20, memory=9 << 20,
        fault_overhead_ns=250.0, latency=True, areas=5, pages=6, rate=10.0, overlap=True,
    )  # fmt: skip
    assert how == {"overhead_from_host": False}


def test_an_existing_report_is_replaced(spfemu, measured, tmp_path):
    (tmp_path / "r.json").write_text("old")
    assert spfemu("run", "pft", "--json", "r.json").exit_code == ExitCode.OK
    results.decode((tmp_path / "r.json").read_bytes())
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, ExitCode.OK),
        ({"inconclusive": ["too noisy"]}, ExitCode.INCONCLUSIVE),
        ({"partial": INTERRUPTED}, ExitCode.INTERRUPTED),
        ({"partial": INTERRUPTED, "inconclusive": ["ended"]}, ExitCode.INTERRUPTED),
        ({"partial": DIED, "inconclusive": ["ended"]}, ExitCode.WORKER_DIED),
    ],
)
def test_the_exit_code_says_how_it_ended(spfemu, measured, monkeypatch, tmp_path, scale_report,
                                         changed, code):  # fmt: skip
    report = replace(scale_report, **changed)
    monkeypatch.setattr(compare, "scale", lambda *_a, **_k: report)
    assert spfemu("scale").exit_code == code
    assert results.decode((tmp_path / "spfemu-page_fault1.json").read_bytes()) == report


def test_a_violation_outweighs_everything(spfemu, measured, monkeypatch, scale_report):
    bad = replace(scale_report.results[0], violations=["frame 3 is lost"])
    report = replace(scale_report, results=[bad], ratios=[], partial=DIED, inconclusive=["x"])
    monkeypatch.setattr(compare, "scale", lambda *_a, **_k: report)
    answer = spfemu("scale")
    assert answer.exit_code == ExitCode.VIOLATION
    assert "frame 3 is lost" in answer.stdout


def test_writers_that_no_speculation_met_are_inconclusive(
    spfemu, measured, monkeypatch, scale_report
):
    alone = replace(scale_report.results[2], writers=1)
    report = replace(scale_report, results=[alone], ratios=[])
    monkeypatch.setattr(compare, "scale", lambda *_a, **_k: report)
    answer = spfemu("scale")
    assert answer.exit_code == ExitCode.INCONCLUSIVE
    assert "none of 1000 faults of page_fault1 without the mmap lock met a writer" in answer.stdout
    met = replace(alone, events={**alone.events, "SPF_ABORT_ODD": 1})
    report = replace(report, results=[met])
    assert spfemu("scale").exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ResourceError("no memory"), ExitCode.ENVIRONMENT, "spfemu: no memory\n"),
        (WorkerDiedError("worker 0 died"), ExitCode.WORKER_DIED, "spfemu: worker 0 died\n"),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, "spfemu: interrupted, nothing was finished\n"),
        (
            OSError(24, "Too many open files"),
            ExitCode.ENVIRONMENT,
            "spfemu: [Errno 24] Too many open files\n",
        ),
        (BrokenPipeError(), ExitCode.ENVIRONMENT, ""),
        (MemoryError(), ExitCode.ENVIRONMENT, "spfemu: out of memory\n"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(spfemu, measured, monkeypatch, error, code, line):
    def fail(*_arguments, **_how):
        raise error

    monkeypatch.setattr(compare, "scale", fail)
    answer = spfemu("scale")
    assert answer.exit_code == code
    assert answer.stderr == line


def test_a_mistake_of_spfemu_has_a_status_of_its_own(spfemu, measured, monkeypatch):
    def fail(*_arguments, **_how):
        raise ValueError("no\nsuch thing")

    monkeypatch.setattr(compare, "scale", fail)
    monkeypatch.delenv("SPFEMU_DEBUG", raising=False)
    answer = spfemu("scale")
    assert answer.exit_code == ExitCode.INTERNAL
    assert re.fullmatch(
        r"spfemu: internal error: ValueError: no such thing \(test_commands\.py:\d+\): this is a "
        r"mistake in spfemu; please report it .* SPFEMU_DEBUG=1\n",
        answer.stderr,
    )
    monkeypatch.setenv("SPFEMU_DEBUG", "1")
    answer = spfemu("scale")
    assert answer.exit_code == ExitCode.INTERNAL
    assert answer.stderr.startswith("Traceback (most recent call last):\n")


def test_quiet_leaves_results_and_what_is_wrong_with_them(
    spfemu, measured, monkeypatch, scale_report
):
    report = replace(scale_report, warnings=["busy"], inconclusive=["too noisy"], partial=DIED)
    monkeypatch.setattr(compare, "scale", lambda *_a, **_k: report)
    for quiet, said in (((), True), (("-q",), False)):
        found = spfemu("scale", *quiet).stdout
        assert ("note: busy" in found, "wrote spfemu-page_fault1.json" in found) == (said, said)
        for line in ("inconclusive: too noisy", "partial: worker 0 died", "spf / classic", "seed"):
            assert line in found


def test_quiet_means_the_same_for_recordings_everywhere(spfemu, tmp_path):
    lines = (TRACES / "threads.trace").read_text() + "this is no line\n"
    (tmp_path / "bad.trace").write_text(lines)
    short = ("--seconds", "0.05", "--repeats", "1")
    for arguments in (
        ("run", "--trace", "bad.trace", *short),
        ("scale", "--trace", "bad.trace", "--protocols", "spf", *short),
        ("replay", "bad.trace"),
    ):
        for quiet in ((), ("-q",)):
            answer = spfemu(*arguments, *quiet)
            assert "bad.trace:706: this is no output of strace" in answer.stderr, arguments
    answer = spfemu("replay", "bad.trace", "-q", "--json", "-")
    assert json.loads(answer.stdout)["schema"] == "spfemu-replay-1"
    assert answer.stderr.splitlines() == [
        "bad.trace:706: this is no output of strace: 'this is no line'"
    ]


def test_scale_compares_with_the_base(spfemu, measured):
    spfemu("scale", "pft", "--protocols", "classic,spf,bare")
    spfemu("scale", "pft", "--protocols", "classic,spf,bare", "--base", "spf")
    spfemu("scale", "pft", "--protocols", "classic,spf", "--base", "bare")
    assert [(how["protocols"], how["base"]) for _, how in measured] == [
        (("classic", "spf", "bare"), "classic"),
        (("spf", "classic", "bare"), "spf"),
        (("bare", "classic", "spf"), "bare"),
    ]
    answer = spfemu("scale", "--base", "sfp")
    assert "did you mean 'spf'?" in answer.stderr
    assert answer.exit_code == ExitCode.USAGE


# The other commands


def test_list_names_everything_in_one_line_each(spfemu):
    found = spfemu("list").stdout
    for name in [*build.list_workloads(), *build.list_protocols(), *build.ENGINES, "SPF_ABORT"]:
        assert re.search(rf"^  {re.escape(name)} +\S", found, re.MULTILINE), name


def test_list_of_one_kind_as_json(spfemu):
    document = json.loads(spfemu("list", "protocols", "--json").stdout)
    assert list(document) == ["schema", "protocols", "shared_writes"]
    assert set(document["protocols"]) >= {"classic", "spf", "bare"}
    assert document["protocols"].keys() == document["shared_writes"].keys()


def test_list_of_protocols_has_what_a_fault_writes(spfemu):
    found = spfemu("list", "protocols").stdout
    assert re.search(r"^  bare +1 write to 1 shared line$", found, re.MULTILINE)
    assert re.search(r"^  spf +3 writes to 2 shared lines$", found, re.MULTILINE)
    assert "shared writes" not in spfemu("list").stdout


def test_completion_prints_a_script(spfemu, monkeypatch):
    assert "_SPFEMU_COMPLETE=zsh_complete" in spfemu("completion", "zsh").stdout
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert "_SPFEMU_COMPLETE=fish_complete" in spfemu("completion").stdout
    monkeypatch.setenv("SHELL", "/bin/sh")
    assert spfemu("completion").exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("typed", "begun", "offered"),
    [
        ([], "sc", "scale"),
        (["run"], "page_fault1-", "page_fault1-read"),
        (["run", "pft", "--protocol"], "cl", "classic"),
        (["scale", "--protocols"], "spf,cl", "spf,classic"),
        (["run", "pft", "--table-free"], "i", "irq"),
        (["run", "pft"], "--lat", "--latency"),
    ],
)
def test_completion_offers_names(typed, begun, offered):
    complete = BashComplete(cli, {}, "spfemu", "_SPFEMU_COMPLETE")
    assert [item.value for item in complete.get_completions(typed, begun)] == [offered]
