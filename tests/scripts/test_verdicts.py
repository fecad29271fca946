"""Made-up results leave every sentence of report 2, the terminal and README's table true."""

import re
import shutil

import numpy as np
import pandas as pd
import pypdf
import pytest
from made_up import BYTES, answers, around, make
from result_folders import change_record

from gpt2_quant.compare import tables
from gpt2_quant.compare.changed_texts import most_changed
from gpt2_quant.compare.claims import published_claims
from gpt2_quant.compare.comparison import compare_results
from gpt2_quant.measure.predictions import save_predictions
from gpt2_quant.measure.scores import classification_scores
from gpt2_quant.records import load_record
from gpt2_quant.reports.findings import answer, choices, findings
from gpt2_quant.reports.quantization_report import report_data, write_report

SCRIPT = "src/5_compare_all_models.py"
FP32, FP16, NF4, CONTROL = "baseline", "baseline_fp16", "nf4_bitsandbytes", "tfidf"


def said(comparison):
    """All sentences that depend on figures."""
    chosen = choices(comparison)
    rows = [" ".join(row.values()) for row in chosen["rows"]]
    notes = tables.footnotes(comparison)
    lines = [*findings(comparison), *answer(comparison), chosen["among"], *rows, *notes]
    return "\n".join(lines)


def typeset(comparison, folder):
    write_report(comparison, most_changed(comparison), {}, folder)
    return words_of(folder)


def words_of(folder):
    pages = pypdf.PdfReader(folder / "report_2.pdf").pages
    return " ".join(" ".join(page.extract_text() for page in pages).replace("\u00a0", " ").split())


def test_nf4_at_minus_4_8_points(tmp_path, run_script):
    """Through the script: terminal, README's table and report 2 say that NF4 loses."""
    make(tmp_path, discordant={NF4: (4, 100)}, sizes={"int8_scratch": 3_076_923})
    done = run_script(SCRIPT, "--results-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "comparison_table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| NF4 BitsAndBytes"))
    assert "-4.80 [" in row and "4:100 p<.001" in row and row.endswith("not shown |")
    report = words_of(tmp_path)
    assert "Different from it (exact McNemar, Holm): NF4 BitsAndBytes (−4.80 points)." in report
    assert not re.search(r"Equivalent to it[^.]*\.5[^.]*NF4 BitsAndBytes", report)
    assert "1.3000x stored" in report
    assert "Not the published experiment: it is tested on 2,000 rows of AG News" in report
    ending = done.stdout[done.stdout.index("What quantization costs") :]
    assert "The smallest within ±0.5 points of Baseline FP32: NF4 Scratch with 0.50 MB" in ending
    assert "NF4 BitsAndBytes" not in ending.split("8 times in 10 where")[0]
    assert "times were not" not in report and "not measured" in report


def test_ties_are_named_as_ties(tmp_path):
    keys = (FP32, "int8_scratch", "nf4_scratch")
    times = {FP32: around(10), "int8_scratch": around(5), "nf4_scratch": around(5.02)}
    sizes = {"int8_scratch": 900_000, "nf4_scratch": 900_000}
    comparison = compare_results(make(tmp_path, keys, sizes=sizes, ms=times))
    # The terminal has no room for that column, and so no note on it.
    assert tables.LARGE in tables.markdown(comparison)
    assert tables.LARGE not in tables.terminal(comparison)
    text = said(comparison)
    assert "INT8 Scratch and NF4 Scratch with 0.86 MB each" in text
    assert "are not told apart as the fastest: their intervals overlap" in text
    assert "the fastest is" not in text
    assert "the shortest time of a batch INT8 Scratch and NF4 Scratch" in text


def test_a_faster_row_beyond_the_intervals_is_called_so(tmp_path):
    keys = (FP32, FP16, "int8_scratch_w8a8")
    times = {FP32: around(10), FP16: around(8), "int8_scratch_w8a8": around(5)}
    text = said(compare_results(make(tmp_path, keys, ms=times)))
    assert "the fastest is INT8 Scratch W8A8 with 5.00 ms [4.95, 5.05]" in text
    assert "takes 8.00 ms: INT8 Scratch W8A8 is faster than that" in text
    times["int8_scratch_w8a8"] = around(7.95)
    text = said(compare_results(make(tmp_path, keys, ms=times)))
    assert "no quantized row is shown to be faster than that" in text


def test_equal_programs_under_two_names(tmp_path):
    folder = make(tmp_path, (FP32, NF4), ms={FP32: around(10), NF4: around(10)})
    shutil.copy(folder / "predictions/baseline.parquet", folder / f"predictions/{NF4}.parquet")
    metrics = load_record(folder / "records/baseline.json")["metrics"]
    change_record(folder, NF4, lambda record: record.update(metrics=metrics))
    comparison = compare_results(folder)
    text = said(comparison)
    assert "answer with identical logits on every row" in text
    assert "No row changes more answers than NF4 BitsAndBytes: 0 of 2,000 (0.00%)" in text
    assert "The probabilities move" not in text
    assert "Equivalent to it within ±0.5 points" in text


@pytest.mark.parametrize("baseline", [FP16, "nf4_scratch"])
def test_another_baseline(tmp_path, baseline):
    times = {key: around(10 + i) for i, key in enumerate(BYTES)}
    comparison = compare_results(make(tmp_path, discordant={NF4: (4, 100)}, ms=times), baseline)
    text, label = said(comparison), comparison.baseline.label
    assert text.startswith(f"{label} reaches an accuracy of")
    assert f"accuracy minus {label}'s" in text
    for times_smaller in re.findall(r"([\d.]+) times smaller", text):
        assert float(times_smaller) > 1
    if baseline == "nf4_scratch":  # the smallest of all: nothing is smaller than it
        assert "times smaller than NF4 Scratch" not in text
    report = typeset(comparison, tmp_path)
    assert f"Paired tests against {label}" in report
    assert f"The control {label}" not in report


def test_no_float16_row_where_it_would_be_fp32_once_more(tmp_path):
    folder = make(tmp_path, sizes={FP16: BYTES[FP32]}, ms={k: around(10) for k in BYTES})
    change_record(folder, FP16, lambda record: record["variant"].update(dtype="float32"))
    comparison = compare_results(folder)
    assert comparison.row(FP16) is None
    assert all(row.size["compression_fp16"] is None for row in comparison.rows)
    text = said(comparison)
    assert "than float16" not in text and "The control" not in text
    assert "Baseline FP16" not in text
    assert "compression" in typeset(comparison, tmp_path)


def test_no_timing_says_nothing_of_speed(tmp_path):
    comparison = compare_results(make(tmp_path))
    text = said(comparison)
    assert not re.search(r"fast|\bms\b|slow", text)
    report = typeset(comparison, tmp_path)
    assert "No latencies in these records" in report and "–" in report


def test_what_is_not_decided_and_how_many_rows_would_decide(tmp_path):
    comparison = compare_results(make(tmp_path, discordant={NF4: (20, 28)}))
    text = said(comparison)
    (rows,) = re.findall(r"NF4 BitsAndBytes is not decided .*about ([\d,]+) test rows", text)
    assert int(rows.replace(",", "")) > 2000
    assert "Neither a difference nor equivalence is shown for NF4 BitsAndBytes" in text


def test_only_the_baseline(tmp_path):
    comparison = compare_results(make(tmp_path, (FP32,)))
    assert answer(comparison) == [
        "Only Baseline FP32 has results: there is nothing to choose from."
    ]
    assert "Only Baseline FP32 has results" in typeset(comparison, tmp_path)


def test_newer_sections_are_shown_where_they_are(tmp_path):
    """best_check, batch_invariance, protocol 2 with device times, and facts of the data."""
    folder = make(tmp_path, (FP32, "nf4_scratch"), ms={k: around(10) for k in BYTES})

    def newer(record):
        record["best_check"] = {
            "n": 2000, "accuracy": 0.9, "agreement": 0.9985, "flips": 3,
            "largest_logit_difference": 0.0421,
        }  # fmt: skip
        record["batch_invariance"] = {"largest_logit_difference": 0.0137, "flips": 0}
        record["timing"] = {"protocol": {"blocks": 6}, "a_a": {"n": 15, "equal": 14}}
        record["data"] |= {"majority_fraction": 0.25, "truncated_texts": 12}
        for entry in record["latency"]:
            entry["device_median_ms"] = 7.77

    for key in (FP32, "nf4_scratch"):
        change_record(folder, key, newer)
    comparison = compare_results(folder)
    report = typeset(comparison, tmp_path)
    for words in ("0.0421", "0.0137", "at 14 of 15 shapes", "6 blocks", "7.77", "25.00%"):
        assert words in report, words
    assert "by guessing it is 0.2500, always the most frequent class 0.2500" in said(comparison)


def test_a_demo_is_called_a_demo_and_overfitting_is_said(tmp_path):
    folder = make(tmp_path, (FP32, NF4))
    losses = [0.3, 0.2, 0.35]

    def trained(record):
        made = {"base_model": "demo/base_gpt2", "dataset": "demo/dataset"}
        record["settings"] |= {"preset": "demo", "models_dir": "demo", **made}
        record["training"] = {
            "epochs": 3, "updates": 9, "batch_size": 16, "learning_rate": 2e-5, "seed": 0,
            "precision": "fp32", "best_epoch": 2, "training_s": 1.0, "texts_per_s": 10.0,
            "validations": [{"accuracy": 0.9, "loss": loss} for loss in losses],
        }  # fmt: skip

    for key in (FP32, NF4):
        change_record(folder, key, trained)
    report = typeset(compare_results(folder), tmp_path)
    assert "A demo." in report and "Not the published experiment" not in report
    assert "0.200 at its least and 0.350 after the last epoch" in report
    losses[:] = [0.3, 0.2, 0.1]

    def of_my_texts(record):
        trained(record)
        record["settings"]["dataset"] = "mine.csv"

    for key in (FP32, NF4):
        change_record(folder, key, of_my_texts)
    report = typeset(compare_results(folder), tmp_path)
    assert "overfits" not in report and "A demo." not in report


def test_the_control_hides_nothing_that_quantization_changes(tmp_path):
    """TF-IDF differs from GPT-2 by far more than any quantized row, and runs on the CPU."""
    keys = (FP32, NF4, CONTROL)
    discordant = {NF4: (10, 12), CONTROL: (60, 140)}
    folder = make(
        tmp_path, keys, discordant, {CONTROL: 500_000}, {FP32: around(10), NF4: around(8)}
    )
    times = make(tmp_path / "cpu", keys, sizes={CONTROL: 1}, ms={CONTROL: around(0.1)})
    timed = load_record(times / "records" / f"{CONTROL}.json")["latency"][1:2]

    def on_the_cpu(record):
        record["latency"] = [entry | {"device": "cpu"} for entry in timed]

    change_record(folder, CONTROL, on_the_cpu)
    comparison = compare_results(folder, margin=0.01)
    text = said(comparison)
    assert (
        "No row of the checkpoint changes more answers than NF4 BitsAndBytes: 22 of 2,000" in text
    )
    assert "as for NF4 BitsAndBytes (McNemar" in text and "as for TF-IDF" not in text
    assert set(most_changed(comparison)["by"]) == {"NF4 BitsAndBytes"}
    assert "the fastest is NF4 BitsAndBytes" in text and "The control TF-IDF" not in text
    assert "TF-IDF + LR: latency marked † was timed on another device than Baseline FP32" in text
    assert "TF-IDF + LR reads the timed texts whole" in text
    (best,) = [c for c in published_claims(comparison) if c.claim.endswith("best overall")]
    assert "TF-IDF" not in best.measured
    # As the baseline, it is no clock that the others' times are held against.
    other = compare_results(folder, CONTROL)
    assert [row.key for row in other.timed] == [FP32, NF4]
    assert typeset(other, tmp_path)


def test_a_shown_gain_is_kept(tmp_path):
    comparison = compare_results(make(tmp_path, (FP32, NF4), {NF4: (100, 4)}))
    text = said(comparison)
    assert "The smallest within ±0.5 points of Baseline FP32, or shown to be better: NF4" in text
    assert "Among Baseline FP32 and the rows equivalent to it or shown to be better:" in text


def test_nothing_is_chosen_among_the_baseline_alone(tmp_path):
    assert choices(compare_results(make(tmp_path, (FP32, NF4), {NF4: (4, 100)})))["rows"] == []


def test_identical_rows_are_named_once(tmp_path):
    keys = (FP32, FP16, "int8_scratch")
    folder = make(tmp_path, keys)
    metrics = load_record(folder / "records/baseline.json")["metrics"]
    for key in keys[1:]:
        shutil.copy(folder / "predictions/baseline.parquet", folder / f"predictions/{key}.parquet")
        change_record(folder, key, lambda record: record.update(metrics=metrics))
    (note,) = tables.notes(compare_results(folder))
    assert note.startswith("Baseline FP32, Baseline FP16 and INT8 Scratch answer with identical")


def test_times_without_the_baselines(tmp_path):
    """The rows that were timed compare among themselves; one shape has no sweep."""
    keys = (FP32, FP16, NF4)
    folder = make(tmp_path, keys, ms={FP16: around(10), NF4: around(5)})
    for key in keys:
        change_record(folder, key, lambda record: record.update(latency=record["latency"][1:2]))
    comparison = compare_results(folder)
    text, report = said(comparison), typeset(comparison, tmp_path)
    assert "the fastest is NF4 BitsAndBytes" in text and "latency marked" not in text
    assert "ours of" in report and "none was measured" not in report


def test_too_few_rows_show_nothing_and_few_changes_go_one_way(tmp_path):
    folder = make(tmp_path, (FP32, NF4))
    text = said(compare_results(folder))
    assert "all that differ do so one way, and are more than the 0.00% of NF4 BitsAndBytes" in text
    for key in (FP32, NF4):
        labels, logits = answers(0, 0, 0)
        save_predictions(folder, key, labels[:5], logits[:5])
        metrics = classification_scores(labels[:5], logits[:5].astype(np.float32), resamples=1000)

        def fewer(record, metrics=metrics):
            record["metrics"], record["data"]["n"] = metrics, 5

        change_record(folder, key, fewer)
    assert "5 rows are too few to show any difference" in said(compare_results(folder))


def test_no_row_is_faster_than_a_control_where_none_is_quantized(tmp_path):
    times = {FP32: around(10), FP16: around(5)}
    text = said(compare_results(make(tmp_path, (FP32, FP16), ms=times)))
    assert "the fastest is Baseline FP16" in text and "The control" not in text


def drop(section, field=None):
    def change(record):
        if field:
            del record[section][field]
        else:
            del record[section]

    return change


def put(value, *path):
    def change(record):
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("metrics"), "metrics is missing"),
        (drop("size"), "size is missing"),
        (drop("provenance"), "provenance is missing"),
        (drop("variant", "label"), "variant.label is None, not text"),
        (put(None, "latency", 0, "median_ms"), "latency[].median_ms is None, not above 0"),
        (put(None, "metrics", "accuracy", "value"), "metrics.accuracy.value is None, not a number"),
        (put("0.9", "metrics", "f1_macro", "value"), "metrics.f1_macro.value is '0.9'"),
        (put(0.5, "metrics", "f1_macro", "value"), "but its record says 0.500000"),
        (put(0.5, "metrics", "nll", "low"), "nll (low end of its interval)"),
        (put(float("nan"), "size", "resident_bytes"), "size.resident_bytes is"),
        (drop("variant"), "does not say which variant it is of"),
    ],
)
def test_damaged_records_are_one_sentence(made, tmp_path, run_script, change, words):
    folder = shutil.copytree(made, tmp_path / "results")
    change_record(folder, NF4, change)
    refused(run_script(SCRIPT, "--results-dir", folder), words)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"), (FP32, NF4), ms={FP32: around(10), NF4: around(6)})


def refused(done, words):
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_damaged_files_beside_the_records_are_one_sentence(made, tmp_path, run_script):
    folder = shutil.copytree(made, tmp_path / "results")
    (folder / "records" / "x.json").mkdir()
    refused(run_script(SCRIPT, "--results-dir", folder), "x.json is not a record")
    (folder / "records" / "x.json").rmdir()
    (folder / "training_curve.pdf").write_bytes(b"%PDF-1.4 cut")
    refused(run_script(SCRIPT, "--results-dir", folder), "training_curve.pdf is damaged")
    (folder / "training_curve.pdf").unlink()
    names = ("quantization_error", "activation_outliers", "quantization_effect")
    for name in (*names, "quantization_choices"):
        (folder / f"{name}.csv").write_text("")
    refused(run_script(SCRIPT, "--results-dir", folder), "quantization_error.csv is damaged")


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("a", lambda f: f.assign(id=f["id"].replace(5, 10**12)), "the first has id 5"),
        ("a", lambda f: f.assign(id=f["id"].where(f["id"] != 5)), "cannot be read as predictions"),
        ("a", lambda f: f.assign(label=f["label"] + 0.5), "a fraction where a whole number"),
        ("a", lambda f: f.assign(label=None), "cannot be read as predictions"),
        ("n" * 240, lambda f: f, "60 printable letters"),
    ],
)
def test_outside_predictions_of_other_kinds(made, tmp_path, run_script, name, change, words):
    (tmp_path / "theirs").mkdir()
    frame = pd.DataFrame({"id": np.arange(2000), "label": np.arange(2000) % 4})
    frame[[f"logit_{i}" for i in range(4)]] = 2 * np.eye(4)[np.arange(2000) % 4] - 1
    change(frame).to_csv(tmp_path / "theirs" / f"{name}.csv", index=False)
    theirs = ("--predictions", tmp_path / "theirs", "--results-dir", made)
    refused(run_script(SCRIPT, *theirs), words)


def test_a_name_that_is_a_formula_elsewhere(made, tmp_path, run_script):
    (tmp_path / "theirs").mkdir()
    frame = pd.DataFrame({"id": np.arange(2000), "label": np.arange(2000) % 4})
    frame[[f"logit_{i}" for i in range(4)]] = 2 * np.eye(4)[np.arange(2000) % 4] - 1
    frame.to_csv(tmp_path / "theirs" / r"$\frac{$.csv", index=False)
    folder = shutil.copytree(made, tmp_path / "results")
    done = run_script(SCRIPT, "--predictions", tmp_path / "theirs", "--results-dir", folder)
    assert done.returncode == 0, done.stderr


def test_report_data_holds_no_absolute_path(tmp_path):
    folder = make(tmp_path, (FP32, NF4))

    def elsewhere(record):
        record["checkpoint"]["base_model"] = str(tmp_path / "small")
        record["data"]["name"] = str(tmp_path / "news")
        record["provenance"]["command"] += f" --base-model {tmp_path}/small"

    for key in (FP32, NF4):
        change_record(folder, key, elsewhere)
    comparison = compare_results(folder)
    assert str(tmp_path) not in typeset(comparison, tmp_path) + tables.markdown(comparison)
    assert report_data(comparison, most_changed(comparison), folder)["departures"]
