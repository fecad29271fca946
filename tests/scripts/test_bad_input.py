"""Bad input through the scripts as a user runs them: one sentence, exit code 2, nothing
half-written.

All cases run side by side first, because each costs the seconds that its libraries take to load;
the tests then look at what came of them.
"""

import csv
import json
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import loaded
import pytest
from hub_server import Hub
from result_folders import write_results
from tiny_models import ROOT, make_tiny_gpt2, write_news

TRAIN, QUANTIZE, BITSANDBYTES, METRICS, COMPARE = sorted(
    path.relative_to(ROOT).as_posix() for path in ROOT.glob("src/[1-5]_*.py")
)
GOOD_ROW = b'"1","a title","a text"\n'
OWN_HEAD = b"text,label\n"
FILE_LIMIT_BYTES = 128 << 10  # more than a record or the long text, less than any weights

DATASETS = {
    "without the files": ({}, "holds no train.csv, .tsv, .jsonl, .json or .parquet"),
    "two columns": ({"train.csv": GOOD_ROW + b'"1","title"\n'}, "train.csv, line 2 has 2 columns"),
    "class 0": ({"train.csv": b'"0","a","b"\n'}, "begins with '0'"),
    "class 5": (
        {"train.csv": GOOD_ROW, "test.csv": b'"5","a","b"\n'},
        "test.csv, line 1 begins with '5'",
    ),
    "empty file": ({"train.csv": b""}, "train.csv is empty"),
    "header row": (
        {"train.csv": b"Class Index,Title,Description\n" + GOOD_ROW},
        "it has Class Index, Title, Description: name it with --label-column",
    ),
    "class of test alone": (
        {"train.csv": OWN_HEAD + b"a,x\nb,y\n", "test.csv": OWN_HEAD + b"c,z\n"},
        "1 test rows have labels that train does not have ('z')",
    ),
    "not parquet": ({"train.parquet": GOOD_ROW}, "train.parquet cannot be read as its name says"),
    "not UTF-8": ({"train.csv": b'"1","caf\xe9","b"\n'}, "is not UTF-8"),
    "NUL": ({"train.csv": b'"1","a\x00b","b"\n'}, "train.csv, line 1"),
}


def write_models(folder: Path, tokenizer) -> dict[str, Path]:
    """A good tiny language model, and classifiers with one fault each."""
    import torch

    models = {"good": make_tiny_gpt2(tokenizer, head=False), "NaN": make_tiny_gpt2(tokenizer)}
    others = "truncated", "five labels", "classifier"
    models |= {name: make_tiny_gpt2(tokenizer) for name in others}
    with torch.no_grad():
        models["NaN"].transformer.h[1].mlp.c_fc.weight[3, 5] = float("nan")
    models["five labels"].config.num_labels = 5
    models["five labels"].score = torch.nn.Linear(64, 5, bias=False)
    folders = {name: folder / name for name in (*models, "empty", "other architecture")}
    for name, model in models.items():
        model.save_pretrained(folders[name])
        tokenizer.save_pretrained(folders[name])
    weights = folders["truncated"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    folders["empty"].mkdir()
    folders["other architecture"].mkdir()
    other = {
        "model_type": "bert",
        "architectures": ["BertForSequenceClassification"],
        "num_labels": 4,
    }
    (folders["other architecture"] / "config.json").write_text(json.dumps(other))
    (folders["other architecture"] / "model.safetensors").write_bytes(weights.read_bytes())
    return folders


def limit_files() -> None:
    """In the child: the disk refuses to let a file grow, as a full one does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, tiny_tokenizer, tiny_texts):
    """What came of every case: name -> (CompletedProcess, files left in its models and results
    folders).
    """
    root = tmp_path_factory.mktemp("bad")
    models = write_models(root / "model", tiny_tokenizer)
    news = write_news(root / "news", tiny_texts, 400, 20)
    with open(news / "test.csv", "a", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([(3, "", ""), (4, "", "word " * 20_000)])
    for name, (files, _) in DATASETS.items():
        (root / "data" / name).mkdir(parents=True)
        for file, content in {"test.csv": GOOD_ROW, **files}.items() if files else ():
            (root / "data" / name / file).write_bytes(content)
    records = root / "newer schema" / "results" / "records"
    records.mkdir(parents=True)
    (records / "baseline.json").write_text('{"schema_version": 999, "variant": {}}')
    (root / "a file").touch()

    write_results(root / "disk full, 5" / "results")
    good = ["--base-model", models["good"], "--dataset", news]
    train = ["--epochs", "1", "--max-length", "64", "--batch-size", "8"]
    cases = {
        "good": (TRAIN, [*good, *train]),
        "disk full, 1": (TRAIN, [*good, *train]),
        "disk full, 2": (QUANTIZE, ["--checkpoint", models["classifier"], "--dataset", news]),
        "disk full, 3": (BITSANDBYTES, ["--checkpoint", models["classifier"], "--dataset", news]),
        "disk full, 5": (COMPARE, []),
        "too few rows": (TRAIN, [*good, "--max-train-samples", "401"]),
        "unknown model id": (TRAIN, ["--base-model", "nobody/nothing", "--dataset", news]),
        "unknown dataset id": (
            TRAIN,
            ["--base-model", models["good"], "--dataset", "nobody/nothing"],
        ),
        "hub out of reach": (TRAIN, ["--base-model", "nobody/nothing", "--dataset", news]),
        "no such folder": (TRAIN, ["--base-model", "./nowhere/at/all"]),
        "learning rate": (TRAIN, [*good, "--learning-rate", "-1"]),
        "a column that is not there": (TRAIN, [*good, "--label-column", "topic"]),
        "seed -1": (TRAIN, [*good, "--seed", "-1"]),
        "seed 2**64": (METRICS, ["--seed", str(2**64)]),
        "seeds 0 -5": (TRAIN, [*good, "--seeds", "0", "-5"]),
        "epochs": (TRAIN, [*good, "--epochs", str(10**12)]),
        "base model empty": (TRAIN, ["--base-model", models["empty"], "--dataset", news]),
        "script 2 too early": (QUANTIZE, good),
        "script 3 too early": (BITSANDBYTES, good),
        "script 5 too early": (COMPARE, []),
        "newer schema": (COMPARE, []),
        "CUDA without CUDA": (METRICS, ["--device", "cuda"]),
        "batch size 0": (METRICS, ["--batch-size", "0"]),
        "batch size 0, all": ("run_all_experiments.py", ["--batch-size", "0"]),
        "results read-only": (TRAIN, ["--results-dir", "/proc/results"]),
        "models under a file": (QUANTIZE, ["--models-dir", root / "a file" / "models"]),
    }
    cases |= {
        f"dataset: {name}": (
            TRAIN,
            ["--base-model", models["good"], "--dataset", root / "data" / name],
        )
        for name in DATASETS
    }
    for name in ("empty", "truncated", "NaN", "other architecture", "five labels"):
        cases[f"checkpoint: {name}"] = (QUANTIZE, ["--checkpoint", models[name], "--dataset", news])

    def run(case):
        name, (script, flags) = case
        folder = root / name
        fixed = [
            "--models-dir",
            folder / "models",
            "--results-dir",
            folder / "results",
            "--device",
            "cpu",
        ]
        command = list(map(str, [script, *fixed, *flags]))
        if name.startswith("disk full") or "unknown" in name or "hub" in name:
            endpoint = hub.url if "unknown" in name else "http://127.0.0.1:9"
            online = {
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(folder / "hub"),
                "NO_PROXY": "127.0.0.1",
            }
            done = subprocess.run(
                [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=240,
                env={**os.environ, **online, "HF_ENDPOINT": endpoint},
                preexec_fn=limit_files if name.startswith("disk full") else None,
            )  # fmt: skip
        else:
            done = loaded.run(ROOT, command, 240)
        left = [
            path
            for part in ("models", "results")
            for path in (folder / part).rglob("*")
            if path.is_file()
        ]
        return name, (done, [path.relative_to(folder).as_posix() for path in left])

    with Hub({}) as hub, ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(pool.map(run, cases.items())) | {"folder": root}


def sentence(outcomes, name: str, leaves: tuple[str, ...] = ()) -> str:
    """The one sentence of a case, after checking exit code, form, and that no file was left but
    `leaves`.
    """
    done, left = outcomes[name]
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and 20 < len(errors[0]) < 500
    assert not [path for path in left if not Path(path).name.startswith(".") and path not in leaves]
    return errors[0]


@pytest.mark.parametrize("name", DATASETS)
def test_dataset(outcomes, name):
    assert DATASETS[name][1] in sentence(outcomes, f"dataset: {name}")


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("too few rows", "--max-train-samples 401 asks for more than the"),
        ("unknown model id", "--base-model nobody/nothing: the hub knows no such public id"),
        ("unknown dataset id", "--dataset nobody/nothing: the hub knows no such public id"),
        ("hub out of reach", "out of reach"),
        ("no such folder", "there is no such folder"),
        ("learning rate", "--learning-rate -1.0 is not between 0 and 1"),
        ("a column that is not there", "--label-column topic"),
        ("seed -1", "'-1' is not a whole number from 0 to 2^63 - 1"),
        ("seed 2**64", "is not a whole number from 0 to 2^63 - 1"),
        ("seeds 0 -5", "'-5' is not a whole number from 0 to 2^63 - 1"),
        ("epochs", "more than 10,000 epochs"),
        ("base model empty", "holds no config.json"),
        ("script 2 too early", "run python src/1_baseline_finetuning.py"),
        ("script 3 too early", "run python src/1_baseline_finetuning.py"),
        ("script 5 too early", "run python src/1_baseline_finetuning.py"),
        ("CUDA without CUDA", "--device cpu"),
        ("batch size 0", "'0' is not a whole number of at least 1"),
        ("batch size 0, all", "'0' is not a whole number of at least 1"),
        ("results read-only", "--results-dir /proc/results cannot be written"),
        ("models under a file", "cannot be written"),
    ],
)
def test_setup(outcomes, name, complaint):
    assert complaint in sentence(outcomes, name)


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("empty", "holds no config.json"),
        ("truncated", "damaged or cut short"),
        ("NaN", "mlp.c_fc.weight hold NaN"),
        ("other architecture", "is a bert model"),
        ("five labels", "has 5 labels where 4 are needed"),
    ],
)
def test_checkpoint(outcomes, name, complaint):
    assert complaint in sentence(outcomes, f"checkpoint: {name}")


def test_record_of_a_newer_schema(outcomes):
    assert "schema version 999" in sentence(
        outcomes, "newer schema", leaves=("results/records/baseline.json",)
    )


@pytest.mark.parametrize(
    "script, refused",
    [(1, ""), (2, "models/int8_scratch"), (3, "models/int8_bitsandbytes"), (5, "results/")],
)
def test_full_disk_leaves_nothing_half_written(outcomes, script, refused):
    """The first file beyond the limit is refused; the sentence names it, or the folder that would
    have been renamed whole, and no weights have their final name.
    """
    done, left = outcomes[f"disk full, {script}"]
    assert done.returncode == 2, done.stderr[-3000:]
    told = done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr and told.startswith("error: ") and refused in told
    assert "File too large; raise the limit of file sizes" in told
    assert not [path for path in left if path.endswith("model.safetensors")]
    temporary = [path for path in left if Path(path).name.startswith(".")]
    assert set(temporary) <= {"models/.training.lock"}


def test_empty_and_very_long_texts_are_kept_and_counted(outcomes):
    done, _ = outcomes["good"]
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(
        (outcomes["folder"] / "good" / "results" / "records" / "baseline.json").read_text(
            encoding="utf-8"
        )
    )
    assert record["data"]["n"] == 22 and record["data"]["empty_texts"] == 1
    assert record["data"]["truncated_texts"] >= 1
