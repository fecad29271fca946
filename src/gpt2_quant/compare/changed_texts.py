"""The test texts whose answer quantization changes most: numbers say how often, these show on what.

A row's change is the largest KL(baseline || variant) over all variants (`paired.divergence`), in
nats. Results are for publishing and the texts are the data set's owner's: files and report name
rows, and only the terminal shows texts, when `--dataset` says where they are.
"""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import softmax

from ..cli import Settings
from ..data.datasets import load_splits
from ..data.labels import LABELS
from ..errors import UserError
from ..measure import paired
from ..records import write_csv
from .comparison import Comparison


def most_changed(comparison: Comparison, count: int = 10) -> list[dict]:
    """The `count` rows of largest change, each {id, label, by, kl, before, before_p, after,
    after_p}.

    `by` is the variant that changes the row most; before and after are the class and its
    probability, baseline's and that variant's. Ties go to the lower id.
    """
    others = [row for row in comparison.present if row.against]
    if not others:
        return []
    baseline = comparison.row(comparison.baseline).source.logits
    names = (
        LABELS if baseline.shape[1] == len(LABELS) else [str(i) for i in range(baseline.shape[1])]
    )
    changes = np.stack(
        [paired.divergence(baseline, row.source.logits) for row in others]
    )  # [variants, n]
    rows = np.argsort(-changes.max(axis=0), kind="stable")[:count]
    result = []
    for row in rows:
        variant = others[int(changes[:, row].argmax())]
        before, after = (
            softmax(logits[row].astype(np.float64)) for logits in (baseline, variant.source.logits)
        )
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


def read_test_texts(comparison: Comparison, dataset: str) -> list[str]:
    """The test set's texts from `dataset`, a folder or a hub id.

    Raises UserError where it cannot be read, where no record says which test set the rows are
    about, and where it is another.
    """
    record = comparison.record
    if record is None:
        raise UserError(
            "--dataset shows nothing here: none of the rows has a record of its test set; leave it out"
        )
    said = record["settings"]
    folders = {name: Path(said[name]) for name in ("models_dir", "results_dir")}
    source = {
        "dataset": dataset,
        "dataset_revision": said["dataset_revision"] if dataset == said["dataset"] else None,
    }
    # Not under the demo's own preset: that would make its corpus and model anew where they are
    # gone.
    settings = Settings(
        **{
            **said,
            **folders,
            **source,
            "preset": "paper",
            "max_train_samples": None,
            "overwrite": False,
        }
    )
    split = load_splits(settings)["test"]
    if split.sha256 != record["data"]["sha256"]:
        raise UserError(
            f"--dataset {dataset} is not the records' test set (its sha256 differs): name theirs, {said['dataset']}"
        )
    return split.texts


def printed(rows: list[dict], texts: list[str], width: int = 100) -> str:
    """The rows of `most_changed` with their texts, for the terminal."""
    lines = ["The texts whose answer changes most:"]
    for row in rows:
        still = "still " * (row["after"] == row["before"])
        answers = f"{row['before']} {row['before_p']:.2f}; {row['by']} {still}{row['after']} {row['after_p']:.2f}"
        lines.append(f"row {row['id']}, {row['label']}: {answers}, KL {row['kl']:.3f}")
        lines += textwrap.wrap(
            texts[row["id"]],
            width,
            initial_indent="  ",
            subsequent_indent="  ",
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def write(rows: list[dict], results_dir: Path) -> Path:
    """Write the rows of `most_changed` as changed_texts.csv; returns its path."""
    path = results_dir / "changed_texts.csv"
    write_csv(path, pd.DataFrame(rows))
    return path
