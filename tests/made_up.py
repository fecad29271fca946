"""Results folders whose figures are chosen: accuracy by discordant rows, bytes, milliseconds."""

from functools import cache

import numpy as np
from result_folders import change_record, write_results

from gpt2_quant.measure import predictions, scores

N, WRONG = 2000, 200  # test rows, and those that the baseline gets wrong
SHAPES = ((1, 128), (16, 128), (64, 128))
BYTES = {
    "baseline": 4_000_000, "baseline_fp16": 2_000_000, "int8_scratch": 1_000_000,
    "int8_scratch_w8a8": 1_010_000, "nf4_scratch": 520_000, "int8_bitsandbytes": 1_330_000,
    "nf4_bitsandbytes": 1_000_000,
}  # fmt: skip


def around(ms, reach=0.01):
    return ms, ms * (1 - reach), ms * (1 + reach)


def answers(better: int, worse: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N], and logits [N, 4] of a classifier that gets `better` rows right which the
    baseline does not, and `worse` the other way round; the seed moves logits, not answers.
    """
    labels = np.arange(N) % 4
    wrong = np.arange(N) < WRONG
    wrong[:better] = False
    wrong[N - worse :] = True
    logits = 3.0 * np.eye(4)[(labels + wrong) % 4]
    return labels, logits + 0.01 * np.random.default_rng(seed).random((N, 4))


@cache
def scored(better: int, worse: int, seed: int) -> tuple[np.ndarray, np.ndarray, dict]:
    """`answers`, and their scores."""
    labels, logits = answers(better, worse, seed)
    kept = logits.astype(np.float32)
    return labels, logits, scores.classification_scores(labels, kept, resamples=1000)


def make(folder, keys=tuple(BYTES), discordant=None, sizes=None, ms=None, best=None):
    """A results folder; returns it.

    discordant  key -> (better, worse) than the baseline; (0, 0) else
    sizes       key -> bytes stored and resident; BYTES else
    ms          key -> (median, low, high) at every shape, or {shape: such}; no times when None
    best        key -> likewise for the best mode; none else
    """
    write_results(folder, keys)
    for seed, key in enumerate(keys):
        labels, logits, metrics = scored(*(discordant or {}).get(key, (0, 0)), seed)
        predictions.save_predictions(folder, key, labels, logits)
        (folder / "predictions" / f"{key}.validation.parquet").unlink()
        change_record(
            folder, key, _of(key, metrics, (sizes or BYTES).get(key) or BYTES[key], ms, best)
        )
    return folder


def _of(key, metrics, stored, ms, best):
    def change(record):
        record["metrics"], record["data"]["n"] = metrics, N
        parts = dict.fromkeys(record["size"]["parts"], 0) | {"linear": stored}
        sums = {"parts": parts, "tensor_bytes": stored}
        file = {"stored": {**sums, "header_bytes": 8}, "file_bytes": stored + 8}
        record["size"] = {**sums, "resident_bytes": stored, **file}
        record["memory"]["peak_bytes"] = 2 * stored
        record["latency"] = [
            time(shape, mode, *_at(values[key], shape))
            for mode, values in (("eager", ms), ("best", best))
            if values and key in values
            for shape in SHAPES
        ]
        record["throughput"] = {}
        record["settings"] |= {
            "base_model": "openai-community/gpt2", "dataset": "fancyzhx/ag_news",
            "base_revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
            "dataset_revision": "eb185aade064a813bc0b7f42de02595523103ca4",
        }  # fmt: skip
        record["checkpoint"]["base_model"] = "openai-community/gpt2"

    return change


def _at(values, shape):
    return values[shape] if isinstance(values, dict) else values


def time(shape, mode, median, low, high, session="one"):
    return {
        "batch_size": shape[0], "seq_len": shape[1], "mode": mode, "session": session,
        "median_ms": median, "median_low_ms": low, "median_high_ms": high, "values_ms": [median],
        "p95_ms": high, "n": 1, "dtype": "float16", "warmup": 1,
    }  # fmt: skip
