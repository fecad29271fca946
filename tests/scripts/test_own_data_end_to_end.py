"""The three commands of README's "Your own data", with tiny settings: a CSV of one's own, a data
set of the hub, and somebody's classifier, whose classes stand in another order.
"""

import csv
import json
import random
from pathlib import Path

import pandas as pd
import pytest
from hub_server import Hub
from tiny_models import make_tiny_gpt2

STARS = ('awful, "never again"', "fine\nor so", "$5 well spent")
MOODS = ("calm", "cross", "glad", "sad", "shy")
FLAGS = [
    "--device", "cpu", "--max-train-samples", "60", "--max-test-samples", "40", "--batch-size", "8",
    "--max-length", "48",
]  # fmt: skip
EPOCH = "--epochs", "1"


def review(label: int, rng: random.Random) -> tuple[str, str]:
    return f"Number {rng.random()}", f'{"good " * label}thing,\n"bought" {rng.randrange(99)} times'


def write_reviews(path: Path, n: int) -> Path:
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "title", "body", "stars"])
        writer.writerows([i, *review(i % 3, rng), STARS[i % 3]] for i in range(n))
    return path


def moods(n: int) -> bytes:
    """Parquet with class names, as the hub's own."""
    import io

    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=list(MOODS))})
    rows = {"text": [f"text {i} {MOODS[i % 5]}" for i in range(n)], "label": [*range(5)] * (n // 5)}
    Dataset.from_dict(rows, features).to_parquet(file := io.BytesIO())
    return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_tokenizer) -> Path:
    """A tiny language model and a classifier of five moods, named in another order."""
    import torch

    place = tmp_path_factory.mktemp("own")
    model = make_tiny_gpt2(tiny_tokenizer)
    model.config.num_labels = 5
    model.config.id2label = dict(enumerate(reversed(MOODS)))
    model.config.label2id = {name: row for row, name in enumerate(reversed(MOODS))}
    model.score = torch.nn.Linear(64, 5, bias=False)
    for folder, saved in (
        ("base", make_tiny_gpt2(tiny_tokenizer, head=False)),
        ("classifier", model),
    ):
        saved.save_pretrained(place / folder)
        tiny_tokenizer.save_pretrained(place / folder)
    return place


@pytest.fixture(scope="module")
def hub(place):
    files = {split: moods(n) for split, n in (("train", 200), ("validation", 50), ("test", 50))}
    card = ["---", "configs:", "- config_name: split", "  data_files:"]
    for split in files:
        card += [f"  - split: {split}", f"    path: split/{split}-*"]
    card += ["- config_name: unsplit", "  data_files: unsplit/all.parquet", "---", ""]
    data = {f"split/{name}-00000-of-00001.parquet": content for name, content in files.items()}
    data |= {"README.md": "\n".join(card).encode(), "unsplit/all.parquet": files["test"]}
    model = {path.name: path.read_bytes() for path in (place / "classifier").iterdir()}
    repositories = {("datasets", "owner/moods"): data, ("models", "owner/classifier"): model}
    with Hub(repositories) as running:
        yield {
            "HF_ENDPOINT": running.url, "HF_HOME": str(place / "home"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip


def run(run_script, script: str, place: Path, name: str, *flags: object, **environment: str):
    folders = "--models-dir", place / name / "models", "--results-dir", place / name / "results"
    done = run_script(script, *folders, *FLAGS, *flags, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def record(place: Path, name: str, key: str) -> dict:
    path = place / name / "results" / "records" / f"{key}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_csv_from_training_to_both_tables(place, run_script):
    reviews = write_reviews(place / "reviews.csv", 600)
    columns = ["--text-columns", "title", "body", "--label-column", "stars"]
    own = ["--base-model", place / "base", "--dataset", reviews, *columns]
    told = run(run_script, "run_all_experiments.py", place, "csv", "--only", 1, 5, *EPOCH, *own)
    assert "there is no test split: 10% of train, by content" in told
    data = record(place, "csv", "baseline")["data"]
    assert data["classes"] == sorted(STARS) and data["n_classes"] == 3
    assert data["text_columns"] == ["title", "body"] and data["label_column"] == "stars"
    assert data["truncated_texts"] >= 0 and len(data["notes"]) == 2
    config = json.loads((place / "csv/models/baseline_gpt2/config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(3)] == sorted(STARS)
    changed = pd.read_csv(place / "csv/results/comparison_table.csv")
    assert 0 <= changed["Accuracy"][0] <= 1
    assert (place / "csv/results/report_2.pdf").read_bytes()[:4] == b"%PDF"


def test_a_data_set_of_the_hub(place, hub, run_script):
    own = ["--base-model", place / "base", "--dataset", "owner/moods", "--dataset-config", "split"]
    run(run_script, "src/1_baseline_finetuning.py", place, "hub", *EPOCH, *own, **hub)
    found = record(place, "hub", "baseline")
    assert found["data"]["classes"] == list(MOODS) and found["data"]["name"] == "owner/moods"
    assert found["splits"]["validation"]["n"] == 50 and found["data"]["notes"]
    assert {"f1_macro", "f1_weighted", "f1_4"} <= found["metrics"].keys()


def test_somebodys_classifier(place, hub, run_script):
    own = ["--checkpoint", "owner/classifier", "--dataset", "owner/moods"]
    own += ["--dataset-config", "split", "--skip-timing"]
    script = "src/2_quantization_scratch.py"
    run(run_script, script, place, "theirs", *own, **hub)
    found = record(place, "theirs", "int8_scratch")
    assert found["data"]["classes"] == list(MOODS)
    folder = place / "theirs" / "models" / "int8_scratch"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert [config["id2label"][str(i)] for i in range(5)] == list(MOODS)
