"""All five scripts on data of the real shape: no file that git would keep holds its texts."""

import json

import pytest
from kept_texts import files_with_texts
from tiny_models import make_tiny_gpt2

from gpt2_quant.data.demo import write_ag_news
from gpt2_quant.data.demo_corpus import generate_corpus

QUICK = {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def write_news(folder):
    """train.csv and test.csv in AG News' form; returns all texts."""
    texts = []
    for name, n, seed in (("train", 200, 1), ("test", 60, 2)):
        rows = list(zip(*generate_corpus(n, seed), strict=True))
        write_ag_news(folder / f"{name}.csv", rows)
        texts += [description for _, description, _ in rows]
    return texts


def write_judgements(folder):
    """summeval.jsonl (six documents, four systems) and stsb_test.csv; returns all texts."""
    _, stories, _ = generate_corpus(300, seed=3)
    items = iter(stories)
    documents = []
    for number in range(6):
        summaries = [f"{next(items)} {next(items)}" for _ in range(4)]
        systems = {}
        for k, text in enumerate(summaries):
            ratings = {"coherence": k, "consistency": 5 - k, "fluency": (k + number) % 4}
            systems[f"M{k}"] = {"summary": text, **ratings, "relevance": k * k}
        source = " ".join(next(items) for _ in range(3))
        references = [next(items) for _ in range(11)]
        document = {"id": str(number), "source": source, "references": references}
        documents.append(json.dumps(document | {"systems": systems}))
    (folder / "summeval.jsonl").write_text("\n".join(documents) + "\n", encoding="utf-8")
    pairs = [("g", "f", "y", str(k), str(k % 6), next(items), next(items)) for k in range(12)]
    lines = "".join("\t".join(pair) + "\n" for pair in pairs)
    (folder / "stsb_test.csv").write_text(lines, encoding="utf-8")
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
    flags = ["--preset", "demo", "--device", "cpu", "--base-model", data / "model"]
    flags += ["--dataset", data]
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
