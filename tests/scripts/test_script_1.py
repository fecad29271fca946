"""Script 1 as a user runs it, on a tiny GPT-2 and 340 texts: what it leaves, going on after a kill,
several processes.
"""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hub_server import OWNER, TOKEN, Hub
from safetensors.numpy import load_file
from tiny_models import ROOT, make_tiny_gpt2

SCRIPT = "src/1_baseline_finetuning.py"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ingredients(tmp_path_factory, tiny_texts, tiny_tokenizer) -> list:
    """The flags that name a tiny base model (no dropout, so that processes may share out its rows)
    and dataset.
    """
    folder = tmp_path_factory.mktemp("ingredients")
    model = make_tiny_gpt2(tiny_tokenizer, head=False)
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(model.config, name, 0.0)
    model.save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    texts, labels = tiny_texts
    for name, rows in (
        ("train", range(340)),
        ("test", range(340, 411)),
    ):  # 71 texts: 2 and 3 do not divide them
        with open(folder / "data" / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerows([labels[i] + 1, *texts[i].split(" ", 1)] for i in rows)
    return [
        "--base-model",
        folder / "base",
        "--dataset",
        folder / "data",
        "--device",
        "cpu",
        "--epochs",
        2,
        "--learning-rate",
        1e-3,
    ]


def into(folder: Path) -> list:
    return ["--models-dir", folder / "models", "--results-dir", folder / "results"]


@pytest.fixture(scope="module")
def finished(ingredients, run_script, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of 40 updates."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_script(SCRIPT, *ingredients, *into(folder), "--report-to", "tensorboard")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "40 updates in" in done.stdout
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "models" / "baseline_gpt2" / "model.safetensors")


def test_a_run_leaves_all_that_the_contract_names(finished):
    results, model = finished / "results", finished / "models" / "baseline_gpt2"
    for name in (
        "training_curve.csv",
        "training_curve.png",
        "baseline_confusion_matrix.png",
        "predictions/baseline.parquet",
    ):
        assert (results / name).stat().st_size > 0, name
    config = json.loads((model / "config.json").read_text())
    assert config["id2label"] == {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}
    assert config["pad_token_id"] == config["eos_token_id"]
    assert all(tensor.dtype == np.float32 for tensor in weights(finished).values())
    record = json.loads((results / "records" / "baseline.json").read_text())
    assert record["training"]["updates"] == 40 and record["training"]["step"] == "plain"
    assert record["metrics"]["accuracy"]["n"] == 71
    assert f"{record['metrics']['accuracy']['value']:.4f}" in (model / "README.md").read_text()
    curve = pd.read_csv(results / "training_curve.csv")
    assert list(curve) == [
        "step",
        "train_loss",
        "learning_rate",
        "validation_loss",
        "validation_accuracy",
    ]
    assert len(curve) == 40 and curve["validation_loss"].notna().sum() == 2
    assert list((results / "logs").rglob("events.out.tfevents.*"))
    assert not (finished / "models" / "baseline_gpt2.training").exists()


def test_the_model_is_a_plain_transformers_folder(finished):
    from transformers import pipeline

    classify = pipeline(
        "text-classification", str(finished / "models" / "baseline_gpt2"), device="cpu"
    )
    assert classify("Late goal sends the home side to the final")[0]["label"] in (
        "World",
        "Sports",
        "Business",
        "Sci/Tech",
    )


def test_the_same_command_again_does_nothing_and_says_so(finished, ingredients, run_script):
    before = (finished / "models" / "baseline_gpt2" / "model.safetensors").stat().st_mtime_ns
    done = run_script(SCRIPT, *ingredients, *into(finished), "--report-to", "tensorboard")
    assert done.returncode == 0 and "Complete for these flags" in done.stdout
    assert (
        finished / "models" / "baseline_gpt2" / "model.safetensors"
    ).stat().st_mtime_ns == before


@pytest.fixture(scope="module")
def killed(ingredients, tmp_path_factory) -> Path:
    """The folder of a run that was killed with SIGKILL in the second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, SCRIPT, *ingredients, *into(folder), "--checkpoint-minutes", 0]
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = folder / "models" / "baseline_gpt2.training" / "seed-0"
    limit = time.monotonic() + 120
    while (
        max((path.name for path in checkpoints.glob("update-*")), default="") < "update-00000022"
        and time.monotonic() < limit
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(checkpoints.glob("update-*"))) >= 1
    return folder


def test_another_learning_rate_does_not_continue_a_killed_run(killed, ingredients, run_script):
    flags = [*ingredients, "--learning-rate", 2e-3]
    done = run_script(SCRIPT, *flags, *into(killed))
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")
    assert (
        "--learning-rate 0.001, and this one has 0.002" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_a_killed_run_goes_on_to_the_same_bits(killed, finished, ingredients, run_script):
    done = run_script(SCRIPT, *ingredients, *into(killed), "--checkpoint-minutes", 0)
    assert done.returncode == 0, done.stderr
    assert "going on after update 2" in done.stdout
    whole, resumed = weights(finished), weights(killed)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert not (killed / "models" / "baseline_gpt2.training").exists()


def launched(processes: int, *flags) -> subprocess.CompletedProcess:
    """Script 1 the way accelerate launch starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", processes]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", port]
    return subprocess.run(
        list(map(str, [sys.executable, *launcher, SCRIPT, *flags])),
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_several_processes_train_the_same_model_and_answer_for_every_row_once(
    finished, ingredients, tmp_path
):
    """Gloo on the CPU. 3 does not divide 16 rows."""
    done = launched(3, *ingredients, *into(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("40 updates in") == 1  # one process speaks
    alone, together = (
        pd.read_csv(folder / "results" / "training_curve.csv") for folder in (finished, tmp_path)
    )
    # Sums in another order: rounding of 2**-24 grows with every update, and AdamW turns it into
    # steps where gradients are tiny.
    np.testing.assert_allclose(together["train_loss"], alone["train_loss"], rtol=2e-3)
    np.testing.assert_allclose(together["train_loss"][:5], alone["train_loss"][:5], rtol=1e-5)
    predictions = pd.read_parquet(tmp_path / "results" / "predictions" / "baseline.parquet")
    expected = pd.read_parquet(finished / "results" / "predictions" / "baseline.parquet")
    assert predictions["id"].tolist() == list(range(71)) and predictions["label"].equals(
        expected["label"]
    )
    record = json.loads((tmp_path / "results" / "records" / "baseline.json").read_text())
    assert record["training"]["processes"] == 3 and record["metrics"]["accuracy"]["n"] == 71


def test_seeds_give_mean_and_deviation_and_keep_the_first_model(ingredients, run_script, tmp_path):
    done = run_script(SCRIPT, *ingredients, *into(tmp_path), "--seeds", 5, 6, "--max-steps", 4)
    assert done.returncode == 0, done.stderr
    spread = json.loads((tmp_path / "results" / "records" / "baseline.json").read_text())[
        "training"
    ]["spread"]
    values = spread["accuracy"]["values"]
    assert spread["n"] == 2 and spread["seeds"] == ["5", "6"]
    assert spread["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    assert spread["accuracy"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert "accuracy over seeds:" in done.stdout and "n = 2" in done.stdout


def test_two_processes_train_two_seeds_each_by_itself_and_a_third_together(
    ingredients, run_script, tmp_path
):
    """The values of the seeds that are trained alone equal those of a run with one process."""
    flags = "--seeds", 5, 6, 7, "--max-steps", 4
    one = run_script(SCRIPT, *ingredients, *into(tmp_path / "one"), *flags)
    two = launched(2, *ingredients, *into(tmp_path / "two"), *flags)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr[-3000:]
    sections = []
    for name in ("one", "two"):
        record = json.loads((tmp_path / name / "results" / "records" / "baseline.json").read_text())
        sections.append(record["training"])
    spreads = [section["spread"] for section in sections]
    assert [s["processes"] for s in sections] == [1, 1] and two.stdout.count("4 updates in") == 1
    assert spreads[0]["seeds"] == spreads[1]["seeds"] == ["5", "6", "7"]
    assert spreads[0]["accuracy"]["values"][:2] == spreads[1]["accuracy"]["values"][:2]
    kept, expected = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(np.array_equal(kept[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning-rate", 3], "--learning-rate 3.0 is not between 0 and 1"),
        (["--epochs", 0], "not a whole number of at least 1"),
    ],
)
def test_a_senseless_flag_ends_with_one_sentence(flags, words, ingredients, run_script, tmp_path):
    done = run_script(SCRIPT, *ingredients, *into(tmp_path), *flags)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_help_answers_without_torch(run_script, tmp_path):
    """With modules in front of the path that end whoever imports them."""
    for name in ("torch", "transformers", "pandas"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is imported')")
    done = run_script(SCRIPT, "--help", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "--push-to-hub" in done.stdout, done.stderr


def logged_in(token: str, url: str = "http://127.0.0.1:9") -> dict[str, str]:
    """The environment of somebody with `token`, whose hub is at `url` (by default nowhere)."""
    hub = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return {"HF_TOKEN": token, **hub, **ONE_THREAD}


def test_a_published_model_arrives_whole_with_its_card(finished, ingredients, run_script):
    """A complete run is not trained again for it. The weights go the hub's way for large files."""
    flags = [
        *ingredients,
        *into(finished),
        "--report-to",
        "tensorboard",
        "--push-to-hub",
        f"{OWNER}/gpt2-ag-news",
    ]
    with Hub({}) as hub:
        done = run_script(SCRIPT, *flags, **logged_in(TOKEN, hub.url))
        assert done.returncode == 0, done.stderr
        assert f"published: {hub.url}/{OWNER}/gpt2-ag-news/commit/" in done.stdout
        (published,) = hub.repositories.values()
        again = run_script(
            SCRIPT, *flags, **logged_in(TOKEN, hub.url)
        )  # into a repository that is there already
        assert again.returncode == 0, again.stderr
    folder = finished / "models" / "baseline_gpt2"
    assert published == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= published.keys()
    card = published["README.md"].decode()
    assert card.startswith("---\n") and "\nlibrary_name: transformers\n" in card
    assert "test accuracy" in card
    assert (
        "base_model:" not in card
    )  # the base is a folder here, and its name means nothing on the hub
    assert [path for _, path in hub.asked if "/large/" in path] and list(hub.large.values()) == [
        published["model.safetensors"]
    ]


@pytest.mark.parametrize(
    ("repository", "words"),
    [
        (
            "somebody-else/gpt2",
            "the hub answers 403 (You don't have the rights to create a model under somebody-else/",
        ),
        ("no/such/name", "names no repository: give owner/name"),
    ],
)
def test_a_hub_that_refuses_is_quoted(repository, words, finished, ingredients, run_script):
    flags = [
        *ingredients,
        *into(finished),
        "--report-to",
        "tensorboard",
        "--push-to-hub",
        repository,
    ]
    with Hub({}) as hub:
        done = run_script(SCRIPT, *flags, **logged_in(TOKEN, hub.url))
    assert (
        done.returncode == 2
        and f"--push-to-hub {repository}" in done.stderr
        and words in done.stderr
    )
    assert "Traceback" not in done.stderr and not hub.repositories


@pytest.mark.parametrize("case", ["no login", "a token that is not valid", "no hub"])
def test_publishing_is_refused_before_the_training(case, ingredients, run_script, tmp_path):
    flags = [*ingredients, *into(tmp_path), "--push-to-hub", f"{OWNER}/gpt2-ag-news"]
    with Hub({}) as hub:
        environment, words = {
            "no login": (
                logged_in("", hub.url) | {"HF_TOKEN_PATH": str(tmp_path / "none")},
                "needs a login: run hf auth login",
            ),
            "a token that is not valid": (logged_in("hf_wrong", hub.url), "the hub answers 401"),
            "no hub": (logged_in(TOKEN), "the hub is out of reach: check the network"),
        }[case]
        done = run_script(SCRIPT, *flags, **environment)
    assert (
        done.returncode == 2
        and "--push-to-hub" in done.stderr
        and words in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "models").exists()
