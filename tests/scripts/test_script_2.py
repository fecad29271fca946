"""Script 2 as a user runs it: on a tiny classifier, in the demo preset so that nothing is compiled."""

import json

import numpy as np
import pandas as pd
import pytest

from gpt2_quant.data import demo
from gpt2_quant.records import write_json

KEYS = ("int8_scratch", "int8_scratch_w8a8", "nf4_scratch")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_tokenizer):
    """A models folder in which the demo's base and corpus are made already and a (random)
    classifier stands.
    """
    from tiny_models import make_tiny_gpt2

    folder = tmp_path_factory.mktemp("script2")
    models = folder / "models"
    stamp = {"seed": 0, "code_sha256": demo._code_sha256()}
    demo._write_dataset(models / "dataset", 0, stamp)
    for name in ("base_gpt2", "baseline_gpt2"):
        make_tiny_gpt2(tiny_tokenizer).save_pretrained(models / name)
        tiny_tokenizer.save_pretrained(models / name)
    write_json(models / "base_gpt2" / demo.STAMP, stamp)
    return folder


@pytest.fixture(scope="module")
def flags(workplace):
    return [
        "--preset", "demo", "--device", "cpu", "--max-test-samples", 120,
        "--models-dir", workplace / "models", "--results-dir", workplace / "results",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(workplace, flags, run_script):
    finished = run_script("src/2_quantization_scratch.py", *flags)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished


def test_every_promised_file_is_there(done, workplace):
    results = workplace / "results"
    for key in KEYS:
        record = json.loads((results / "records" / f"{key}.json").read_text())
        assert record["variant"]["label"].startswith(("INT8 Scratch", "NF4 Scratch"))
        assert record["data"]["n"] == 120 and record["quantization"]["scheme"] == key
        assert record["latency"] and all(entry["median_ms"] > 0 for entry in record["latency"])
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
        assert len(pd.read_csv(results / name)) > 5
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
    assert sizes["nf4_scratch"]["tensor_bytes"] < sizes["int8_scratch_w8a8"]["tensor_bytes"]
    assert (
        sizes["int8_scratch"]["resident_bytes"]
        > 3.9 * sizes["int8_scratch"]["stored"]["tensor_bytes"]
    )
    for key in ("int8_scratch_w8a8", "nf4_scratch"):
        assert sizes[key]["resident_bytes"] == pytest.approx(
            sizes[key]["stored"]["tensor_bytes"], rel=1e-3
        )


def test_predictions_come_from_the_folder_as_reloaded(done, workplace):
    """The same texts through the saved folder, by hand, give the stored logits."""
    import torch

    from gpt2_quant.data.datasets import read_csv
    from gpt2_quant.data.tokens import load_tokenizer
    from gpt2_quant.models.loading import load_classifier

    texts, _ = read_csv(workplace / "models" / "dataset" / "test.csv")
    stored = pd.read_parquet(workplace / "results" / "predictions" / "int8_scratch_w8a8.parquet")
    model = load_classifier(workplace / "models" / "int8_scratch_w8a8", "cpu")
    tokenizer = load_tokenizer(workplace / "models" / "int8_scratch_w8a8")
    from gpt2_quant.data.datasets import smallest_digests

    texts = [texts[i] for i in smallest_digests(texts, 120)]
    for row in (0, 60, 119):
        with torch.no_grad():
            logits = (
                model(**tokenizer(texts[row], return_tensors="pt", truncation=True, max_length=128))
                .logits[0]
                .numpy()
            )
        expected = stored.loc[row, [f"logit_{i}" for i in range(4)]].to_numpy(dtype=np.float32)
        assert (
            np.abs(logits - expected).max() < 0.05
        )  # another padding, another rounding of the attention


def test_a_second_run_does_nothing_but_say_so(done, flags, workplace, run_script):
    before = (workplace / "models" / "nf4_scratch" / "model.safetensors").stat().st_mtime_ns
    again = run_script("src/2_quantization_scratch.py", *flags)
    assert again.returncode == 0 and "Complete for these flags" in again.stdout
    assert (workplace / "models" / "nf4_scratch" / "model.safetensors").stat().st_mtime_ns == before


def test_without_a_classifier_it_names_script_1(tmp_path, run_script):
    finished = run_script(
        "src/2_quantization_scratch.py", "--preset", "demo", "--device", "cpu",
        "--models-dir", tmp_path / "models", "--results-dir", tmp_path / "results",
    )  # fmt: skip
    assert finished.returncode == 2
    assert (
        "1_baseline_finetuning.py" in finished.stderr
        and len(finished.stderr.strip().splitlines()) == 1
    )


def test_help_answers_without_loading_torch(run_script):
    finished = run_script("src/2_quantization_scratch.py", "--help")
    assert (
        finished.returncode == 0
        and "--checkpoint" in finished.stdout
        and "nf4_scratch" in finished.stdout
    )
