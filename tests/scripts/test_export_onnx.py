"""`--export onnx` as a user gives it: after a training without it, up to the table; and without the
packages.
"""

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from tiny_models import ROOT, save_tiny_gpt2, write_news

from gpt2_quant.models.variants import BASELINE, FP8, ONNX, W8A8

FIRST, SECOND = "src/1_baseline_finetuning.py", "src/2_quantization_scratch.py"


@pytest.fixture(scope="module")
def flags(tmp_path_factory, tiny_tokenizer, tiny_texts) -> list:
    folder = tmp_path_factory.mktemp("onnx")
    write_news(folder / "data", tiny_texts, 300, 80)
    save_tiny_gpt2(folder / "base", tiny_tokenizer, head=False)
    return [
        "--preset", "demo", "--device", "cpu", "--base-model", folder / "base",
        "--dataset", folder / "data", "--models-dir", folder / "models",
        "--results-dir", folder / "results",
    ]  # fmt: skip


def folder_of(flags: list, flag: str) -> Path:
    return flags[flags.index(flag) + 1]


@pytest.fixture(scope="module")
def trained(flags, run_script) -> list:
    """`flags`, after script 1 without --export."""
    done = run_script(FIRST, *flags, "--epochs", 1)
    assert done.returncode == 0, done.stderr[-3000:]
    return flags


@pytest.fixture(scope="module")
def done(trained, run_script):
    """What scripts 1, 2 and 5 print, and the table."""
    said = [
        run_script(FIRST, *trained, "--epochs", 1, "--export", "onnx"),
        run_script(SECOND, *trained, "--export", "onnx"),
        run_script("src/5_compare_all_models.py", *trained),
    ]
    for each in said:
        assert each.returncode == 0, each.stderr[-3000:]
    table = pd.read_csv(folder_of(trained, "--results-dir") / "comparison_table.csv")
    return [each.stdout for each in said], table.set_index("key")


def test_an_export_after_the_training_does_not_train_again(done):
    (first, _, _), _ = done
    assert "Complete for these flags" in first and "updates in" not in first
    assert f"{ONNX[BASELINE.key].label}: accuracy" in first and "logits differ by" in first


def test_script_2_exports_what_it_can_and_says_what_it_cannot(done, trained):
    (_, second, _), _ = done
    for key, row in ONNX.items():
        made = folder_of(trained, "--models-dir") / row.folder
        assert {path.name for path in made.iterdir()} == {"model.onnx"}
        assert key == BASELINE.key or f"{row.label}: accuracy" in second
    assert f"{FP8.label} is not written as ONNX" in second
    assert not (folder_of(trained, "--models-dir") / FP8.folder / "onnx").exists()


def test_each_is_a_row_of_the_table_scored_and_timed(done, trained):
    (_, _, fifth), table = done
    results = folder_of(trained, "--results-dir")
    for key, row in ONNX.items():
        record = json.loads((results / "records" / f"{row.key}.json").read_text())
        assert row.label in fifth and table.loc[row.key, "Model"] == row.label
        checked = record["onnx"]
        assert 0 < checked["largest_logit_difference"] <= checked["bound"] and checked["n"] == 16
        # The graph's answers are the model's: all of them, but for W8A8's roundings.
        scores = [f"{table.loc[k, 'Accuracy']:.4f}" for k in (key, row.key)]
        assert scores[0] == scores[1] or key == W8A8.key
        assert table.loc[row.key, "Inference (ms)"] > 0
        # NF4's tables take 3 kB beside the codes.
        sizes = [table.loc[k, "stored_bytes"] for k in (key, row.key)]
        assert sizes[0] <= sizes[1] <= sizes[0] + 3072
        rows = pd.read_parquet(results / "predictions" / f"{row.key}.parquet")
        assert len(rows) == 80


def test_a_second_run_exports_nothing(done, trained, run_script):
    models = folder_of(trained, "--models-dir")
    files = [models / row.folder / "model.onnx" for row in ONNX.values()]
    before = [path.stat().st_mtime_ns for path in files]
    for command in ([FIRST, *trained, "--epochs", 1], [SECOND, *trained]):
        again = run_script(*command, "--export", "onnx")
        assert again.returncode == 0 and "Complete for these flags" in again.stdout
        assert "accuracy" not in again.stdout
    assert [path.stat().st_mtime_ns for path in files] == before


def test_rows_that_nobody_asked_for_are_not_missing(trained, run_script, tmp_path):
    results = folder_of(trained, "--results-dir")
    (tmp_path / "results").mkdir()
    for part in ("records", "predictions"):
        (tmp_path / "results" / part).mkdir()
        for path in (results / part).glob(f"{BASELINE.key}.*"):
            (tmp_path / "results" / part / path.name).write_bytes(path.read_bytes())
    flags = ["--preset", "demo", "--results-dir", tmp_path / "results"]
    done = run_script("src/5_compare_all_models.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "NF4 Scratch is missing" in done.stdout and "ONNX" not in done.stdout


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
@pytest.mark.parametrize("script", [FIRST, SECOND, "run_all_experiments.py"])
def test_without_a_package_the_flag_is_refused_at_once(
    script, package, flags, run_script, tmp_path
):
    (tmp_path / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}')"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is being loaded')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT / "src")])
    found = run_script(script, *flags, "--export", "onnx", PYTHONPATH=path)
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert package in line and "pip install -r requirements-dev.txt" in line
