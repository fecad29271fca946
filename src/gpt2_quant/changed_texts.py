"""The test texts whose answer quantization changes most: numbers say how often, these show on what.

A row's change is the largest KL(baseline || variant) over all variants (`paired.divergence`), in nats. The texts
themselves are not among the results; they are read from the dataset that the records name, and shown only when their
fingerprint is the one in the records. Nothing is fetched for it: without the dataset at hand the rows keep their ids.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from . import paired
from .comparison import Comparison
from .data import LABELS, load_splits
from .records import write_csv
from .settings import ROOT, Settings, UserError


def most_changed(comparison: Comparison, count: int = 10) -> list[dict]:
    """The `count` rows of largest change, each {id, label, by, kl, before, before_p, after, after_p}.

    `by` is the variant that changes the row most; before and after are the class and its probability, baseline's and that
    variant's. Ties go to the lower id.
    """
    others = [row for row in comparison.present if row.against]
    if not others:
        return []
    baseline = comparison.row(comparison.baseline).source.logits
    names = LABELS if baseline.shape[1] == len(LABELS) else [str(i) for i in range(baseline.shape[1])]
    changes = np.stack([paired.divergence(baseline, row.source.logits) for row in others])  # [variants, n]
    rows = np.argsort(-changes.max(axis=0), kind="stable")[:count]
    result = []
    for row in rows:
        variant = others[int(changes[:, row].argmax())]
        before, after = (softmax(logits[row].astype(np.float64)) for logits in (baseline, variant.source.logits))
        result.append(
            {
                "id": int(row),
                "label": names[comparison.labels[row]],
                "by": variant.label,
                "kl": float(changes[:, row].max()),
                "before": names[before.argmax()],
                "before_p": float(before.max()),
                "after": names[after.argmax()],
                "after_p": float(after.max()),
            }
        )
    return result


def read_test_texts(comparison: Comparison, dataset: str | None = None) -> tuple[list[str] | None, str]:
    """The test set's texts, or None, and a sentence that says where they are from or why they are not shown.

    `dataset` is a folder to read instead of the one that the records name.
    """
    record = comparison.record
    if record is None:
        return None, "The texts are not shown: none of the rows has a record that names its dataset."
    said = record["settings"]
    folders = {name: Path(said[name]) for name in ("models_dir", "results_dir")}
    # Not under the demo's own preset: that would make its corpus and model anew where they are gone.
    settings = Settings(**{**said, **folders, "preset": "paper", "max_train_samples": None, "overwrite": False})
    if dataset:
        settings = replace(settings, dataset=dataset, dataset_revision=None)
    elif (ROOT / said["dataset"]).is_dir():  # records name the repository's folders from its root
        settings = replace(settings, dataset=str(ROOT / said["dataset"]))
    # A comparison reads what is on this disk: a dataset that was never fetched is not fetched for ten texts.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    try:
        split = load_splits(settings)["test"]
    except (UserError, OSError):
        return None, f"The texts are not shown: {dataset or said['dataset']} is not at hand; name its folder with --dataset."
    if split.sha256 != record["data"]["sha256"]:
        return None, f"The texts are not shown: {dataset or said['dataset']} is not the records' test set (its sha256 differs)."
    return split.texts, f"Texts from {dataset or said['dataset']}."


def describe(comparison: Comparison, dataset: str | None = None) -> tuple[list[dict], str]:
    """`most_changed` rows with their `text` where it is at hand, and the sentence about the texts."""
    rows = most_changed(comparison)
    texts, note = read_test_texts(comparison, dataset)
    return [{**row, "text": texts[row["id"]]} if texts else row for row in rows], note


def write(rows: list[dict], results_dir: Path) -> Path:
    """Write the rows of `describe` as changed_texts.csv; returns its path."""
    path = results_dir / "changed_texts.csv"
    write_csv(path, pd.DataFrame(rows))
    return path
