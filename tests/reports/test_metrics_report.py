"""The sentences of report 1 follow the numbers of the record, and can come out the other way."""

import copy

import pytest
from tiny_models import ROOT

from gpt2_quant.records import load_record
from gpt2_quant.reports.metrics_report import report_data


@pytest.fixture(scope="module")
def record() -> dict:
    """The reference run's."""
    return load_record(ROOT / "results" / "records" / "text_metrics.json")


def findings(record: dict) -> str:
    return "\n".join(report_data(record)["findings"])


def test_tables_show_every_row_of_the_record(record):
    data = report_data(record)
    scores, edits, humans = data["scores"], data["edits"], data["humans"]
    assert len(scores["head"]) == len(scores["rows"][0]["values"]) == len(scores["signatures"])
    assert {len(row["falls"]) for row in edits["dose"]} == {len(edits["strengths"])}
    assert len(edits["edited"]) == edits["n_edits"] and all(row["runs"] for row in edits["edited"])
    assert {len(row["values"]) for row in humans["rows"] + humans["system"]} == {4}
    assert all({"one", "eleven", "published"} <= set(row) for row in humans["compared"])
    assert len(data["quantization"]["rows"]) == len(record["quantization"]["table"])


def test_targets_are_reached_or_missed_by_the_numbers(record):
    changed = copy.deepcopy(record)
    for row in changed["coherence"]["table"]:
        row["prefers_original"] = 1 - row["prefers_original"]
    for row in changed["humans"]["coherence_differences"]:
        row["low"] = -1
    before, after = findings(record), findings(changed)
    assert "which reaches the target of 85%" in before and "which misses the target of 85%" in after
    assert "ahead, by an interval above 0, of" in before and "ahead of no rival" in after


def test_a_part_that_was_not_run_is_none(record):
    data = report_data({key: value for key, value in record.items() if key != "humans"})
    assert data["humans"] is None and data["coherence"] is not None
