"""What may share a table, what the rows say, and the tables made of them."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from result_folders import STEPS, change_record, classifier, logits, write_results

from gpt2_quant import records
from gpt2_quant.cli import parser, settings_from
from gpt2_quant.compare import claims, tables
from gpt2_quant.compare.changed_texts import most_changed, printed, read_test_texts
from gpt2_quant.compare.comparison import MIB, compare_results
from gpt2_quant.compare.result_files import Source, _check_scores
from gpt2_quant.data.datasets import load_splits
from gpt2_quant.data.labels import LABELS
from gpt2_quant.errors import UserError
from gpt2_quant.measure import paired
from gpt2_quant.measure.scores import classification_scores


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Results of all variants but TF32's."""
    return write_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def comparison(finished):
    return compare_results(finished)


@pytest.fixture
def results(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "results")


def rewrite(folder, key, change):
    """Apply `change(frame) -> frame` to the predictions of `key`."""
    path = folder / "predictions" / f"{key}.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


def test_rows_hold_what_the_predictions_say(comparison):
    labels = classifier()["labels"]
    assert [row.key for row in comparison.entries] == list(STEPS)
    row = comparison.row("nf4_scratch")
    direct = paired.compare(labels, logits("baseline"), logits("nf4_scratch"))
    assert {name: row.against[name] for name in direct} == direct
    assert (
        row.metrics["accuracy"]["value"] == (logits("nf4_scratch").argmax(axis=1) == labels).mean()
    )
    family = [other.against["mcnemar_p"] for other in comparison.others]
    adjusted = [other.against["mcnemar_holm_p"] for other in comparison.others]
    assert len(family) == len(STEPS) - 1 and adjusted == pytest.approx(paired.holm(family))
    assert comparison.baseline is comparison.row("baseline") and not comparison.baseline.against


def test_sizes_are_the_files(comparison, finished):
    for row in comparison.rows:
        whole = comparison.row("baseline").size["stored_bytes"]
        assert row.size["compression"] == whole / row.size["stored_bytes"]
        if row.key != "baseline_fp16":
            path = finished / "weights" / f"{row.key}.safetensors"
            header = row.record["size"]["stored"]["header_bytes"]
            assert header + row.size["stored_bytes"] == path.stat().st_size


def test_permuted_rows_are_put_in_order(results, comparison):
    rewrite(results, "nf4_scratch", lambda frame: frame.sample(frac=1, random_state=0))
    assert (
        compare_results(results).row("nf4_scratch").against == comparison.row("nf4_scratch").against
    )


def test_a_missing_variant_is_a_row_that_names_its_script(results):
    (results / "records" / "nf4_bitsandbytes.json").unlink()
    comparison = compare_results(results)
    (gap,) = comparison.missing
    assert gap is comparison.entries[-2] and comparison.row(gap.key) is None
    assert gap.sentence == "NF4 BitsAndBytes is missing: run python src/3_bitsandbytes_quant.py"


def test_another_baseline_turns_the_comparison_round(finished, comparison):
    turned = compare_results(finished, "nf4_scratch")
    assert turned.baseline.key == "nf4_scratch" and not turned.baseline.against
    assert turned.baseline.size["compression"] == 1
    ours, theirs = comparison.row("nf4_scratch").against, turned.row("baseline").against
    won, lost = ours["only_variant_right"], ours["only_baseline_right"]
    assert won != lost
    assert (theirs["only_variant_right"], theirs["only_baseline_right"]) == (lost, won)
    assert theirs["mcnemar_p"] == ours["mcnemar_p"]
    values = [pair["difference"]["accuracy"]["value"] for pair in (ours, theirs)]
    assert values[0] == pytest.approx(-values[1]) and values[0] != 0


def changed(change):
    """A fault: `change(frame) -> frame` applied to one variant's predictions."""
    return lambda folder: rewrite(folder, "int8_scratch", change)


def of_validation(change):
    return lambda folder: rewrite(folder, "int8_scratch.validation", change)


def of_other_labels(folder):
    def turn(frame):
        return frame.assign(label=(frame["label"] + (frame["id"] == 8)) % 4)

    rewrite(folder, "int8_scratch", turn)
    labels = pd.read_parquet(folder / "predictions/int8_scratch.parquet")["label"]
    accuracy = (logits("int8_scratch").argmax(axis=1) == labels).mean()
    change_record(
        folder, "int8_scratch", lambda record: record["metrics"]["accuracy"].update(value=accuracy)
    )


def of_another_model(folder):
    shutil.copy(
        folder / "predictions/nf4_scratch.parquet", folder / "predictions/int8_scratch.parquet"
    )


def copied_record(folder):
    shutil.copy(folder / "records/int8_scratch.json", folder / "records/mine.json")


def in_record(key, section, field, value):
    return lambda folder: change_record(
        folder, key, lambda record: record[section].__setitem__(field, value)
    )


def in_latency(**entries):
    return lambda folder: change_record(
        folder, "nf4_scratch", lambda record: record["latency"][0].update(entries)
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            changed(lambda frame: frame.drop(index=17)),
            "1 test rows are missing, the first has id 17",
        ),
        (
            changed(lambda frame: frame.assign(logit_2=frame["logit_2"].where(frame["id"] != 5))),
            "1 rows have NaN or infinite logits, the first is row 5",
        ),
        (
            changed(lambda frame: frame.assign(id=frame["id"].replace(4, 3))),
            "id 3 stands there more than once",
        ),
        (changed(lambda frame: frame.assign(label="a")), "cannot be read as predictions"),
        (changed(lambda frame: frame.assign(logit_0=[[1]] * len(frame))), "cannot be read as"),
        (changed(lambda frame: frame.assign(label=[None] * len(frame))), "cannot be read as"),
        (of_validation(lambda frame: frame[:5]), "has 5 validation rows and baseline has"),
        (
            of_validation(lambda frame: frame.assign(label=(frame["label"] + 1) % 4)),
            "has other validation labels than baseline",
        ),
        (of_other_labels, "1 rows differ, the first is id 8"),
        (of_another_model, "but its record says"),
        (copied_record, "mine.json is a copy of the record of int8_scratch"),
        (in_record("nf4_scratch", "settings", "preset", "demo"), "two presets"),
        (in_record("nf4_scratch", "settings", "max_length", 64), "two text lengths"),
        (
            in_record("nf4_scratch", "checkpoint", "baseline_sha256", "6" * 64),
            "two baseline checkpoints",
        ),
        (in_record("nf4_scratch", "data", "sha256", "8" * 64), "two test sets"),
        (in_record("nf4_scratch", "data", "n", 900), "its record was made from 900"),
        (in_record("nf4_scratch", "data", "classes", ["a", "b"]), "record was made from 2"),
        (in_record("nf4_scratch", "data", "classes", [1, 2, 3, 4]), "classes.. is 1, not text"),
        (in_record("nf4_scratch", "variant", "label", "Baseline FP32"), "no name for a row"),
        (in_record("nf4_scratch", "variant", "label", "a\nb"), "1 to 60 printable letters"),
        (in_latency(values_ms=[]), "median_ms is .*, which its values"),
        (in_latency(median_ms=1e9), "median_ms is 1000000000.0, which its values"),
        (in_latency(median_low_ms=1e9), "which its values or its interval do not give"),
        (in_latency(batch_size=0), "batch_size is 0, not above 0"),
        (in_record("nf4_scratch", "size", "file_bytes", 12), "do not add up to the file's bytes"),
        (in_record("nf4_scratch", "size", "tensor_bytes", 12), "do not add up"),
        (
            lambda folder: (folder / "predictions/nf4_scratch.parquet").unlink(),
            "nf4_scratch.parquet is missing",
        ),
    ],
)
def test_what_must_not_share_a_table_is_refused_in_one_sentence(results, fault, words):
    fault(results)
    with pytest.raises(UserError, match=words) as refusal:
        compare_results(results)
    assert "\n" not in str(refusal.value)


def test_no_results_and_no_baseline(results, tmp_path):
    with pytest.raises(
        UserError, match="holds no results to compare: run python src/1_baseline_finetuning.py"
    ):
        compare_results(tmp_path / "empty")
    with pytest.raises(UserError, match="the baseline mine has no results"):
        compare_results(results, "mine")


def test_identical_logits_are_pointed_out(results):
    for suffix in ("", ".validation"):
        shutil.copy(
            results / f"predictions/baseline{suffix}.parquet",
            results / f"predictions/baseline_fp16{suffix}.parquet",
        )
    record = records.load_record(results / "records/baseline.json")
    change_record(results, "baseline_fp16", lambda other: other.update(metrics=record["metrics"]))
    assert (
        "Baseline FP32 and Baseline FP16 answer with identical logits"
        in tables.notes(compare_results(results))[-1]
    )


def verdicts(comparison):
    return {claim.claim: claim.verdict for claim in claims.published_claims(comparison)}


def test_another_session_is_marked(results):
    def retime(record):
        for entry in record["latency"]:
            entry["session"] = "two"

    change_record(results, "nf4_bitsandbytes", retime)
    comparison = compare_results(results)
    assert tables.notes(comparison)[0].startswith(
        "NF4 BitsAndBytes: latency marked * was timed in another process"
    )
    printed = tables.printed_table(comparison).set_index("Model")["Inference (ms)"]
    assert printed.str.endswith("*").sum() == 1 and printed["NF4 BitsAndBytes"].endswith("*")
    assert verdicts(comparison)["NF4 is 40% faster than FP32"] == "not measured"


def outside_files(folder, key="theirs"):
    """The same predictions as a CSV with a column a logit and as a parquet file with a column of
    lists.
    """
    folder.mkdir()
    values, labels = logits("nf4_scratch"), classifier()["labels"]
    frame = pd.DataFrame({"id": np.arange(1000), "label": labels})
    frame.assign(**{f"logit_{i}": values[:, i] for i in range(4)}).to_csv(
        folder / f"{key}.csv", index=False
    )
    frame.assign(logits=list(values.astype(float))).to_parquet(folder / f"{key}_lists.parquet")
    return folder


def test_an_outside_classifier_joins(results, tmp_path, comparison):
    joined = compare_results(results, predictions=outside_files(tmp_path / "outside"))
    assert [row.key for row in joined.rows] == [*STEPS, "theirs", "theirs_lists"]
    ours = comparison.row("nf4_scratch").against
    for key in ("theirs", "theirs_lists"):
        row = joined.row(key)
        assert row.against["only_baseline_right"] == ours["only_baseline_right"]
        assert row.against["kl_mean"] == pytest.approx(ours["kl_mean"], rel=1e-5)
        assert not row.size and not row.latency and row.temperature is None


def test_outside_classifiers_alone(tmp_path):
    comparison = compare_results(tmp_path / "none", "theirs", outside_files(tmp_path / "outside"))
    assert [row.key for row in comparison.rows] == ["theirs", "theirs_lists"]
    with pytest.raises(UserError, match="none of the rows has a record"):
        read_test_texts(comparison, "anywhere")
    assert "theirs lists" in tables.terminal(comparison)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "baseline.csv",
            "id,label,logit_0,logit_1\n0,0,1,2\n",
            "there is a row named baseline already",
        ),
        ("a.csv", "id,label,score_0\n0,0,1\n", "its columns are id, label, score_0"),
        ("a.csv", "id,logit_0,logit_1\n0,0,1\n", "cannot be read as predictions"),
        ("a.csv", "id,label,logit_0,logit_1\n0,0,1,x\n", "cannot be read as predictions"),
        ("a.csv", 'id,label,logits\n0,0,"[1, 2]"\n1,0,"[1]"\n', "cannot be read as predictions"),
        ("a.csv", "", "cannot be read as predictions"),
        ("a.csv", "id,label,logit_0,logit_1\n-1,0,1,2\n0,0,1,2\n", "1 test rows are missing"),
        ("a.csv", "id,label,logit_0,logit_1\n0,0,0.9,0.1\n1,1,0.3,0.7\n", "rows are probabilities"),
        ("a.parquet", "no parquet", "cannot be read as predictions"),
        (
            "a.csv",
            "id,label,logit_0,logit_1\n0,0,1,-2\n",
            "a has 1 test rows and baseline has 1000",
        ),
        ("a.txt", "", "holds no .csv or .parquet file"),
    ],
)
def test_outside_files_that_do_not_fit(results, tmp_path, name, text, words):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / name).write_text(text)
    with pytest.raises(UserError, match=words):
        compare_results(results, predictions=tmp_path / "outside")


def test_csv_begins_as_published(comparison, tmp_path):
    path = tables.write_tables(comparison, tmp_path)[0]
    assert path.read_text().startswith(
        "Model,Accuracy,F1-Score,Size (MB),Inference (ms),Compression,"
    )
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(comparison.rows, rows, strict=True):
        assert line["Model"] == row.label
        assert line["Accuracy"] == f"{row.metrics['accuracy']['value']:.4f}"
        assert line["Size (MB)"] == f"{row.size['stored_bytes'] / MIB:.2f}"
        assert line["Compression"] == f"{row.size['compression']:.2f}"
        assert float(line["accuracy_value"]) == row.metrics["accuracy"]["value"]
    names = list(rows[0])
    assert len({name.lower() for name in names}) == len(names)
    assert all(name == name.lower() and " " not in name for name in names[6:])
    assert not [name for name in names if all(line[name] == "" for line in rows)]


def test_the_terminal_table_fits_in_100_columns(comparison, results):
    """With names, discordant counts and times as long as they come."""

    def slow(record):
        for entry in record["latency"]:
            timed = dict.fromkeys(("median_ms", "median_low_ms", "median_high_ms"), 123456.789)
            entry.update(timed, values_ms=[123456.789], session="two")
        record["variant"]["label"] = "A model with quite a long name"

    change_record(results, "nf4_scratch", slow)
    changed = compare_results(results)
    changed.row("nf4_scratch").against.update(only_variant_right=1234, only_baseline_right=5678)
    for table in (tables.terminal(comparison), tables.terminal(changed)):
        assert max(map(len, table.splitlines())) <= 100
    assert "123457*" in tables.terminal(changed)  # rounded, not cut


def test_markdown_and_latex_have_every_row_and_column(comparison):
    lines = [line for line in tables.markdown(comparison).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(comparison.rows)
    assert {line.count("|") for line in lines} == {11}
    latex = tables.latex(comparison)
    body = latex[latex.index(r"\midrule") : latex.index(r"\bottomrule")].splitlines()[1:]
    assert len(body) == len(comparison.rows)
    assert all(line.count("&") == 9 and line.endswith(r"\\") for line in body)


def test_readme_table_is_written_between_its_marks_and_only_once(comparison, tmp_path):
    readme = tmp_path / "README.md"
    begin, end = tables.README_MARKS
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert tables.write_readme(comparison, readme)
    text = readme.read_text()
    assert (
        text.startswith(f"before\n{begin}\n| Model |")
        and text.endswith(f"{end}\nafter\n")
        and "old" not in text
    )
    assert not tables.write_readme(comparison, readme)
    readme.write_text("no marks")
    with pytest.raises(UserError, match=f"lacks the lines {begin} and {end}"):
        tables.write_readme(comparison, readme)
    assert readme.read_text() == "no marks"


def test_most_changed_texts_are_those_of_largest_divergence(comparison):
    rows = most_changed(comparison, 10)
    baseline = logits("baseline")
    kl = np.stack([paired.divergence(baseline, logits(key)) for key in list(STEPS)[1:]])
    assert list(rows["kl"]) == pytest.approx(np.sort(kl.max(axis=0))[::-1][:10])
    first = rows.iloc[0]
    assert first["id"] == kl.max(axis=0).argmax()
    assert first["by"] == comparison.others[kl[:, first["id"]].argmax()].label
    assert first["before"] == LABELS[baseline[first["id"]].argmax()]


def test_texts_are_shown_only_when_their_fingerprint_is_the_records(results, ag_news_dir):
    for key in STEPS:
        change_record(results, key, lambda record: record["settings"].update(max_test_samples=1000))
    with pytest.raises(UserError, match="its sha256 differs"):
        read_test_texts(compare_results(results), str(ag_news_dir))
    args = parser("").parse_args(
        ["--device", "cpu", "--dataset", str(ag_news_dir), "--max-test-samples", "1000"]
    )
    split = load_splits(settings_from(args))["test"]
    for key in STEPS:
        change_record(results, key, lambda record: record["data"].update(sha256=split.sha256))
    comparison = compare_results(results)
    texts = read_test_texts(comparison, str(ag_news_dir))
    assert texts == split.texts
    rows = most_changed(comparison)
    shown = printed(rows, texts)
    assert max(map(len, shown.splitlines())) <= 100
    assert all(" ".join(texts[i].split()) in " ".join(shown.split()) for i in rows["id"])


def test_the_f1_interval_of_a_rare_class_may_jump():
    """Of 150 classes with three rows each some F1 has few values, and 2.5% lies between two."""
    rng = np.random.default_rng(2)
    labels, logits = rng.integers(0, 150, 500), rng.normal(size=(500, 150))
    logits[np.arange(500), labels] += 2.5
    metrics, again = (classification_scores(labels, logits, n) for n in (10_000, 1000))
    widths = {name: score["high"] - score["low"] for name, score in again.items()}
    moved = {n for n in again if abs(metrics[n]["low"] - again[n]["low"]) > widths[n] / 4 + 1e-6}
    moved |= {n for n in again if abs(metrics[n]["high"] - again[n]["high"]) > widths[n] / 4 + 1e-6}
    assert moved == {"f1_104"}
    source = Source("mine", "Mine", labels, logits, None, {"metrics": metrics})
    _check_scores(source, Path("mine.parquet"))
    metrics["f1_104"]["value"] = 0.123
    with pytest.raises(UserError, match="gives f1_104"):
        _check_scores(source, Path("mine.parquet"))
