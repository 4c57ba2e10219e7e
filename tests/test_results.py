# SPDX-License-Identifier: MIT
"""The JSON is what docs and schema say, and can be read back."""

import json

import jsonschema
import pytest

from spfemu import results
from spfemu.errors import UsageError


@pytest.mark.parametrize("name", ["scale_report", "run_report"])
def test_what_is_written_fits_the_schema_and_is_read_back(name, request):
    report = request.getfixturevalue(name)
    text = results.encode(report)
    jsonschema.Draft202012Validator(results.schema()).validate(json.loads(text))
    assert results.decode(text) == report


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(results.schema())


def test_every_key_is_written_and_required(scale_report):
    document = json.loads(results.encode(scale_report))
    definitions = results.schema()["$defs"]
    for record, definition in (
        (document, "Report"),
        (document["environment"], "Environment"),
        (document["results"][0], "Result"),
        (document["ratios"][0], "Ratio"),
    ):
        assert list(record) == definitions[definition]["required"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("results", 0, "workers"), "two"),
        (("results", 0, "faults_per_second", "median"), None),
        (("results", 0, "mode"), "fibers"),
        (("schema",), "spfemu-report-0"),
        (("surplus",), 1),
    ],
)
def test_the_schema_refuses_what_does_not_fit(scale_report, path, value):
    document = json.loads(results.encode(scale_report))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, results.schema())
    with pytest.raises(UsageError):
        results.decode(json.dumps(document))


def test_keys_of_a_result_begin_in_the_documented_order(scale_report):
    document = json.loads(results.encode(scale_report))
    assert list(document)[:5] == ["schema", "command", "seed", "environment", "results"]
    assert list(document["results"][0])[:18] == [
        "workload",
        "target",
        "protocol",
        "engine",
        "mode",
        "workers",
        "writers",
        "seconds",
        "repeats",
        "seed",
        "table_free",
        "faults_per_second",
        "operations_per_second",
        "writer_operations_per_second",
        "latency_ns",
        "events",
        "hardware",
        "violations",
    ]


def test_latency_keys_are_named_as_people_write_them(run_report):
    latency = json.loads(results.encode(run_report))["results"][0]["latency_ns"]
    assert list(latency) == ["faults", "writers"]
    assert list(latency["faults"]) == ["p50", "p90", "p99", "p99.9", "max"]


def test_another_version_is_refused_by_name(scale_report):
    text = results.encode(scale_report).replace(b"spfemu-report-2", b"spfemu-report-9")
    with pytest.raises(UsageError, match=r"old\.json has schema 'spfemu-report-9'"):
        results.decode(text, "old.json")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b'"x"', b"{", b'{"schema": "spfemu-report-2"}'),
        *(b'"\xff"', b"[" * 100_000),
    ],
)
def test_what_is_no_report_is_refused(text):
    with pytest.raises(UsageError, match="the report"):
        results.decode(text)
