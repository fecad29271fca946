"""A data set's splits: texts and labels from the hub, a folder or a file.

Where a split is missing it is cut from train by content: rows whose text's sha256, as a number,
leaves 0 when divided by 20 (5%) are validation, which serves all selection (best epoch,
temperature), 1 or 2 (10%) test. A cut is the same in every run and with any seed, and no copy of a
text lands on the other side. `--max-*-samples N` likewise keeps the N rows with the smallest
hashes. AG News in its own form (a CSV of class, title, description without header) is known by it.
"""

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..cli import TASKS, Settings, looks_like_path
from ..errors import UserError
from . import tables
from .classes import classes_of, codes
from .labels import LABELS

DIVISOR = 20
CUTS = {"validation": (0,), "test": (1, 2)}  # remainders


@dataclass(frozen=True)
class Split:
    """Texts and labels 0 … C-1, whose names are `classes`, from `source` at `revision`.

    `cache`, if given, keeps tokens; `facts` say how the data set was read.
    """

    name: str
    texts: Sequence[str]
    labels: list[int]
    source: str
    revision: str | None = None
    cache: Path | None = None
    classes: tuple[str, ...] = LABELS
    facts: dict = field(default_factory=dict)

    @cached_property
    def sha256(self) -> str:
        """Over `label TAB text NUL` per row, in order, UTF-8."""
        digest = hashlib.sha256()
        for text, label in zip(self.texts, self.labels, strict=True):
            digest.update(f"{label}\t{text}\0".encode())
        return digest.hexdigest()

    def take(self, rows: Sequence[int] | np.ndarray) -> "Split":
        """These rows, in this order."""
        texts = self.texts
        chosen = texts.take(rows) if isinstance(texts, tables.Texts) else [texts[i] for i in rows]
        return replace(self, texts=chosen, labels=[self.labels[i] for i in rows])

    def describe(self) -> dict:
        label, count = Counter(self.labels).most_common(1)[0]
        return {
            "name": self.source,
            "revision": self.revision,
            "split": self.name,
            "n": len(self.texts),
            "sha256": self.sha256,
            "empty_texts": sum(not text.strip() for text in self.texts),
            "n_classes": len(self.classes),
            "majority_class": self.classes[label],
            "majority_fraction": count / len(self.labels),
        }


class _Source(NamedTuple):
    """All that decides what is read."""

    name: str
    revision: str | None
    config: str | None
    texts: tuple[str, ...]
    label: str | None
    splits: tuple[tuple[str, str | None], ...]  # ours, the name asked for
    cache: Path


def load_splits(settings: Settings) -> dict[str, Split]:
    """train, validation and test. Raises UserError, one sentence, for a data set that is not there
    or out of reach, files, columns or labels that do not serve, and fewer rows than asked for.
    """
    name, asked = settings.dataset, vars(settings)
    splits = _load(
        _Source(
            name,
            None if looks_like_path(name) else settings.dataset_revision,
            settings.dataset_config,
            tuple(settings.text_columns or ()),
            settings.label_column,
            tuple((split, asked[f"{split}_split"]) for split in ("train", *CUTS)),
            settings.results_dir / "cache",
        )
    )
    n_classes = len(splits["train"].classes)
    if settings.task and n_classes != (needed := TASKS[settings.task].n_classes):
        fault = f"--task {settings.task} has {needed} classes and --dataset {name} {n_classes}"
        raise UserError(f"{fault}: leave one of the two out")
    return splits | {
        "train": _fewer(splits["train"], settings.max_train_samples),
        "test": _fewer(splits["test"], settings.max_test_samples),
    }


@cache
def _load(source: _Source) -> dict[str, Split]:
    whole, notes = _read(source)
    hashes = {name: _hashes(split.texts) for name, split in whole.items()}
    _, remainder = hashes["train"]
    rows = {name: np.arange(len(split.texts)) for name, split in whole.items()}
    for name in [split for split in CUTS if split not in whole]:
        rows[name] = np.flatnonzero(np.isin(remainder, CUTS[name]))
        if not len(rows[name]):
            fault = f"--dataset {source.name}: its {len(remainder)} train rows leave none for"
            raise UserError(f"{fault} {name}; give more rows")
        rows["train"] = np.setdiff1d(rows["train"], rows[name])
        whole[name] = replace(whole["train"], name=name)
        hashes[name] = hashes["train"]
        share = len(CUTS[name]) / DIVISOR
        notes.append(f"there is no {name} split: {share:.0%} of train, cut by content, is it")
    if not len(rows["train"]):
        fault = f"--dataset {source.name}: all its {len(remainder)} train rows are held out"
        raise UserError(f"{fault}; give more rows")
    kept = {name: hashes[name][0][rows[name]] for name in ("train", *CUTS)}
    shared = {}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if count := int(np.isin(kept[other], kept[one]).sum()):
            shared[f"{one}, {other}"] = count
            notes.append(f"{count:,} of the {len(kept[other]):,} {other} texts are in {one}, too")
    if notes and os.environ.get("RANK", "0") == "0":
        print(f"{source.name}: {'; '.join(notes)}.")
    facts = whole["train"].facts | {"notes": notes, "shared_texts": shared}
    return {name: replace(whole[name].take(rows[name]), facts=facts) for name in kept}


def _hashes(texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each text's sha256: the first 64 bits, uint64 [n], and the remainder, uint8 [n]."""

    def parts(text: str) -> tuple[int, int]:
        number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
        return number >> 192, number % DIVISOR

    found = np.fromiter(map(parts, texts), dtype=[("high", np.uint64), ("remainder", np.uint8)])
    return found["high"], found["remainder"]


def _fewer(split: Split, limit: int | None) -> Split:
    if limit is None:
        return split
    if limit > (n := len(split.texts)):
        fault = f"--max-{split.name}-samples {limit} asks for more than the {n} {split.name} rows"
        raise UserError(f"{fault} there are: give {n} or less")
    lowest = np.argsort(_hashes(split.texts)[0], kind="stable")[:limit]
    return split.take(np.sort(lowest))


def _read(source: _Source) -> tuple[dict[str, Split], list[str]]:
    """The splits that the data set itself has, and what was guessed, in sentences."""
    found, names = {}, None  # split -> table, or AG News' rows
    place = Path(source.name)
    if looks_like_path(source.name):
        names = tables.names_of_file(place)
        for split, asked in source.splits if place.is_dir() else source.splits[:1]:
            if files := tables.split_files(place, asked or split):
                found[split] = _read_files(files, source, names)
            elif asked or split == "train":
                forms = f"{asked or split}.csv, .tsv, .jsonl, .json or .parquet"
                mend = "name a folder that does, or the file itself"
                raise UserError(f"--dataset {place} holds no {forms}: {mend}")
    else:
        loaded = tables.read_hub(source.name, source.revision, source.config)
        for split, asked in source.splits:
            if (name := asked or split) in loaded:
                found[split] = loaded[name]
            elif asked or split == "train":
                fault = f"--dataset {source.name} has no {name} split; it has {', '.join(loaded)}"
                raise UserError(f"{fault}: name one with --{split}-split")
    own = dict(source=source.name, revision=source.revision, cache=source.cache)
    if isinstance(found["train"], tuple):  # AG News' own form
        facts = {"classes": LABELS}
        news = {split: Split(split, *rows, **own, facts=facts) for split, rows in found.items()}
        named = f"it has AG News' form, so its classes are {', '.join(LABELS)}"
        return news, [] if names else [named]
    chosen = tables.choose_columns(found["train"], source.texts, source.label, source.name)
    notes = []
    if not (source.texts and source.label):
        texts = " and ".join(chosen[0])
        notes.append(f"texts are read from column {texts}, labels from {chosen[1]}")
    values = {}
    for split, table in found.items():
        where = f"{source.name}, {split}"
        tables.choose_columns(table, *chosen, where)
        tables.check_texts(table, chosen[0], where)
        values[split], by_feature = tables.read_labels(table, chosen[1], where)
        names = by_feature or names
    classes = classes_of(values, names, source.name)
    facts = {"text_columns": chosen[0], "label_column": chosen[1], "classes": classes.names}
    splits = {}
    for split, table in found.items():
        texts, labels = tables.Texts(table, chosen[0]), codes(values[split], classes)
        if blank := sum(not text.strip() for text in texts):
            fault = f"{source.name}, {split}: {blank:,} of {len(texts):,} rows have an empty text"
            raise UserError(f"{fault}; remove these rows")
        splits[split] = Split(split, texts, labels, **own, classes=classes.names, facts=facts)
    return splits, notes


def _read_files(files: list[Path], source: _Source, names: tuple[str, ...] | None):
    """A table, or texts and labels where the file has AG News' own form and no other names."""
    if not (source.texts or source.label) and files[0].suffix == ".csv" and names in (None, LABELS):
        row = tables.first_row(files[0])
        if len(row) == 3 and tables.is_whole(row[0]) and not any(map(tables.is_whole, row[1:])):
            return read_csv(files[0])
    return tables.read_files(files, [*source.texts, *filter(None, [source.label])], source.cache)


FORM = "AG News' row is a class from 1 to 4, a title and a description"


def read_csv(path: Path) -> tuple[list[str], list[int]]:
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
        by_number = "or read another data set with --label-column 0 --text-columns 1 2"
        mend = "remove the header row" if header else f"mend the row, {by_number}"
        return f"begins with {row[0][:40]!r} where a class is expected ({FORM}): {mend}"
    return None
