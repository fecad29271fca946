"""The sentences of report 1 follow the numbers of the record, and can come out the other way."""

import copy

import pypdf
import pytest
from tiny_models import ROOT

from gpt2_quant.records import load_record, write_json
from gpt2_quant.reports.metrics_report import report_data, write_report


@pytest.fixture(scope="module")
def record() -> dict:
    """The reference run's on SummEval alone, with what a record says of its language model."""
    record = load_record(ROOT / "results" / "records" / "text_metrics.json")
    model = {"parameters": 17_900_000, "layers": 6, "width": 256, "published": False}
    del record["held_out"]
    return {**record, "models": {**record["models"], **model}}


def findings(record: dict) -> str:
    return "\n".join(report_data(record)["findings"])


def test_tables_show_every_row_of_the_record(record):
    data = report_data(record)
    scores, edits, humans = data["scores"], data["edits"], data["humans"]
    assert len(scores["head"]) == len(scores["rows"][0]["values"]) == len(scores["signatures"])
    assert {len(row["values"]) for row in edits["dose"]} == {len(edits["strengths"])}
    assert len(edits["edited"]) == edits["n_edits"] and all(row["runs"] for row in edits["edited"])
    assert {len(row["values"]) for row in humans["rows"] + humans["system"]} == {4}
    assert all({"one", "eleven", "published"} <= set(row) for row in humans["compared"])
    assert len(data["quantization"]["rows"]) == len(record["quantization"]["table"])


def test_targets_are_reached_or_missed_by_the_numbers(record):
    changed = copy.deepcopy(record)
    for row in changed["coherence"]["table"]:
        row["prefers_original"] = 1 - row["prefers_original"]
    for row in changed["humans"]["coherence_differences"]:
        row["p_holm"] = 0.2
    before, after = findings(record), findings(changed)
    assert "which reaches the target of 85%" in before and "which misses the target of 85%" in after
    assert "agrees better with people than" in before and "agrees better" not in after


def test_a_half_goes_up_as_in_the_table(record):
    changed = copy.deepcopy(record)
    for row in changed["coherence"]["table"]:
        row["prefers_original"] = 0.9115  # as a float a little less
    assert "prefers the original to 91.2% of permutations" in findings(changed)


def test_what_was_not_shown_stands_first(record):
    def changed(difference: float, p_holm: float) -> str:
        other = copy.deepcopy(record)
        for row in other["humans"]["coherence_differences"]:
            row |= {"value": difference, "p_holm": p_holm}
        return findings(other)

    ahead, open_, behind = changed(0.2, 0.01), changed(0.2, 0.06), changed(-0.2, 0.01)
    assert "not shown to agree better with people than adjacent cosine" in open_
    assert "agrees less with people than adjacent cosine" in behind
    assert "not shown" not in ahead and "agrees less" not in ahead
    assert open_.index("not shown") < open_.index("MiniLM's cosine")
    assert "counting sentences (difference" in open_


def test_what_equals_fp32_is_no_quantization(record):
    other = copy.deepcopy(record)
    for row in other["quantization"]["table"]:
        row["kl_mean"] = 0.5 if row["scheme"].startswith("baseline") else 0.25
    assert "between 0.25 nats per token" in findings(other) and "and 0.25 (" in findings(other)


def in_print(record: dict, tmp_path) -> str:
    write_json(tmp_path / "records" / "text_metrics.json", record)
    pages = pypdf.PdfReader(write_report(tmp_path)).pages
    return " ".join(" ".join(page.extract_text() for page in pages).split())


def test_the_language_model_is_named_wherever_its_figures_stand(record, tmp_path):
    ours = in_print(record, tmp_path)
    assert "was not loaded as the published openai-community/gpt2" in ours
    assert ours.count("6 layers of width 256, 17.9M parameters") >= 4
    published = {**record, "models": {**record["models"], "published": True}}
    assert "was not loaded as" not in in_print(published, tmp_path)
    demo = {**record, "settings": {**record["settings"], "preset": "demo"}}
    of_my_model = in_print(demo, tmp_path)
    assert "This is the demo" not in of_my_model and "preset scores few texts" in of_my_model
    demo["settings"] |= {"models_dir": "models/demo", "base_model": "models/demo/base_gpt2"}
    assert "This is the demo" in in_print(demo, tmp_path)


def test_both_nf4_are_compared_by_the_numbers(record, tmp_path):
    assert "in 4 bits, too, where NF4 BitsAndBytes" in in_print(record, tmp_path)
    other = copy.deepcopy(record)
    for row in other["quantization"]["table"]:
        row |= {"kl_low": 0, "kl_high": 1}
    assert "(their intervals overlap), although NF4 Scratch" in in_print(other, tmp_path)
    for row in other["quantization"]["table"]:
        if row["scheme"] == "nf4_scratch":
            row |= {"kl_low": -2, "kl_high": -1}
    assert "as NF4 BitsAndBytes, less, although NF4 Scratch" in in_print(other, tmp_path)


def test_what_the_record_lacks_is_not_said(record, tmp_path):
    other = copy.deepcopy(record)
    other["quantization"]["table"] = other["quantization"]["table"][:3]  # FP32, FP16, INT8
    other["quantization"]["table"][1] |= {"kl_mean": 0.0, "top1_agreement": 1.0}
    other["data"]["name"] = str(tmp_path / "news")
    del other["models"]["parameters"]
    text = in_print(other, tmp_path)
    assert "quantization costs between" not in text and str(tmp_path) not in text
    assert "openai-community/gpt2 (that one has 12 layers" in text
    assert "Equal to FP32 here, to the last digit: Baseline FP16." in text
    assert "ROUGE-1 gives" in text  # a hyphen, no minus sign


def test_perplexity_gets_fewer_permutations_only_where_it_does(record, tmp_path):
    other = copy.deepcopy(record)
    assert "so it gets fewer" in in_print(other, tmp_path)
    for row in other["coherence"]["table"]:
        row |= {"texts": 9, "versions": 2}
    assert "so it gets fewer" not in in_print(other, tmp_path)


def test_held_out_documents_are_reported_beside_those_looked_at(record, tmp_path):
    held_out = {**record["coherence"], "source": "unseen.jsonl"}
    assert "confirms nothing" in findings(record) and "held out" not in findings(record)
    both = {**record, "held_out": held_out}
    assert "unseen.jsonl; given as held out" in findings(both)
    assert "documents given as held out (unseen.jsonl)" in in_print(both, tmp_path)
    assert "repeats the controls on them" in in_print(record, tmp_path)


def test_without_news_the_header_says_so(record, tmp_path):
    assert "none read" in in_print({**record, "data": None}, tmp_path)


def test_a_part_that_was_not_run_is_none(record):
    data = report_data({key: value for key, value in record.items() if key != "humans"})
    assert data["humans"] is None and data["coherence"] is not None
