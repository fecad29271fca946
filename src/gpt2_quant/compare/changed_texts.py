"""The test texts whose answer quantization changes most.

A text's change is the largest KL(baseline || variant) in nats (`paired.divergence`) over the rows
made from the checkpoint. Files name test rows by id; the texts, their owner's, appear in the
terminal only.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from ..cli import Settings
from ..data.datasets import load_splits
from ..errors import UserError
from ..measure import paired
from .comparison import Comparison


def most_changed(comparison: Comparison, count: int = 10) -> pd.DataFrame:
    """The `count` test rows of largest change: id, label, by, kl, before, before_p, after, after_p.

    `by` is the variant that changes the row most; before and after are the class and its
    probability, the baseline's and that variant's. Ties go to the lower id.
    """
    rows = comparison.derived
    if not rows:
        return pd.DataFrame()
    baseline = comparison.baseline.logits
    logits = np.stack([row.logits for row in rows])  # [variants, n, C]
    kl = np.stack([paired.divergence(baseline, variant) for variant in logits])
    ids = np.argsort(-kl.max(axis=0), kind="stable")[:count]
    by = kl[:, ids].argmax(axis=0)
    names = np.array(comparison.classes)
    by_label = [rows[i].label for i in by]
    found = {"id": ids, "label": names[comparison.labels[ids]], "by": by_label, "kl": kl[by, ids]}
    for when, answers in (("before", baseline[ids]), ("after", logits[by, ids])):
        probability = softmax(answers.astype(np.float64), axis=1)
        found[when] = names[probability.argmax(axis=1)]
        found[f"{when}_p"] = probability.max(axis=1)
    return pd.DataFrame(found)


def read_test_texts(comparison: Comparison, dataset: str) -> Sequence[str]:
    """The test set's texts from `dataset`, a folder or a hub id.

    Raises UserError where it cannot be read, no record names the test set, or it is another.
    """
    record = comparison.record
    if not record:
        fault = "--dataset shows nothing here: none of the rows has a record of its test set"
        raise UserError(f"{fault}; leave it out")
    said = record["settings"]
    paths = {name: Path(said[name]) for name in ("models_dir", "results_dir")}
    settings = replace(Settings(**said | paths, overwrite=False), max_train_samples=None)
    if dataset != said["dataset"]:
        settings = replace(settings, dataset=dataset, dataset_revision=None)
    split = load_splits(settings)["test"]
    if split.sha256 != record["data"]["sha256"]:
        fault = f"--dataset {dataset} is not the records' test set (its sha256 differs)"
        raise UserError(f"{fault}: name theirs, {said['dataset']}")
    return split.texts


def printed(changed: pd.DataFrame, texts: Sequence[str], width: int = 100) -> str:
    lines = ["The texts whose answer changes most:"]
    for row in changed.to_dict("records"):
        still = "still " * (row["after"] == row["before"])
        lines.append(
            f"row {row['id']}, {row['label']}: {row['before']} {row['before_p']:.2f}; "
            f"{row['by']} {still}{row['after']} {row['after_p']:.2f}, KL {row['kl']:.3f}"
        )
        text = textwrap.fill(texts[row["id"]], width - 2, break_on_hyphens=False)
        lines.append(textwrap.indent(text, "  "))
    return "\n".join(lines)
