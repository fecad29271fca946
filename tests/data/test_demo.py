"""The demo's corpus, tokenizer and preparation: the properties that the demo's results rest on."""

import csv
import itertools
import json
import random
from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt2_quant.data import demo, demo_corpus
from gpt2_quant.data.datasets import read_csv


def texts_of(n, seed):
    titles, descriptions, labels = demo.generate_corpus(n, seed)
    return [
        f"{title} {description}" for title, description in zip(titles, descriptions, strict=True)
    ], labels


def test_corpus_is_the_same_for_the_same_seed_and_another_for_another():
    assert demo.generate_corpus(50, 3) == demo.generate_corpus(50, 3)
    assert demo.generate_corpus(50, 3) != demo.generate_corpus(50, 4)
    assert [part[:20] for part in demo.generate_corpus(50, 3)] == list(demo.generate_corpus(20, 3))


def test_corpus_has_four_like_classes_and_whole_sentences():
    titles, descriptions, labels = demo.generate_corpus(2000, 0)
    # Binomial(2000, 1/4) has mean 500 and standard deviation 19.4; five of them.
    assert all(abs(Counter(labels)[label] - 500) < 97 for label in range(4))
    assert all("{" not in text and "}" not in text for text in titles + descriptions)
    assert all(
        description.endswith(".") and description.count(". ") <= 4 for description in descriptions
    )
    assert len(set(descriptions)) > 1900


def test_every_template_can_be_filled():
    fillers = {
        **demo_corpus._cast(random.Random(0)),
        **{kind: "x" for kind in demo_corpus._FILLERS},
    }
    groups = [
        group for themes in demo_corpus._THEMES.values() for theme in themes for group in theme
    ]
    groups += [group for story in demo_corpus._BETWEEN.values() for group in story]
    for template in itertools.chain.from_iterable(groups):
        assert template.format(**fillers)
    assert set(demo_corpus._BETWEEN) == set(itertools.combinations(range(4), 2))


def test_classifier_is_neither_lost_nor_perfect():
    """Half of the stories between desks are anybody's guess: the best possible is 1 - (1/9) / 2 =
    0.944.
    """
    texts, labels = texts_of(4000, 0)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    train = vectorizer.fit_transform(texts[:3000])
    accuracy = (
        LogisticRegression(C=10)
        .fit(train, labels[:3000])
        .score(vectorizer.transform(texts[3000:]), labels[3000:])
    )
    assert 0.90 <= accuracy <= 0.97


def test_tokenizer_writes_any_text_and_knows_no_unknown(tiny_tokenizer):
    for text in ("Ada Abel scored twice", "naïve café 日本 \u0001 🙂", "  two  spaces\nand a line"):
        assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text
    assert len(tiny_tokenizer) == 1000
    assert tiny_tokenizer.eos_token == tiny_tokenizer.pad_token == "<|endoftext|>"
    assert tiny_tokenizer.convert_ids_to_tokens(tiny_tokenizer("<|endoftext|>")["input_ids"]) == [
        "<|endoftext|>"
    ]


@pytest.fixture
def small(monkeypatch):
    """The preparation at a hundredth of its size."""
    for name, value in {
        "TRAIN_ROWS": 200,
        "TEST_ROWS": 40,
        "PRETRAIN_ROWS": 150,
        "WIDTH": 32,
        "LAYERS": 1,
        "STEPS": 30,
    }.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(demo, "WARMUP", 5)


def test_prepare_makes_a_model_and_a_dataset_once(small, tmp_path):
    models, results = tmp_path / "models", tmp_path / "results"
    base, dataset = demo.prepare(models, results, seed=0)
    texts, labels = read_csv(dataset / "train.csv")
    assert (len(texts), len(read_csv(dataset / "test.csv")[0])) == (200, 40)
    expected = demo.generate_corpus(240, 0)
    assert (texts[0], labels) == (f"{expected[0][0]} {expected[1][0]}", expected[2][:200])
    with open(dataset / "train.csv", encoding="utf-8", newline="") as file:
        assert {row[0] for row in csv.reader(file)} == {"1", "2", "3", "4"}

    from transformers import AutoTokenizer, GPT2LMHeadModel

    model, loading = GPT2LMHeadModel.from_pretrained(base, output_loading_info=True)
    assert not loading["missing_keys"] and model.config.n_positions == demo.CONTEXT
    assert len(AutoTokenizer.from_pretrained(base)) == model.config.vocab_size
    curve = json.loads((results / "demo_pretraining.json").read_text())["loss"]
    assert len(curve) == 30 and sum(curve[-5:]) < sum(curve[:5])

    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    demo.prepare(models, results, seed=0)
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before
    demo.prepare(models, results, seed=1)
    assert read_csv(dataset / "train.csv")[0] != texts


def test_prepare_that_was_killed_leaves_nothing_and_is_redone(small, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("transformers.GPT2LMHeadModel.save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            demo.prepare(tmp_path / "models", tmp_path / "results", seed=0)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["dataset"]
    base, _ = demo.prepare(tmp_path / "models", tmp_path / "results", seed=0)
    assert (base / "model.safetensors").is_file()


def test_no_test_text_is_in_what_the_language_model_learns(small):
    """Perplexity on the test split means something only when the model has not read it."""
    test = set(texts_of(demo.TRAIN_ROWS + demo.TEST_ROWS, 0)[0][demo.TRAIN_ROWS :])
    assert not test & set(texts_of(demo.PRETRAIN_ROWS, 1)[0])
