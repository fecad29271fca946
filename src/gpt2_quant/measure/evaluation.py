"""Measure one variant, whichever script made it.

Latency is only fair when all variants are timed in one process (latency.py).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from .. import records
from ..cache import Step
from ..cli import Settings
from ..data.datasets import Split, load_splits
from ..data.tokens import Tokens, load_tokenizer, pad_batch, tokenize
from ..models import onnx_export, tfidf
from ..models.checkpoints import weights_files, weights_sha256
from ..models.loading import load_variant
from ..models.sizes import file_bytes, size_in_parts, stored_size
from ..models.variants import ONNX, VARIANTS, Variant
from . import figures, predictions, scores
from .session import eager
from .timing import spaced

SCORED = ("validation", "test")
INVARIANCE_TEXTS, INVARIANCE_BATCH = 48, 16
CHECKED_TEXTS = 16


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

    `folder` is the variant's checkpoint, `baseline` the FP32 one that it came from. `extra` joins
    the record; `predict` may spread rows over processes.
    """
    parts = size_in_parts(model)  # before bitsandbytes casts tensors
    described = {name: split.describe() for name, split in splits.items()}
    logits, pad_id = {}, tokenizer.pad_token_id
    for name in ("train", *SCORED):
        tokens = tokenize(tokenizer, splits[name], settings.max_length)
        described[name] |= tokens.cut()
        if name not in SCORED:
            continue
        words = f"{VARIANTS[key].label} on {name} ({settings.device})"
        logits[name] = predict(model, tokens, settings.batch_size, pad_id, words)
    # The loop ends on test.
    facts = {
        "splits": described,
        "data": described["test"] | splits["test"].facts,
        "size": {
            "parts": parts, "tensor_bytes": sum(parts.values()), "file_bytes": file_bytes(folder),
            "resident_bytes": sum(parts.values()), "stored": stored_size(folder),
        },
        "batch_invariance": batch_invariance(model, tokens, pad_id),
        **(extra or {}),
    }  # fmt: skip
    dtype = str(model.dtype).removeprefix("torch.")
    return _store(settings, VARIANTS[key], splits, logits, folder, baseline, dtype, facts)


def evaluate_tfidf(
    settings: Settings, variant: Variant, splits: dict[str, Split], baseline: Path
) -> dict:
    """Fit the control on the texts that made `baseline`, save it, and `evaluate_variant` it."""
    folder, train = settings.models_dir / variant.folder, splits["train"]
    tfidf.fit(train.texts, train.labels, len(train.classes), settings.seed).save(folder)
    classifier = tfidf.load(folder)
    logits = {name: classifier.logits(splits[name].texts) for name in SCORED}
    facts = {"size": tfidf.size(folder)}
    return _store(settings, variant, splits, logits, folder, baseline, "float32", facts)


def evaluate_onnx(settings: Settings, variants: list[Variant], baseline: Path) -> None:
    """Write each as ONNX, scored by ONNX Runtime, where not done yet; say which cannot be."""
    splits, tokenizer = load_splits(settings), load_tokenizer(baseline)
    tokens = {name: tokenize(tokenizer, splits[name], settings.max_length) for name in SCORED}
    pad_id, lengths = tokenizer.pad_token_id, tokens["validation"].lengths
    rows = np.argsort(lengths)[spaced(len(lengths), CHECKED_TEXTS)]  # shortest to longest
    ids, mask, _ = pad_batch(tokens["validation"], rows, pad_id).values()
    asked = vars(settings) | {name: split.sha256 for name, split in splits.items()}
    for variant in variants:
        if not (row := ONNX.get(variant.key)):
            print(f"{variant.label} is not written as ONNX: torch cannot export its codes")
            continue
        source, folder = (settings.models_dir / v.folder for v in (variant, row))
        step = Step(settings.results_dir, row.key, asked, weights_files(source))
        if step.complete():
            continue
        wanted = variant.key, settings.models_dir, "cpu", None, splits["train"].classes
        facts = onnx_export.write(load_variant(*wanted), source, folder, ids, mask)
        function, logits = onnx_export.load(folder), {}
        for name in SCORED:
            rest = settings.batch_size, pad_id, f"{row.label} on {name} (cpu)"
            logits[name] = predictions.run_over(function, "cpu", tokens[name], *rest)
        record = _store(settings, row, splits, logits, folder, baseline, "float32", facts)
        step.finish([folder / row.first_file, *written(settings.results_dir, row.key)])
        checked = "; logits differ by {largest_logit_difference:.1e}, of {bound:.1e} allowed"
        print(headline(record) + checked.format(**facts["onnx"]))


def _store(
    settings: Settings,
    variant: Variant,
    splits: dict[str, Split],
    logits: dict[str, np.ndarray],
    folder: Path,
    baseline: Path,
    dtype: str,
    facts: dict,
) -> dict:
    key, results = variant.key, settings.results_dir
    for name, stored_as in (("validation", f"{key}.validation"), ("test", key)):
        labels = np.asarray(splits[name].labels)
        predictions.save_predictions(results, stored_as, labels, logits[name])
    # The loop ends on test.
    path = results / f"{key}_confusion_matrix.png"
    figures.confusion_matrix(labels, logits["test"], variant.label, path, splits["test"].classes)
    record = {
        "variant": {
            "label": variant.label, "folder": folder.name, "script": variant.script_path,
            "dtype": dtype,
        },
        "settings": settings.as_dict(),
        "checkpoint": {
            "base_model": settings.base_model, "baseline_sha256": weights_sha256(baseline),
        },
        "data": splits["test"].describe() | splits["test"].facts,
        "splits": {name: split.describe() for name, split in splits.items()},
        "metrics": scores.classification_scores(labels, logits["test"]),
        "latency": [],
        "provenance": records.provenance(settings.device, settings.seed),
        **facts,
    }  # fmt: skip
    records.save_record(results, key, record)
    if row := ONNX.get(key):  # of the weights before
        (results / f"records/{row.key}.json").unlink(missing_ok=True)
    return record


def written(results_dir: Path, key: str) -> list[Path]:
    """The files of `evaluate_variant`."""
    paths = [predictions.predictions_path(results_dir, key + x) for x in ("", ".validation")]
    return [
        *paths,
        results_dir / f"records/{key}.json",
        results_dir / f"{key}_confusion_matrix.png",
    ]


def batch_invariance(model, tokens: Tokens, pad_id: int) -> dict:
    """How much a text's logits depend on the texts beside it: in batches of 16, and alone at the
    same length.
    """
    device, function, gaps, flips = next(model.parameters()).device, eager(model), [], 0
    rows = spaced(len(tokens), min(INVARIANCE_TEXTS, len(tokens)))
    with torch.inference_mode():
        for start in range(0, len(rows), INVARIANCE_BATCH):
            batch = pad_batch(tokens, rows[start : start + INVARIANCE_BATCH], pad_id)
            ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
            alone = torch.cat(
                [function(*one) for one in zip(ids.split(1), mask.split(1), strict=True)]
            ).float()
            together = function(ids, mask).float()
            gaps.append(float((alone - together).abs().max()))
            flips += int((alone.argmax(1) != together.argmax(1)).sum())
    return {
        "batch_sizes": [1, INVARIANCE_BATCH], "n": len(rows), "flips": flips,
        "largest_logit_difference": max(gaps),
    }  # fmt: skip


def headline(record: dict) -> str:
    words = ": accuracy {value:.4f} [{low:.4f}, {high:.4f}]"
    return record["variant"]["label"] + words.format(**record["metrics"]["accuracy"])
