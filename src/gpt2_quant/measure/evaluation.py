"""Measure one variant, whichever script made it.

Latency is only fair when all variants are timed in one process (latency.py).
"""

from collections.abc import Callable
from pathlib import Path

from .. import records
from ..cli import Settings
from ..data.datasets import Split
from ..data.tokens import tokenize
from ..models.checkpoints import weights_sha256
from ..models.sizes import file_bytes, size_in_parts, stored_size
from ..models.variants import VARIANTS
from . import figures, predictions, scores


def evaluate_variant(
    settings: Settings,
    key: str,
    model,
    tokenizer,
    splits: dict[str, Split],
    *,
    folder: Path,
    baseline: Path,
    extra: dict | None = None,
    predict: Callable = predictions.predict,
) -> dict:
    """Run `model` over validation and test; write predictions, confusion matrix and record.

    `folder` is the variant's checkpoint, `baseline` the FP32 one that it came from, whose weights'
    sha256 names the experiment. `extra` joins the record; `predict` may spread rows over processes.
    """
    variant, results = VARIANTS[key], settings.results_dir
    parts = size_in_parts(model)  # before bitsandbytes casts tensors
    described = {name: split.describe() for name, split in splits.items()}
    for name, stored_as in (("validation", f"{key}.validation"), ("test", key)):
        tokens = tokenize(tokenizer, splits[name], settings.max_length)
        described[name] |= tokens.cut()
        words = f"{variant.label} on {name} ({settings.device})"
        logits = predict(model, tokens, settings.batch_size, tokenizer.pad_token_id, words)
        predictions.save_predictions(results, stored_as, tokens.labels, logits)
    # The loop ends on test.
    path = results / f"{key}_confusion_matrix.png"
    figures.confusion_matrix(tokens.labels, logits, variant.label, path, splits["test"].classes)
    record = {
        "variant": {
            "label": variant.label,
            "folder": folder.name,
            "script": variant.script_path,
            "dtype": str(model.dtype).split(".")[-1],
        },
        "settings": settings.as_dict(),
        "checkpoint": {
            "base_model": settings.base_model,
            "baseline_sha256": weights_sha256(baseline),
        },
        "data": described["test"] | splits["test"].facts,
        "splits": described,
        "metrics": scores.classification_scores(tokens.labels, logits),
        "size": {
            "parts": parts,
            "tensor_bytes": sum(parts.values()),
            "file_bytes": file_bytes(folder),
            "resident_bytes": sum(parts.values()),
            "stored": stored_size(folder),
        },
        "latency": [],
        "provenance": records.provenance(settings),
        **(extra or {}),
    }
    records.save_record(results, key, record)
    return record


def headline(record: dict) -> str:
    words = record["variant"]["label"] + ": accuracy {value:.4f} [{low:.4f}, {high:.4f}]"
    return words.format(**record["metrics"]["accuracy"])
