"""The demo's corpus, tokenizer and preparation: the properties that the demo's results rest on."""

import itertools
import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt2_quant.data import demo
from gpt2_quant.data.ag_news import read_csv
from gpt2_quant.data.demo_corpus import draw_cast, generate_corpus, grammar
from gpt2_quant.data.labels import LABELS


def texts_of(n, seed):
    titles, descriptions, labels = generate_corpus(n, seed)
    return [" ".join(item) for item in zip(titles, descriptions, strict=True)], labels


def test_corpus_is_the_same_for_the_same_seed_and_another_for_another():
    assert generate_corpus(50, 3) == generate_corpus(50, 3)
    assert generate_corpus(50, 3) != generate_corpus(50, 4)
    assert [part[:20] for part in generate_corpus(50, 3)] == list(generate_corpus(20, 3))


def test_corpus_has_four_like_classes_and_whole_sentences():
    titles, descriptions, labels = generate_corpus(2000, 0)
    # Binomial(2000, 1/4) has mean 500 and standard deviation 19.4; five of them.
    assert all(abs(Counter(labels)[label] - 500) < 97 for label in range(4))
    assert all("{" not in text and "}" not in text for text in titles + descriptions)
    assert all(text.endswith(".") and text.count(". ") <= 4 for text in descriptions)
    assert len(set(descriptions)) > 1900


def test_every_template_can_be_filled_and_every_desk_has_stories():
    names = {**draw_cast(random.Random(0)), **dict.fromkeys(grammar()["fillers"], "x")}
    stories = grammar()["story"] + grammar()["between"]
    kinds = ("titles", "openings", "continuations", "sentences")
    templates = [text for story in stories for kind in kinds for text in story.get(kind, [])]
    assert len(templates) > 100 and all(template.format(**names) for template in templates)
    assert {story["desk"] for story in grammar()["story"]} == set(LABELS)
    pairs = [tuple(story["desks"]) for story in grammar()["between"]]
    assert pairs == list(itertools.combinations(LABELS, 2))


def test_classifier_is_neither_lost_nor_perfect():
    """Half of the stories between desks are anyone's guess: 1 - (1/9) / 2 = 0.944 at best."""
    texts, labels = texts_of(4000, 0)
    features = TfidfVectorizer(ngram_range=(1, 2)).fit(texts[:3000]).transform(texts)
    model = LogisticRegression(C=10).fit(features[:3000], labels[:3000])
    assert 0.90 <= model.score(features[3000:], labels[3000:]) <= 0.97


def test_tokenizer_writes_any_text_and_knows_no_unknown(tiny_tokenizer):
    for text in ("Ada Abel scored twice", "naïve café 日本 \u0001 🙂", "  two  spaces\nand a line"):
        assert tiny_tokenizer.decode(tiny_tokenizer(text)["input_ids"]) == text
    assert len(tiny_tokenizer) == 1000 and tiny_tokenizer.padding_side == "right"
    end = demo.END_OF_TEXT
    assert tiny_tokenizer.eos_token == tiny_tokenizer.pad_token == end
    assert tiny_tokenizer.convert_ids_to_tokens(tiny_tokenizer(end)["input_ids"]) == [end]


SMALL = {
    "TRAIN_ROWS": 200, "TEST_ROWS": 40, "PRETRAIN_ROWS": 150, "WIDTH": 32, "LAYERS": 1,
    "STEPS": 30, "WARMUP": 5,
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """The preparation at a hundredth of its size."""
    for name, value in SMALL.items():
        monkeypatch.setattr(demo, name, value)


def settings_of(folder, seed=0, **others):
    models = folder / "models"
    own = {"base_model": str(models / "base_gpt2"), "dataset": str(models / "dataset")}
    folders = {"models_dir": models, "results_dir": folder / "results"}
    return SimpleNamespace(preset="demo", **folders, seed=seed, **own | others)


def test_prepare_makes_a_model_and_a_dataset_once(small, tmp_path):
    models = tmp_path / "models"
    base, dataset = models / "base_gpt2", models / "dataset"
    demo.prepare(settings_of(tmp_path))
    texts, labels = read_csv(dataset / "train.csv")
    expected = texts_of(240, 0)
    assert (texts, labels) == (expected[0][:200], expected[1][:200])
    assert read_csv(dataset / "test.csv") == (expected[0][200:], expected[1][200:])

    from transformers import AutoTokenizer, GPT2LMHeadModel

    model, loading = GPT2LMHeadModel.from_pretrained(base, output_loading_info=True)
    assert not loading["missing_keys"] and model.config.n_positions == demo.CONTEXT
    assert len(AutoTokenizer.from_pretrained(base)) == model.config.vocab_size
    curve = json.loads((tmp_path / "results" / "demo_pretraining.json").read_text())["loss"]
    assert len(curve) == 30 and sum(curve[-5:]) < sum(curve[:5])

    before = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    demo.prepare(settings_of(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*")} == before
    demo.prepare(settings_of(tmp_path, seed=1))
    assert read_csv(dataset / "train.csv")[0] != texts


def test_prepare_makes_nothing_where_model_and_data_are_others(small, tmp_path):
    demo.prepare(settings_of(tmp_path, base_model="owner/name", dataset="owner/news"))
    assert not list(tmp_path.iterdir())


def test_prepare_that_was_killed_leaves_nothing_and_is_redone(small, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("transformers.GPT2LMHeadModel.save_pretrained", killed)
        demo.prepare(settings_of(tmp_path))
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["dataset"]
    demo.prepare(settings_of(tmp_path))
    assert (tmp_path / "models" / "base_gpt2" / "model.safetensors").is_file()


def test_no_test_text_is_in_what_the_language_model_learns(small):
    """Perplexity on the test split means something only when the model has not read it."""
    test = set(texts_of(demo.TRAIN_ROWS + demo.TEST_ROWS, 0)[0][demo.TRAIN_ROWS :])
    assert not test & set(texts_of(demo.PRETRAIN_ROWS, 1)[0])
