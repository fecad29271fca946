"""Which experiment a record describes, and in what it is not the published one: by hub id and
revision, by the test set's fingerprint and by the flags, never by size alone.
"""

import re
from pathlib import Path

from ..cli import PRESETS
from ..models.variants import BASELINE
from .comparison import MIB, Comparison

PAPER = PRESETS["paper"]
# AG News as published: rows of train and test, and the fingerprint of the test texts and labels.
TRAIN_ROWS, TEST_ROWS = 120_000, 7_600
TEST_SHA256 = "bc56d7ecab50a3d83833a7e451f49ceefaccd812d0968a4db791b309018208ba"


def short(place: str) -> str:
    """A hub id as it is, of a folder its last name: reports hold no paths of one machine."""
    return place if re.fullmatch(r"[\w.-]+/[\w.-]+", place) else Path(place).name


def short_paths(command: str) -> str:
    """A command with absolute paths cut to their last names."""
    return re.sub(r"(?<![\w.])(?:~|[A-Za-z]:)?[/\\][^\s'\"]*[/\\]", "…/", command)


def departures(comparison: Comparison) -> list[str]:
    """In what the run is not the published experiment; [] where it is, or nothing is known."""
    record = comparison.record
    if not record:
        return []
    said, data, found = record["settings"], record["data"], []
    model = short(record["checkpoint"]["base_model"])
    if said["base_model"] != PAPER.base_model:
        found.append(f"the model is fine-tuned from {model}, not from {PAPER.base_model}")
    elif said["base_revision"] != PAPER.base_revision:
        found.append(f"{model} is not at the pinned revision {str(PAPER.base_revision)[:12]}")
    of_hub = said["dataset"] == PAPER.dataset and said["dataset_revision"] == PAPER.dataset_revision
    if not of_hub and data["sha256"] != TEST_SHA256:
        found.append(f"the test set is {data['n']:,} rows of {short(data['name'])}, not AG News'")
    elif data["n"] != TEST_ROWS:
        found.append(f"it is tested on {data['n']:,} rows of AG News, not on {TEST_ROWS:,}")
    splits = record.get("splits") or {}
    n_train = sum(splits[name]["n"] for name in ("train", "validation") if name in splits)
    if n_train and n_train != TRAIN_ROWS:
        found.append(f"{n_train:,} rows are for training and validation, not {TRAIN_ROWS:,}")
    used = record.get("training") or {}
    published = {"epochs": PAPER.epochs, "learning_rate": PAPER.learning_rate, "batch_size": 16}
    for name, value in published.items():
        if used.get(name, value) != value:
            found.append(f"{name.replace('_', ' ')} is {used[name]:g}, not {value:g}")
    if said["max_length"] != 128:
        found.append(f"texts are cut at {said['max_length']:,} tokens, not at 128")
    return found


def claims_apply(comparison: Comparison) -> bool:
    """Whether the published claims can be asked of these rows: AG News and GPT-2 (124M), by hub id,
    or by the test set's fingerprint and the architecture's bytes.
    """
    record, row, published = comparison.record, comparison.row(BASELINE.key), BASELINE.published
    if not (record and row and row.size and published):
        return False
    said = record["settings"]
    if said["base_model"] == PAPER.base_model and said["dataset"] == PAPER.dataset:
        return True
    same_bytes = round(row.size["stored_bytes"] / MIB, 2) == published.size_mb
    return same_bytes and record["data"]["sha256"] == TEST_SHA256
