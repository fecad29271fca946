"""Script 2 as a user runs it: on a tiny classifier, as the demo, which compiles nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from tiny_models import save_tiny_gpt2, write_news

from gpt2_quant.models.variants import BASELINE, INT8, NF4, W8A8, made_by

SCRIPT = "src/2_quantization_scratch.py"
KEYS = tuple(variant.key for variant in made_by(2))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_tokenizer, tiny_texts):
    """data/ in AG News' form, and a models folder in which a (random) classifier stands."""
    folder = tmp_path_factory.mktemp("script2")
    write_news(folder / "data", tiny_texts, 440, 160)
    save_tiny_gpt2(folder / "models" / BASELINE.folder, tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def flags(workplace):
    models = workplace / "models"
    return [
        "--preset", "demo", "--device", "cpu", "--max-test-samples", 120,
        "--base-model", models / BASELINE.folder, "--dataset", workplace / "data",
        "--models-dir", models, "--results-dir", workplace / "results",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(workplace, flags, run_script):
    finished = run_script(SCRIPT, *flags)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


def test_every_promised_file_is_there(done, workplace):
    results = workplace / "results"
    for key in KEYS:
        record = json.loads((results / "records" / f"{key}.json").read_text())
        assert record["variant"]["label"].startswith(("INT8 Scratch", "FP8 Scratch", "NF4 Scratch"))
        assert record["data"]["n"] == 120 and record["quantization"]["scheme"] == key
        emulated = record["quantization"].get("emulated", False)  # FP8 off its GPUs: not timed
        assert bool(record["latency"]) != emulated
        assert all(entry["median_ms"] > 0 for entry in record["latency"])
        assert len(pd.read_parquet(results / "predictions" / f"{key}.parquet")) == 120
        assert (results / "predictions" / f"{key}.validation.parquet").is_file()
        assert (results / f"{key}_confusion_matrix.png").stat().st_size > 5000
        for name in ("config.json", "model.safetensors", "README.md", "tokenizer.json"):
            assert (workplace / "models" / key / name).is_file()
    for name in (
        "quantization_error.csv",
        "quantization_effect.csv",
        "activation_outliers.csv",
        "quantization_choices.csv",
    ):
        assert len(pd.read_csv(results / name)) > 2
    assert (results / "quantization_error_heatmap.png").stat().st_size > 5000


def test_it_says_accuracy_latency_and_the_short_version_of_the_error(done):
    for text in (
        "INT8 Scratch W8A8",
        "accuracy",
        "SQNR",
        "median channel",
        "KL to the float model",
    ):
        assert text in done.stdout
    assert "Traceback" not in done.stderr


def test_sizes_shrink_in_order(done, workplace):
    sizes = {
        key: json.loads((workplace / "results" / "records" / f"{key}.json").read_text())["size"]
        for key in KEYS
    }
    stored = {key: size["stored"]["tensor_bytes"] for key, size in sizes.items()}
    assert sizes[NF4.key]["tensor_bytes"] < sizes[W8A8.key]["tensor_bytes"]
    assert sizes[INT8.key]["resident_bytes"] > 3.9 * stored[INT8.key]
    for key in (W8A8.key, NF4.key):
        assert sizes[key]["resident_bytes"] == pytest.approx(stored[key], rel=1e-3)


def test_predictions_come_from_the_folder_as_reloaded(done, flags, workplace):
    """The same texts through the saved folder, by hand, give the stored logits."""
    import torch

    from gpt2_quant.cli import parser, settings_from
    from gpt2_quant.data.datasets import load_splits
    from gpt2_quant.data.tokens import load_tokenizer
    from gpt2_quant.models.loading import load_variant

    settings = settings_from(parser("A test.").parse_args(list(map(str, flags))))
    texts = load_splits(settings)["test"].texts
    stored = pd.read_parquet(workplace / "results" / "predictions" / f"{W8A8.key}.parquet")
    model = load_variant(W8A8.key, workplace / "models", "cpu")
    tokenizer = load_tokenizer(workplace / "models" / W8A8.folder)
    for row in (0, 60, 119):
        tokens = tokenizer(texts[row], return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            logits = model(**tokens).logits[0].numpy()
        expected = stored.loc[row, [f"logit_{i}" for i in range(4)]].to_numpy(dtype=np.float32)
        # Another padding, another rounding of the attention.
        assert np.abs(logits - expected).max() < 0.05


def test_a_second_run_does_nothing_but_say_so(done, flags, workplace, run_script):
    weights = workplace / "models" / NF4.folder / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_script(SCRIPT, *flags)
    assert again.returncode == 0 and "Complete for these flags" in again.stdout
    assert weights.stat().st_mtime_ns == before


def test_without_a_classifier_it_names_script_1(tmp_path, run_script):
    finished = run_script(
        SCRIPT, "--preset", "demo", "--device", "cpu",
        "--models-dir", tmp_path / "models", "--results-dir", tmp_path / "results",
    )  # fmt: skip
    assert finished.returncode == 2
    assert "1_baseline_finetuning.py" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_help_answers_without_loading_torch(run_script, without_torch):
    finished = run_script(SCRIPT, "--help", **without_torch)
    assert finished.returncode == 0, finished.stderr
    assert "--checkpoint" in finished.stdout and "NF4 Scratch" in finished.stdout


def test_the_work_loads_torch(workplace, flags, run_script, without_torch):
    """What the test before relies on: with the work to do, the same environment ends the script."""
    finished = run_script(SCRIPT, *flags, "--overwrite", **without_torch)
    assert finished.returncode == 1 and "torch is being loaded" in finished.stderr
