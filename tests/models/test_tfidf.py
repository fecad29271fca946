"""TF-IDF and logistic regression against scikit-learn's pipeline of both, and as stored."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from gpt2_quant.models import tfidf


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [2, 4])
def test_its_answers_are_those_of_a_pipeline(tiny_texts, classes):
    rows = [row for row in zip(*tiny_texts, strict=True) if row[1] < classes]
    texts, labels = zip(*rows, strict=True)
    found = tfidf.fit(texts[:150], labels[:150], classes, seed=0).logits(texts[150:])
    terms = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"\w+")
    solver = {"solver": "saga", "tol": 1e-3, "max_iter": 50, "random_state": 0}
    pipeline = make_pipeline(terms, LogisticRegression(C=100, **solver))
    expected = pipeline.fit(texts[:150], labels[:150]).predict_log_proba(texts[150:])
    assert found.shape == expected.shape and found.dtype == np.float32
    chances = np.exp(found - np.logaddexp.reduce(found, axis=1, keepdims=True))
    # float32 features and weights here, float64 there.
    assert np.abs(chances - np.exp(expected)).max() < 1e-4


def test_a_class_without_texts_is_never_the_answer(tiny_texts):
    texts, labels = tiny_texts
    found = tfidf.fit(texts[:200], labels[:200], classes=6, seed=0).logits(texts)
    assert found.shape == (600, 6) and found.argmax(axis=1).max() <= 3


def test_what_is_stored_is_what_answers(tiny_texts, tmp_path):
    texts, labels = tiny_texts
    made = tfidf.fit(texts[:200], labels[:200], 4, seed=0)
    made.save(tmp_path / "tfidf")
    loaded = tfidf.load(tmp_path / "tfidf")
    assert np.array_equal(loaded.logits(texts), made.logits(texts))
    files = {path.name: path.stat().st_size for path in (tmp_path / "tfidf").iterdir()}
    assert files.keys() == {"model.safetensors", "vocabulary.json"}
    size = tfidf.size(tmp_path / "tfidf")
    arrays = 4 * (len(loaded.vocabulary) * (4 + 1) + 4)
    assert size["tensor_bytes"] == sum(size["parts"].values())
    assert size["tensor_bytes"] == arrays + files["vocabulary.json"]
    assert size["stored"]["header_bytes"] + size["tensor_bytes"] == sum(files.values())
