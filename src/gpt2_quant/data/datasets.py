"""AG News as text, from the hub or from a folder.

AG News has train and test. A validation split is cut from train by content: a row belongs to it
when the sha256 of its text, read as a number, is divisible by 20 (5%). The rule knows no seed and
no row order, so the split is the same in every run, and two copies of one text never land on both
sides. Whatever is chosen (the best epoch, a temperature) is chosen there; the test split is only
ever reported. `--max-*-samples N` keeps the N rows with the smallest hashes, for the same reasons.
"""

import csv
import hashlib
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from ..cli import Settings, looks_like_path
from ..errors import UserError
from .hub import hub_faults, retried
from .labels import LABELS

VALIDATION_DIVISOR = 20  # one row in so many
Rows = tuple[list[str], list[int]]  # texts, and their labels 0–3


@dataclass(frozen=True)
class Split:
    """One split: `texts[i]` has class `labels[i]` (0–3), from `source` at `revision`.

    `cache` is the folder that keeps its tokens for the next time (tokens.py); None keeps none.
    """

    name: str
    texts: list[str]
    labels: list[int]
    source: str
    revision: str | None = None
    cache: Path | None = None

    @cached_property
    def sha256(self) -> str:
        """Fingerprint over texts and labels in order: `label TAB text NUL` per row, UTF-8."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{label}\t{text}\0".encode())
        return digest.hexdigest()

    def take(self, rows: list[int]) -> "Split":
        """The same split with these rows only."""
        texts, labels = [self.texts[i] for i in rows], [self.labels[i] for i in rows]
        return replace(self, texts=texts, labels=labels)

    def describe(self) -> dict:
        """What a record says of the split."""
        return {
            "name": self.source,
            "revision": self.revision,
            "split": self.name,
            "n": len(self.texts),
            "sha256": self.sha256,
            "empty_texts": sum(not text.strip() for text in self.texts),
        }


def load_splits(settings: Settings) -> dict[str, Split]:
    """The splits `train`, `validation` and `test` as the settings name them.

    Raises UserError for a folder without the files, a malformed row (named by file and line),
    classes other than four, an unknown or unreachable hub id, or fewer rows than
    `max_train_samples` or `max_test_samples` ask for.
    """
    name, revision = settings.dataset, settings.dataset_revision
    if looks_like_path(name):
        revision = None
        rows = {split: _read_local(Path(name), split) for split in ("train", "test")}
    else:
        rows = _read_hub(name, revision)
    kept = settings.results_dir / "cache"
    train, test = (Split(split, *rows[split], name, revision, kept) for split in rows)

    held_out = [_digest(text) % VALIDATION_DIVISOR == 0 for text in train.texts]
    validation = replace(
        train.take([i for i, out in enumerate(held_out) if out]), name="validation"
    )
    if not validation.texts:
        fault = f"--dataset {name}: its {len(held_out)} train rows leave none for validation"
        raise UserError(f"{fault}; give more rows")
    train = train.take([i for i, out in enumerate(held_out) if not out])
    return {
        "train": _fewer(train, settings.max_train_samples),
        "validation": validation,
        "test": _fewer(test, settings.max_test_samples),
    }


def check_folder(settings: Settings) -> None:
    """Read the data set where it is a folder: its faults are told before large libraries load."""
    if settings.preset != "demo" and looks_like_path(settings.dataset):
        load_splits(settings)


def _digest(text: str) -> int:
    """The text's sha256 as a number: a fixed, uniform draw that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _fewer(split: Split, limit: int | None) -> Split:
    n = len(split.texts)
    if limit is None:
        return split
    if limit > n:
        asked = f"--max-{split.name}-samples {limit}"
        there = f"more than the {n} {split.name} rows there are"
        raise UserError(f"{asked} asks for {there}: give {n} or less")
    return split.take(smallest_digests(split.texts, limit))


def smallest_digests(texts: list[str], limit: int) -> list[int]:
    """Row numbers, in order, of the `limit` rows whose text hashes lowest."""
    return sorted(sorted(range(len(texts)), key=lambda i: _digest(texts[i]))[:limit])


@cache
def _read_local(folder: Path, split: str) -> Rows:
    """A split from `<split>.csv` in AG News' own form, or from the hub's parquet files."""
    path = folder / f"{split}.csv"
    if path.is_file():
        return read_csv(path)
    shards = sorted(folder.rglob(f"{split}*.parquet"))
    if not shards:
        fault = f"--dataset {folder} has neither {split}.csv nor {split}-*.parquet"
        raise UserError(f"{fault}: name a folder that holds AG News")
    import pyarrow
    import pyarrow.parquet

    texts, labels = [], []
    for shard in shards:
        try:
            table = pyarrow.parquet.read_table(shard, columns=["text", "label"])
        except (pyarrow.ArrowException, OSError) as fault:
            wrong = f"{shard} is no parquet file with the columns text and label"
            raise UserError(f"{wrong}: fetch it again") from fault
        texts += table["text"].to_pylist()
        labels += table["label"].to_pylist()
    _check_labels(labels, str(shards[0].parent))
    return texts, labels


FORM = "a row is a class from 1 to 4, a title and a description"


def read_csv(path: Path) -> Rows:
    """Read AG News' own CSV: class index 1–4, title, description, quoted, no header, UTF-8.

    Returns texts (title, one space, description) and labels 0–3. Raises UserError naming file and
    line.
    """
    # A field may be longer than csv's default limit of 131,072 characters: that is truncation's
    # business.
    csv.field_size_limit(1 << 30)
    texts, labels = [], []
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                if wrong := _fault_of(row, reader.line_num):
                    raise UserError(f"{path}, line {reader.line_num} {wrong}")
                number, title, description = row
                labels.append(int(number) - 1)
                texts.append(f"{title} {description}" if title or description else "")
        except UnicodeDecodeError as fault:
            wrong = f"{path} is not UTF-8 (byte {fault.start} after some text)"
            raise UserError(f"{wrong}: convert it, for instance with iconv") from fault
        except csv.Error as fault:
            wrong = f"{path}, line {reader.line_num}, is not well-formed CSV ({fault})"
            raise UserError(f"{wrong}: mend the row or fetch the file again") from fault
    if not texts:
        raise UserError(f"{path} is empty: fetch it again ({FORM})")
    return texts, labels


def _fault_of(row: list[str], line: int) -> str | None:
    """What is wrong with a row, and what mends it."""
    if any("\0" in field for field in row):
        return "holds a NUL byte: remove it, the file is damaged"
    if len(row) != 3:
        return f"has {len(row)} columns where three are needed ({FORM}): mend the file"
    if row[0] not in ("1", "2", "3", "4"):
        header = line == 1 and not row[0].lstrip("-").isdigit()
        mend = "remove the header row" if header else "mend the row"
        return f"begins with {row[0][:40]!r} where a class is expected ({FORM}): {mend}"
    return None


def _read_hub(name: str, revision: str | None) -> dict[str, Rows]:
    """Train and test of a hub dataset with the columns `text` and `label` (0–3)."""
    from datasets import load_dataset

    with hub_faults(name, "--dataset"):
        loaded = retried(lambda: load_dataset(name, revision=revision))
    rows = {}
    for split in ("train", "test"):
        if split not in loaded or not {"text", "label"} <= set(loaded[split].column_names):
            fault = f"--dataset {name} has no {split} split with the columns text and label"
            raise UserError(f"{fault}: name another dataset")
        rows[split] = list(loaded[split]["text"]), list(loaded[split]["label"])
        _check_labels(rows[split][1], name)
    return rows


def _check_labels(labels: list[int], where: str) -> None:
    strange = sorted(set(labels) - set(range(len(LABELS))), key=str)
    if strange or not labels:
        found = f"labels {strange[:5]}" if strange else "no rows"
        mend = "name a dataset with AG News' four classes"
        raise UserError(f"{where} has {found} where labels from 0 to 3 are needed: {mend}")
