"""AG News as text: from the hub, from a folder, or from the demo.

*Splits.* AG News has train and test. A validation split is cut from train by content: a row belongs
to it when the sha256 of its text, read as a number, is divisible by 20 (5%). The rule knows no seed
and no row order, so the split is the same in every run, and two copies of one text never land on
both sides. Whatever is chosen (the best epoch, a temperature) is chosen there; the test split is
only ever reported. `--max-*-samples N` keeps the N rows with the smallest hashes, for the same
reasons.
"""

import csv
import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from ..cli import Settings, looks_like_path
from ..errors import UserError
from .hub import hub_faults, retried
from .labels import LABELS

VALIDATION_SHARE = 20  # one row in so many


@dataclass(frozen=True)
class Split:
    """One split: `texts[i]` has class `labels[i]` (0–3); `source` and `revision` say where it came
    from.

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
        """Fingerprint over texts and labels in order: `label TAB text NUL` a row, UTF-8."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{label}\t{text}\0".encode())
        return digest.hexdigest()

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
    own = {str(settings.models_dir / "dataset"), str(settings.models_dir / "base_gpt2")}
    if settings.preset == "demo" and own & {settings.dataset, settings.base_model}:
        from . import demo

        demo.prepare(settings.models_dir, settings.results_dir, settings.seed)
    revision = None
    if looks_like_path(settings.dataset):
        rows = {name: _read_local(Path(settings.dataset), name) for name in ("train", "test")}
    else:
        rows = _read_hub(settings.dataset, settings.dataset_revision)
        revision = settings.dataset_revision
    train_texts, train_labels = rows["train"]
    digests = [_digest(text) for text in train_texts]
    held_out = np.array([digest % VALIDATION_SHARE == 0 for digest in digests], dtype=bool)
    if not held_out.any():
        raise UserError(
            f"--dataset {settings.dataset}: its {len(train_texts)} train rows leave none for validation; give more rows"
        )

    def split(name: str, texts: list[str], labels: list[int], limit: int | None) -> Split:
        if limit is not None:
            keep = _smallest_digests(texts, limit, name)
            texts, labels = [texts[i] for i in keep], [labels[i] for i in keep]
        return Split(
            name, texts, labels, settings.dataset, revision, cache=settings.results_dir / "cache"
        )

    def of_train(mask: np.ndarray) -> tuple[list[str], list[int]]:
        rows = np.flatnonzero(mask)
        return [train_texts[i] for i in rows], [train_labels[i] for i in rows]

    return {
        "train": split("train", *of_train(~held_out), settings.max_train_samples),
        "validation": split("validation", *of_train(held_out), None),
        "test": split("test", *rows["test"], settings.max_test_samples),
    }


def _digest(text: str) -> int:
    """The text's sha256 as a number: a fixed, uniform draw that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")


def _check_limit(n: int, limit: int | None, name: str) -> None:
    if limit is not None and limit > n:
        raise UserError(
            f"--max-{name}-samples {limit} asks for more than the {n} {name} rows there are: give {n} or less"
        )


def _smallest_digests(texts: list[str], limit: int, name: str) -> list[int]:
    """Row numbers, in order, of the `limit` rows whose text hashes lowest."""
    _check_limit(len(texts), limit, name)
    order = sorted(range(len(texts)), key=lambda row: (_digest(texts[row]), row))
    return sorted(order[:limit])


def check_folder(settings: Settings) -> None:
    """Read the dataset where it is a folder, so that its faults are told before the large libraries
    have loaded.
    """
    if settings.preset != "demo" and looks_like_path(settings.dataset):
        for name, limit in (
            ("train", settings.max_train_samples),
            ("test", settings.max_test_samples),
        ):
            texts, _ = _read_local(Path(settings.dataset), name)
            _check_limit(len(texts), limit, name)


@cache
def _read_local(folder: Path, name: str) -> tuple[list[str], list[int]]:
    """A split from `<name>.csv` in AG News' own form, or from the hub's parquet files
    (`data/<name>-*.parquet`).
    """
    if (path := folder / f"{name}.csv").is_file():
        return read_csv(path)
    shards = sorted(folder.rglob(f"{name}*.parquet"))
    if not shards:
        raise UserError(
            f"--dataset {folder} has neither {name}.csv nor {name}-*.parquet: name a folder that holds AG News"
        )
    import pyarrow
    import pyarrow.parquet

    texts, labels = [], []
    for shard in shards:
        try:
            table = pyarrow.parquet.read_table(shard, columns=["text", "label"])
        except (pyarrow.ArrowException, OSError) as fault:
            raise UserError(
                f"{shard} is no parquet file with the columns text and label: fetch it again"
            ) from fault
        texts += table.column("text").to_pylist()
        labels += table.column("label").to_pylist()
    _check_labels(labels, str(shards[0].parent))
    return texts, labels


def read_csv(path: Path) -> tuple[list[str], list[int]]:
    """Read AG News' own CSV: class index 1–4, title, description, quoted, no header, UTF-8.

    Returns texts (title, one space, description) and labels 0–3. Raises UserError naming file and
    line.
    """
    texts, labels = [], []
    wanted = "a row is a class from 1 to 4, a title and a description"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            # A field may be longer than csv's default limit of 131,072 characters: length is
            # truncation's business.
            csv.field_size_limit(1 << 30)
            reader = csv.reader(file, strict=True)
            for row in reader:
                at = f"{path}, line {reader.line_num}"
                if any("\0" in field for field in row):
                    raise UserError(f"{at} holds a NUL byte: remove it, the file is damaged")
                if len(row) != 3:
                    raise UserError(
                        f"{at} has {len(row)} columns where three are needed ({wanted}): mend the file"
                    )
                if row[0] not in ("1", "2", "3", "4"):
                    hint = (
                        "remove the header row"
                        if reader.line_num == 1 and not row[0].lstrip("-").isdigit()
                        else "mend the row"
                    )
                    raise UserError(
                        f"{at} begins with {row[0][:40]!r} where a class is expected ({wanted}): {hint}"
                    )
                labels.append(int(row[0]) - 1)
                texts.append(f"{row[1]} {row[2]}" if row[1] or row[2] else "")
    except UnicodeDecodeError as fault:
        raise UserError(
            f"{path} is not UTF-8 (byte {fault.start} after some text): convert it, for instance with iconv"
        ) from fault
    except csv.Error as fault:
        line = f"line {reader.line_num}"
        raise UserError(
            f"{path}, {line}, is not well-formed CSV ({fault}): mend the row or fetch the file again"
        ) from fault
    if not texts:
        raise UserError(f"{path} is empty: fetch it again ({wanted})")
    return texts, labels


def _read_hub(name: str, revision: str | None) -> dict[str, tuple[list[str], list[int]]]:
    """Train and test of a hub dataset with the columns `text` and `label` (0–3)."""
    from datasets import load_dataset

    with hub_faults(name, "--dataset"):
        loaded = retried(lambda: load_dataset(name, revision=revision))
    result = {}
    for split in ("train", "test"):
        if split not in loaded or not {"text", "label"} <= set(loaded[split].column_names):
            raise UserError(
                f"--dataset {name} has no {split} split with the columns text and label: name another dataset"
            )
        result[split] = list(loaded[split]["text"]), list(loaded[split]["label"])
        _check_labels(result[split][1], name)
    return result


def _check_labels(labels: list[int], where: str) -> None:
    strange = set(labels) - set(range(len(LABELS)))
    if strange or not labels:
        found = f"labels {sorted(strange, key=str)[:5]}" if strange else "no rows"
        raise UserError(
            f"{where} has {found} where labels from 0 to 3 are needed: name a dataset with AG News' four classes"
        )
