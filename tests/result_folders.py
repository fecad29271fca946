"""Results made by a program from outside: logistic regression on the demo's corpus, its weights
rounded in several ways.

Predictions are real ones, of a classifier that shares no code with this project; so are the sizes
(a safetensors file each) and the timings (of its matrix products). What is known of them beforehand
is what the tests check.
"""

import time
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt2_quant import records
from gpt2_quant.data.demo_corpus import generate_corpus
from gpt2_quant.measure import predictions, scores
from gpt2_quant.measure.timing import median_interval
from gpt2_quant.models.variants import VARIANTS

# How coarsely each variant's weights are rounded.
STEPS = {
    "baseline": 0.0,
    "baseline_fp16": 2e-3,
    "int8_scratch": 0.02,
    "int8_scratch_w8a8": 0.05,
    "fp8_scratch": 0.2,
    "nf4_scratch": 1.0,
    "int8_bitsandbytes": 0.1,
    "nf4_bitsandbytes": 0.5,
    "tfidf": 0.3,
}
DTYPES = {"baseline": np.float32, "nf4_scratch": np.int8}


@cache
def classifier() -> dict:
    """Texts, labels and features of test and validation, and the weights [features, 4] of a real
    classifier.
    """
    titles, descriptions, labels = map(np.asarray, generate_corpus(2400, seed=11))
    texts = [" ".join(words) for words in zip(titles, descriptions, strict=True)]
    vectorizer = TfidfVectorizer(max_features=800)
    features = vectorizer.fit_transform(texts).toarray().astype(np.float32)
    model = LogisticRegression(C=3, max_iter=300).fit(features[1000:2000], labels[1000:2000])
    return {
        "texts": texts[:1000],
        "labels": labels[:1000],
        "features": features[:1000],
        "validation_labels": labels[2000:],
        "validation_features": features[2000:],
        "weights": model.coef_.T.astype(np.float32),
    }


def rounded(step: float) -> np.ndarray:
    """The weights rounded to whole multiples of `step`; 0 leaves them."""
    weights = classifier()["weights"]
    return np.round(weights / step) * np.float32(step) if step else weights


@cache
def logits(key: str) -> np.ndarray:
    """Test logits of variant `key`, float32 [1000, 4]."""
    return classifier()["features"] @ rounded(STEPS[key])


@cache
def metrics(key: str) -> dict:
    return scores.classification_scores(classifier()["labels"], logits(key), resamples=500)


def write_results(folder: Path, keys=tuple(STEPS), preset: str = "paper") -> Path:
    """Predictions and records of `keys` below `folder`, as scripts 1 to 3 leave them; returns
    `folder`.
    """
    data = classifier()
    for key in keys:
        predictions.save_predictions(folder, key, data["labels"], logits(key))
        validation = data["validation_features"] @ rounded(STEPS[key])
        predictions.save_predictions(
            folder, f"{key}.validation", data["validation_labels"], validation
        )
        records.save_record(folder, key, record_of(folder, key, preset))
    return folder


def record_of(folder: Path, key: str, preset: str) -> dict:
    """A variant's record with every section that the comparison reads."""
    stored = rounded(STEPS[key]).astype(DTYPES.get(key, np.float16))
    path = folder / "weights" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"score.weight": stored}, path)
    parts = dict.fromkeys(("linear", "embeddings", "norms_biases", "quantization_state"), 0)
    parts["head"] = stored.nbytes
    sizes = {"parts": parts, "tensor_bytes": stored.nbytes}
    file_bytes = path.stat().st_size
    variant = VARIANTS[key]
    return {
        "variant": {
            "label": variant.label, "folder": variant.folder, "script": variant.script_path,
            "dtype": str(stored.dtype),
        },
        "settings": {
            "preset": preset, "base_model": "a logistic regression", "base_revision": None,
            "dataset": "nowhere/at-hand", "dataset_revision": None, "models_dir": "models",
            "results_dir": str(folder), "device": "cpu", "batch_size": 16, "max_length": 128,
            "seed": 0, "max_train_samples": None, "max_test_samples": None,
        },
        "checkpoint": {"base_model": "a logistic regression", "baseline_sha256": "5" * 64},
        "data": {
            "name": "demo corpus", "revision": None, "split": "test", "n": 1000,
            "sha256": "7" * 64, "empty_texts": 0,
        },
        "metrics": metrics(key),
        "size": {
            **sizes, "resident_bytes": stored.nbytes, "file_bytes": file_bytes,
            "stored": {**sizes, "header_bytes": file_bytes - stored.nbytes},
        },
        "memory": {
            "resident_bytes": stored.nbytes, "peak_bytes": 2 * stored.nbytes, "batch_size": 16,
            "seq_len": 128,
        },
        "latency": [timed(key, *case) for case in product((1, 16), (32, 128), ("eager", "best"))],
        "throughput": {
            "eager": {
                "texts_per_s": 1000.0, "tokens_per_s": 52000.0, "n": 1000, "batch_size": 64,
                "session": "one",
            },
        },
        "notes": ["energy: not measured"],
        "provenance": {
            "git_commit": "0" * 40, "git_dirty": False, "source_sha256": "1" * 64,
            "time_utc": "2026-11-23T22:00:00+00:00", "command": variant.script_path, "seed": 0,
            "python": "3.11", "packages": {"numpy": np.__version__}, "device": "a processor",
            "driver": None,
        },
    }  # fmt: skip


@cache
def timed(key: str, batch: int, length: int, mode: str) -> dict:
    """One latency entry: real timings of the classifier's product over `batch` texts."""
    features, weights, values = classifier()["features"][:batch], rounded(STEPS[key]), []
    for _ in range(8):
        start = time.perf_counter()
        features @ weights
        values.append(1000 * (time.perf_counter() - start))
    median, low, high = median_interval(values)
    return {
        "batch_size": batch, "seq_len": length, "dtype": "float32", "mode": mode, "warmup": 1,
        "n": 8, "median_ms": median, "median_low_ms": low, "median_high_ms": high,
        "p95_ms": float(np.percentile(values, 95)), "values_ms": values, "session": "one",
    }  # fmt: skip


def change_record(folder: Path, key: str, change) -> None:
    """Apply `change(record)` to a record on the disk."""
    path = folder / "records" / f"{key}.json"
    record = records.load_record(path)
    change(record)
    records.write_json(path, record)
