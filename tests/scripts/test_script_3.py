"""Script 3 as a user runs it: on someone's classifier, a second time, and before script 1."""

import json
import shutil

import pytest
from tiny_models import save_tiny_gpt2, write_news

from gpt2_quant.measure.predictions import load_predictions
from gpt2_quant.models import loading as checkpoints

SCRIPT = "src/3_bitsandbytes_quant.py"
QUANTIZED = ("int8_bitsandbytes", "nf4_bitsandbytes")
# A float16 row only where the CPU has that arithmetic, and none in TF32, which is a GPU's.
HALF = ("baseline_fp16",) if checkpoints.has_half_arithmetic("cpu") else ()
KEYS = ("baseline", *HALF, *QUANTIZED)


@pytest.fixture(scope="module")
def ground(tiny_tokenizer, tiny_texts, tmp_path_factory):
    """data/ in AG News' form, and a tiny classifier beside it."""
    folder = tmp_path_factory.mktemp("ground")
    write_news(folder / "data", tiny_texts, 200, 40)
    save_tiny_gpt2(folder / "classifier", tiny_tokenizer)
    return folder


def flags(ground, *more):
    folders = {name: ground / name for name in ("data", "models", "results")}
    return (
        "--dataset", folders["data"], "--models-dir", folders["models"],
        "--results-dir", folders["results"], "--device", "cpu", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(ground, run_script):
    """One run on a checkpoint that is not script 1's; torch.compile, which takes a minute here,
    hands models through.
    """
    quick = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    done = run_script(SCRIPT, *flags(ground, "--checkpoint", ground / "classifier"), **quick)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_help_names_the_flag_without_loading_torch(run_script, without_torch):
    done = run_script(SCRIPT, "--help", **without_torch)
    assert done.returncode == 0, done.stderr
    assert "--checkpoint" in done.stdout and "LLM.int8()" in done.stdout


def test_before_script_1_it_says_what_to_run(ground, run_script, tmp_path):
    done = run_script(SCRIPT, *flags(ground, "--models-dir", tmp_path / "empty"))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "python src/1_baseline_finetuning.py" in done.stderr


def test_a_damaged_checkpoint_is_one_sentence(ground, run_script, tmp_path):
    shutil.copytree(ground / "classifier", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run_script(
        SCRIPT,
        *flags(ground, "--results-dir", tmp_path / "results", "--checkpoint", tmp_path / "cut"),
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "damaged or cut short" in done.stderr


def test_every_row_is_recorded_and_timed_with_the_others(ground, finished):
    records = {
        key: json.loads((ground / "results" / "records" / f"{key}.json").read_text())
        for key in KEYS
    }
    sessions = {entry["session"] for record in records.values() for entry in record["latency"]}
    assert len(sessions) == 1
    assert len({record["checkpoint"]["baseline_sha256"] for record in records.values()}) == 1
    for key, record in records.items():
        assert (
            record["data"]["n"] == 40
            and record["size"]["resident_bytes"] == record["memory"]["resident_bytes"]
        )
        assert record["memory"]["peak_bytes"] > record["memory"]["resident_bytes"]
        assert record["throughput"]["eager"]["n"] == 40
        eager = [entry for entry in record["latency"] if entry["mode"] == "eager"]
        assert {(entry["batch_size"], entry["seq_len"]) for entry in eager} >= {(16, 128), (1, 32)}
        timed = [entry["mode"] for entry in record["latency"]].count("best")
        assert timed == ("best_check" in record) == (key not in QUANTIZED)
        assert record["batch_invariance"]["n"] == 40
        assert record["timing"]["a_a"]["n"] == 4
        assert len(load_predictions(ground / "results", key)) == 40
        assert (ground / "results" / f"{key}_confusion_matrix.png").stat().st_size > 1000
        assert record["variant"]["label"] in finished.stdout
    checked = records["baseline"]["best_check"]
    assert checked["n"] == 40 and checked["flips"] == 0 and checked["agreement"] == 1
    rows = {path.stem for path in (ground / "results" / "records").glob("*.json")}
    assert rows == set(KEYS)
    assert "Baseline TF32 has no row here: it takes an NVIDIA GPU" in finished.stdout
    quantized = {key: records[key]["quantization"] for key in QUANTIZED}
    assert [facts["layers_converted"] for facts in quantized.values()] == [8, 8]
    assert quantized["int8_bitsandbytes"]["outlier_threshold"] == 6.0
    computes_in = "float16" if checkpoints.has_half_arithmetic("cpu") else "float32"
    assert (
        quantized["nf4_bitsandbytes"]["double_quantization"]
        and quantized["nf4_bitsandbytes"]["compute_dtype"] == computes_in
    )


def test_what_is_measured_is_what_lies_on_the_disk(ground, finished):
    """The logits on record are those of the folder, loaded here once more."""
    import numpy as np

    from gpt2_quant.data.ag_news import read_csv
    from gpt2_quant.data.tokens import load_tokenizer

    tokenizer = load_tokenizer(ground / "classifier")
    text = read_csv(ground / "data" / "test.csv")[0][0]
    for key in QUANTIZED:
        model = checkpoints.load_variant(key, ground / "models", "cpu")
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0].detach().float().numpy()
        recorded = (
            load_predictions(ground / "results", key)
            .iloc[0][[f"logit_{i}" for i in range(4)]]
            .to_numpy(float)
        )
        # A batch sums in another order, and LLM.int8() picks its outlier columns over the whole
        # batch.
        np.testing.assert_allclose(recorded, logits, atol=0.05 * np.abs(logits).max())


def test_a_second_run_does_nothing_but_say_so(ground, finished, run_script):
    record = ground / "results" / "records" / "nf4_bitsandbytes.json"
    before = record.stat().st_mtime_ns
    done = run_script(SCRIPT, *flags(ground, "--checkpoint", ground / "classifier"))
    assert done.returncode == 0 and "Complete" in done.stdout
    assert record.stat().st_mtime_ns == before
