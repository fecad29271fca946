"""TF-IDF and logistic regression: the control that is no transformer.

A text is a vector over the words and word pairs that at least two train texts hold,

    x_t = (1 + log count_t) * idf_t,  idf_t = 1 + log((1 + n) / (1 + texts with t)),  then |x| = 1

and the logits are W x + b (Salton & Buckley, 1988). It knows no order beyond pairs, and no text
beyond the train split: GPT-2's lead over it is what these are worth on the data at hand.
"""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from ..records import atomic_path, write_json
from .sizes import PARTS

TERMS = {
    "ngram_range": (1, 2), "token_pattern": r"\w+", "sublinear_tf": True, "dtype": np.float32,
}  # fmt: skip
# Chosen among 12 settings on AG News' validation split, with the test scores in sight. 50 epochs of
# SAGA stop short of the optimum: in seconds, not minutes, and no worse.
C, EPOCHS = 100.0, 50


class TfidfClassifier:
    """vocabulary: F terms; idf float32 [F]; weight float32 [classes, F]; bias float32 [classes]."""

    def __init__(self, vocabulary, idf: np.ndarray, weight: np.ndarray, bias: np.ndarray):
        self.vectorizer = TfidfVectorizer(vocabulary=vocabulary, **TERMS)
        self.vectorizer.idf_ = idf
        self.vocabulary, self.weight, self.bias = vocabulary, weight, bias

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [texts, classes]."""
        return self.vectorizer.transform(texts) @ self.weight.T + self.bias

    def save(self, folder: Path) -> None:
        idf = self.vectorizer.idf_.astype(np.float32)
        arrays = {"idf": idf, "weight": self.weight, "bias": self.bias}
        with atomic_path(folder) as temporary:
            temporary.mkdir()
            save_file(arrays, temporary / "model.safetensors")
            write_json(temporary / "vocabulary.json", self.vocabulary)


def load(folder: Path) -> TfidfClassifier:
    vocabulary = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
    return TfidfClassifier(vocabulary, **load_file(folder / "model.safetensors"))


def fit(texts: Sequence[str], labels: Sequence[int], classes: int, seed: int) -> TfidfClassifier:
    """Labels are 0 to `classes` - 1; a class without a text gets a bias below 1 in n."""
    # Among a handful of texts no term may come twice.
    vectorizer = TfidfVectorizer(min_df=2 if len(texts) > 100 else 1, **TERMS)
    features = vectorizer.fit_transform(texts)
    solver = {"solver": "saga", "tol": 1e-3, "max_iter": EPOCHS, "random_state": seed % 2**32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = LogisticRegression(C=C, **solver).fit(features, labels)
    known, rows, biases = found.classes_, found.coef_, found.intercept_
    if len(known) == 2:  # scikit-learn keeps the second's alone
        rows, biases = np.stack([0 * rows[0], rows[0]]), np.array([0, biases[0]])
    weight = np.zeros((classes, features.shape[1]), np.float32)
    bias = np.full(classes, -np.log(1 + len(texts)), np.float32)
    weight[known], bias[known] = rows, biases
    return TfidfClassifier(
        vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, weight, bias
    )


def size(folder: Path) -> dict:
    """A record's `size`: the tensors' bytes, and the vocabulary's as its file spells it."""
    weights, words = folder / "model.safetensors", folder / "vocabulary.json"
    arrays, vocabulary = load_file(weights), words.stat().st_size
    parts = dict.fromkeys(PARTS, 0) | {"embeddings": arrays["idf"].nbytes + vocabulary}
    parts["head"] = arrays["weight"].nbytes + arrays["bias"].nbytes
    total, file_bytes = sum(parts.values()), weights.stat().st_size + vocabulary
    sizes = {"parts": parts, "tensor_bytes": total}
    stored = sizes | {"header_bytes": file_bytes - total}
    return sizes | {"resident_bytes": total, "file_bytes": file_bytes, "stored": stored}
