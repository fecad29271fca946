"""All five scripts on data of the real shape: no file that git would keep holds the data's texts."""

import csv
import json

import pytest
from kept_texts import files_with_texts
from tiny_models import make_tiny_gpt2

from gpt2_quant.data.demo import generate_corpus

QUICK = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def write_news(folder):
    """train.csv and test.csv in AG News' form; returns all texts."""
    texts = []
    for name, n, seed in (("train", 200, 1), ("test", 60, 2)):
        titles, descriptions, labels = generate_corpus(n, seed)
        with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
            rows = zip([label + 1 for label in labels], titles, descriptions, strict=True)
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
        texts += descriptions
    return texts


def write_judgements(folder):
    """summeval.jsonl (six documents, four systems) and stsb_test.csv; returns all texts."""
    _, stories, _ = generate_corpus(300, seed=3)
    items = iter(stories)
    documents = []
    for number in range(6):
        summaries = [f"{next(items)} {next(items)}" for _ in range(4)]
        systems = {
            f"M{k}": {
                "summary": text,
                "coherence": k,
                "consistency": 5 - k,
                "fluency": (k + number) % 4,
                "relevance": k * k,
            }
            for k, text in enumerate(summaries)
        }
        source = " ".join(next(items) for _ in range(3))
        documents.append(
            {
                "id": str(number),
                "source": source,
                "references": [next(items) for _ in range(11)],
                "systems": systems,
            }
        )
    (folder / "summeval.jsonl").write_text(
        "".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8"
    )
    pairs = [("g", "f", "y", str(k), str(k % 6), next(items), next(items)) for k in range(12)]
    (folder / "stsb_test.csv").write_text(
        "".join("\t".join(pair) + "\n" for pair in pairs), encoding="utf-8"
    )
    return stories


def test_a_text_in_a_file_is_found(tmp_path):
    text = "The ferry ran aground off the island in thick fog on Tuesday morning."
    (tmp_path / "results" / "cache").mkdir(parents=True)
    (tmp_path / "results" / "table.csv").write_text(f"1,{text[10:60]}\n")
    (tmp_path / "results" / "other.json").write_text(json.dumps([text[:30]]))
    (tmp_path / "results" / "cache" / "ignored.json").write_text(json.dumps([text]))
    assert files_with_texts(tmp_path, [text]) == ["results/table.csv"]


@pytest.mark.slow
def test_no_kept_file_of_the_five_scripts_holds_a_text(
    tmp_path, run_script, tiny_tokenizer, tmp_path_factory
):
    data = tmp_path_factory.mktemp("data")
    texts = write_news(data) + write_judgements(data)
    make_tiny_gpt2(tiny_tokenizer, head=False).save_pretrained(data / "model")
    tiny_tokenizer.save_pretrained(data / "model")
    flags = [
        "--preset",
        "demo",
        "--base-model",
        data / "model",
        "--dataset",
        data,
        "--device",
        "cpu",
    ]
    flags += ["--models-dir", tmp_path / "models", "--results-dir", tmp_path / "results"]
    for script, more in (
        ("src/1_baseline_finetuning.py", ["--epochs", 1]),
        ("src/2_quantization_scratch.py", []),
        ("src/3_bitsandbytes_quant.py", []),
        ("src/4_evaluation_metrics.py", ["--human-judgements", data]),
        ("src/5_compare_all_models.py", []),
    ):
        done = run_script(script, *flags, *more, **QUICK)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "The texts whose answer changes most" in done.stdout
    assert len(list((tmp_path / "results").glob("report_*.pdf"))) == 2
    assert files_with_texts(tmp_path, texts) == []
