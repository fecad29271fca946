"""Script 5 as a user runs it."""

import csv
import resource
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pypdf
import pytest
from result_folders import STEPS, change_record, classifier, logits, rounded, write_results
from tiny_models import ROOT

from gpt2_quant.compare import tables
from gpt2_quant.compare.changed_texts import most_changed
from gpt2_quant.compare.comparison import compare_results
from gpt2_quant.measure import scores
from gpt2_quant.measure.predictions import save_predictions
from gpt2_quant.reports import compile_report
from gpt2_quant.reports.quantization_report import report_data

SCRIPT = "src/5_compare_all_models.py"
PUBLISHED_FIGURES = [
    "baseline_confusion_matrix",
    "int8_scratch_confusion_matrix",
    "int8_bitsandbytes_confusion_matrix",
    "nf4_bitsandbytes_confusion_matrix",
    "performance_comparison",
    "efficiency_comparison",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory, run_script):
    """A results folder after script 5 has run, and what it printed."""
    folder = write_results(tmp_path_factory.mktemp("results"))
    done = run_script(SCRIPT, "--results-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def results(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "results")


def pages(path):
    return [" ".join(page.extract_text().split()) for page in pypdf.PdfReader(path).pages]


def test_every_file_is_there(made):
    folder, _ = made
    names = [f"comparison_table.{kind}" for kind in ("csv", "md", "tex")]
    names += ["changed_texts.csv", "answer.txt", "report_2.pdf"]
    names += [f"{name}{suffix}" for name in PUBLISHED_FIGURES for suffix in (".png", ".pdf")]
    more = "pareto", "paired_differences", "latency_sweep", "reliability"
    names += [f"{name}.png" for name in more]
    assert [name for name in names if not (folder / name).is_file()] == []
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_the_printed_table_is_readable_at_100_columns(made):
    _, printed = made
    table, answer = printed.split("written to")
    assert max(map(len, table.splitlines())) <= 100
    assert "What quantization costs on this data:" in answer
    assert "Baseline FP32" in table and "NF4 BitsAndBytes" in table
    assert "report_1.pdf is left out: run python src/4_evaluation_metrics.py first" in printed


def test_an_unchanged_second_run_shows_the_table_and_does_nothing(made, run_script):
    folder, _ = made
    before = (folder / "report_2.pdf").stat().st_mtime_ns
    done = run_script(SCRIPT, "--results-dir", folder)
    assert done.returncode == 0 and done.stdout.startswith("Complete for these flags")
    assert (folder / "comparison_table.md").read_text() in done.stdout
    assert (folder / "report_2.pdf").stat().st_mtime_ns == before


def test_the_report_holds_the_tables_numbers(made):
    folder, _ = made
    text = " ".join(pages(folder / "report_2.pdf")).replace("\u00a0", " ")
    with open(folder / "comparison_table.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("Model", "Accuracy", "F1-Score", "Size (MB)", "Compression"):
                assert row[name] in text, row
    sections = (
        "In short", "Paired tests", "Calibration", "Size", "Latency", "trade-off",
        "error comes from", "claims", "Threats to validity", "provenance",
    )  # fmt: skip
    for section in sections:
        assert section in text
    assert "No error analysis in these records: python src/2_quantization_scratch.py" in text


def test_it_builds_from_two_variants_and_says_what_is_missing(tmp_path, run_script):
    folder = write_results(tmp_path, ("baseline", "int8_scratch"), preset="demo")
    done = run_script(SCRIPT, "--preset", "demo", "--results-dir", folder, "--format", "markdown")
    assert done.returncode == 0, done.stderr
    sentence = "NF4 BitsAndBytes is missing: run python src/3_bitsandbytes_quant.py --preset demo."
    assert sentence in done.stdout and done.stdout.startswith("| Model |")
    assert sentence in " ".join(pages(folder / "report_2.pdf"))


def test_the_report_builds_from_the_baseline_alone(tmp_path):
    comparison = compare_results(write_results(tmp_path, ("baseline",)))
    compile_report(
        "report_2.typ",
        report_data(comparison, most_changed(comparison), tmp_path),
        {},
        tmp_path / "report_2.pdf",
    )
    assert "nothing to compare it with" in " ".join(pages(tmp_path / "report_2.pdf"))
    assert r"\toprule" in tables.latex(comparison)


def test_the_report_shows_script_2s_error_analysis(tmp_path):
    """With tables in script 2's columns, made from the outside classifier's own matrix."""
    comparison = compare_results(write_results(tmp_path, ("baseline", "int8_scratch")))
    weights = classifier()["weights"]
    rows = []
    for scheme, step in (("int8 per tensor", 0.02), ("nf4", 1.0)):
        error = rounded(step) - weights
        sqnr = 10 * np.log10((weights**2).sum() / (error**2).sum())
        spread = abs(weights).max() / weights.std()
        rows.append({
            "layer": None, "matrix": "score", "scheme": scheme, "bits_per_weight": 8.0,
            "sqnr_db": sqnr, "absmax_over_sigma": spread,
        })  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "quantization_error.csv", index=False)
    outlier = {"layer": 0, "matrix": "attn.c_attn", "top_channel": 42, "outlier_ratio": 12.5}
    pd.DataFrame([outlier]).to_csv(tmp_path / "activation_outliers.csv", index=False)
    effect = {"scheme": "W8A8", "part": "all", "kl_nats": 3.4e-5, "accuracy": 0.9}
    effect |= {"agreement": 0.99, "n": 512}
    pd.DataFrame([effect]).to_csv(tmp_path / "quantization_effect.csv", index=False)
    choice = {**effect, "choice": "absmax scales", "taken": True}
    pd.DataFrame([choice]).to_csv(tmp_path / "quantization_choices.csv", index=False)
    data = report_data(comparison, most_changed(comparison), tmp_path)
    compile_report("report_2.typ", data, {}, tmp_path / "report_2.pdf")
    text = " ".join(pages(tmp_path / "report_2.pdf"))
    assert f"{rows[0]['sqnr_db']:.1f}" in text and f"{rows[1]['sqnr_db']:.1f}" in text
    assert "channel 42: 12.5×" in text and "3.4·10" in text and "on 512 validation texts" in text


def test_someone_elses_predictions_alone(tmp_path, run_script):
    (tmp_path / "theirs").mkdir()
    frame = pd.DataFrame({"id": np.arange(1000), "label": classifier()["labels"]})
    for name in ("float", "four_bits"):
        values = logits("baseline" if name == "float" else "nf4_scratch")
        frame.assign(logits=[str(row.tolist()) for row in values]).to_csv(
            tmp_path / "theirs" / f"{name}.csv", index=False
        )
    theirs = "--predictions", tmp_path / "theirs", "--baseline", "float"
    done = run_script(SCRIPT, "--results-dir", tmp_path, *theirs)
    assert done.returncode == 0, done.stderr
    assert "four bits" in done.stdout
    assert (tmp_path / "four_bits_confusion_matrix.png").is_file()
    assert "only predictions were given" in " ".join(pages(tmp_path / "report_2.pdf"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--baseline", "mine"], "the baseline mine has no results"),
        (["--predictions", "nowhere"], "--predictions nowhere: there is no such folder"),
        (["--format", "html"], "invalid choice: 'html'"),
    ],
)
def test_faults_are_one_sentence_and_exit_code_2(made, run_script, arguments, words):
    done = run_script(SCRIPT, "--results-dir", made[0], *arguments)
    assert done.returncode == 2
    assert (
        words in done.stderr
        and "Traceback" not in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_two_presets_are_refused_and_nothing_is_written(tmp_path, run_script):
    folder = write_results(tmp_path, ("baseline", "nf4_scratch"))
    change_record(folder, "nf4_scratch", lambda record: record["settings"].update(preset="demo"))
    done = run_script(SCRIPT, "--results-dir", folder)
    assert done.returncode == 2
    assert (
        "these results come from two presets (baseline has paper and nf4_scratch has demo)"
        in done.stderr
    )
    assert not (folder / "comparison_table.csv").exists()


def processor_seconds(call) -> float:
    """Of the processes that `call()` starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
def test_ten_variants_of_7600_rows_take_less_than_13_loads_of_its_libraries(tmp_path, run_script):
    """In processor time, which what else runs changes little, and in a unit of this machine's own:
    9 to 10 loads, of 3 s each, on an AMD EPYC of 2021.
    """
    folder = write_results(tmp_path / "results")
    rows = np.resize(np.arange(1000), 7600)
    labels = classifier()["labels"][rows]
    for key in STEPS:
        save_predictions(folder, key, labels, logits(key)[rows])
        metrics = scores.classification_scores(labels, logits(key)[rows], resamples=500)
        change_record(folder, key, lambda record, metrics=metrics: record.update(metrics=metrics))
        change_record(folder, key, lambda record: record["data"].update(n=7600))
    (tmp_path / "theirs").mkdir()
    for number in range(3):
        frame = pd.DataFrame(
            logits("nf4_scratch")[rows] * (1 + number), columns=[f"logit_{i}" for i in range(4)]
        )
        frame.assign(id=range(7600), label=labels).to_parquet(
            tmp_path / "theirs" / f"number_{number}.parquet"
        )
    libraries = "import matplotlib.pyplot, pandas, scipy.stats, sklearn.metrics"
    load = partial(subprocess.run, [sys.executable, "-c", libraries], check=True)
    load()  # from the disk
    unit = min(processor_seconds(load) for _ in range(2))

    def compare():
        flags = "--results-dir", folder, "--predictions", tmp_path / "theirs"
        done = run_script(SCRIPT, *flags, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr

    assert processor_seconds(compare) < 13 * unit


def test_help_imports_nothing_heavy(run_script):
    done = run_script(SCRIPT, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "--predictions" in done.stdout
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "gpt2_quant.cli" in imported
    assert not imported & {"torch", "pandas", "scipy", "matplotlib", "transformers"}


def test_readme_shows_the_table_of_the_committed_results():
    """What `--write-readme` would write now is what README holds."""
    if not (ROOT / "results" / "records" / "baseline.json").is_file():
        pytest.skip("results/ holds no reference run: python run_all_experiments.py makes it")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = tables.README_MARKS
    shown = text[text.index(begin) + len(begin) : text.index(end)]
    assert shown.strip() == tables.markdown(compare_results(ROOT / "results")).strip()
