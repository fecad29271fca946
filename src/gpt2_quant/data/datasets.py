"""AG News as text, from the hub or from a folder.

The validation split, which serves all selection (best epoch, temperature), is cut from train by
content: rows whose text's sha256, as a number, is divisible by 20 (5%). It is the same in every
run, and no copy of a text lands on the other side. `--max-*-samples N` likewise keeps the N rows
with the smallest hashes.
"""

import csv
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..cli import Settings, looks_like_path
from ..errors import UserError
from .hub import hub_faults, retried
from .labels import LABELS

VALIDATION_DIVISOR = 20
Rows = tuple[list[str], list[int]]  # texts, and their labels 0–3


@dataclass(frozen=True)
class Split:
    """Texts and labels (0–3) from `source` at `revision`; `cache`, if given, keeps tokens."""

    name: str
    texts: list[str]
    labels: list[int]
    source: str
    revision: str | None = None
    cache: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Over `label TAB text NUL` per row, in order, UTF-8."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{label}\t{text}\0".encode())
        return digest.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> "Split":
        texts, labels = [self.texts[i] for i in rows], [self.labels[i] for i in rows]
        return replace(self, texts=texts, labels=labels)

    def describe(self) -> dict:
        return {
            "name": self.source,
            "revision": self.revision,
            "split": self.name,
            "n": len(self.texts),
            "sha256": self.sha256,
            "empty_texts": sum(not text.strip() for text in self.texts),
        }


def load_splits(settings: Settings) -> dict[str, Split]:
    """Raises UserError for missing or malformed files, other classes, an unknown or unreachable hub
    id, or fewer rows than asked for.
    """
    name, revision = settings.dataset, settings.dataset_revision
    if looks_like_path(name):
        revision, rows = None, [_read_local(Path(name), split) for split in ("train", "test")]
    else:
        rows = _read_hub(name, revision)
    kept = settings.results_dir / "cache"
    train, test = (
        Split(split, *found, name, revision, kept)
        for split, found in zip(("train", "test"), rows, strict=True)
    )
    held_out = np.array([_digest(text) % VALIDATION_DIVISOR == 0 for text in train.texts])
    if not held_out.any():
        fault = f"--dataset {name}: its {len(held_out)} train rows leave none for validation"
        raise UserError(f"{fault}; give more rows")
    return {
        "train": _fewer(train.take(np.flatnonzero(~held_out)), settings.max_train_samples),
        "validation": replace(train.take(np.flatnonzero(held_out)), name="validation"),
        "test": _fewer(test, settings.max_test_samples),
    }


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _fewer(split: Split, limit: int | None) -> Split:
    if limit is None:
        return split
    if limit > (n := len(split.texts)):
        fault = f"--max-{split.name}-samples {limit} asks for more than the {n} {split.name} rows"
        raise UserError(f"{fault} there are: give {n} or less")
    lowest = sorted(range(n), key=lambda i: _digest(split.texts[i]))[:limit]
    return split.take(sorted(lowest))


@cache
def _read_local(folder: Path, split: str) -> Rows:
    """From `<split>.csv` in AG News' form, or the hub's parquet files."""
    path = folder / f"{split}.csv"
    if path.is_file():
        return read_csv(path)
    shards = sorted(folder.rglob(f"{split}*.parquet"))
    if not shards:
        fault = f"--dataset {folder} has neither {split}.csv nor {split}-*.parquet"
        raise UserError(f"{fault}: name a folder that holds AG News")
    import pyarrow.dataset

    try:
        table = pyarrow.dataset.dataset(shards).to_table(columns=["text", "label"])
    except (pyarrow.ArrowException, OSError) as fault:
        wrong = f"{shards[0].parent}: {split} files are damaged or lack columns text and label"
        raise UserError(f"{wrong}; fetch them again") from fault
    labels = table["label"].to_pylist()
    _check_labels(labels, str(shards[0].parent))
    return table["text"].to_pylist(), labels


FORM = "a row is a class from 1 to 4, a title and a description"


def read_csv(path: Path) -> Rows:
    """Texts (title, space, description) and labels 0–3 from AG News' CSV: class 1–4, title,
    description, quoted, no header, UTF-8. Raises UserError naming file and line.
    """
    csv.field_size_limit(1 << 30)
    texts, labels = [], []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if wrong := _fault_of(row, reader.line_num):
                    raise UserError(f"{path}, line {reader.line_num} {wrong}")
                labels.append(int(row[0]) - 1)
                texts.append(" ".join(row[1:]) if any(row[1:]) else "")
        except UnicodeDecodeError as fault:
            wrong = f"{path} is not UTF-8 (byte {fault.start} after some text)"
            raise UserError(f"{wrong}: convert it, with iconv, say") from fault
        except csv.Error as fault:
            wrong = f"{path}, line {reader.line_num}, is not well-formed CSV ({fault})"
            raise UserError(f"{wrong}: mend it or fetch it again") from fault
    if not texts:
        raise UserError(f"{path} is empty: fetch it again")
    return texts, labels


def _fault_of(row: list[str], line: int) -> str | None:
    if any("\0" in field for field in row):
        return "holds a NUL byte: remove it, the file is damaged"
    if len(row) != 3:
        return f"has {len(row)} columns where three are needed ({FORM}): mend the file"
    if row[0] not in ("1", "2", "3", "4"):
        header = line == 1 and not row[0].lstrip("-").isdigit()
        mend = "remove the header row" if header else "mend the row"
        return f"begins with {row[0][:40]!r} where a class is expected ({FORM}): {mend}"
    return None


def _read_hub(name: str, revision: str | None) -> list[Rows]:
    from datasets import load_dataset

    with hub_faults(name, "--dataset"):
        loaded = retried(lambda: load_dataset(name, revision=revision))
    rows = []
    for split in ("train", "test"):
        if split not in loaded or not {"text", "label"} <= set(loaded[split].column_names):
            fault = f"--dataset {name} has no {split} split with the columns text and label"
            raise UserError(f"{fault}: name another dataset")
        rows.append((list(loaded[split]["text"]), list(loaded[split]["label"])))
        _check_labels(rows[-1][1], name)
    return rows


def _check_labels(labels: list[int], where: str) -> None:
    found = sorted(set(labels), key=str)
    if not labels or not set(found) <= set(range(len(LABELS))):
        fault = f"{where} has labels {found[:9]} where 0 to 3 are needed"
        raise UserError(f"{fault}: name a dataset with AG News' four classes")
