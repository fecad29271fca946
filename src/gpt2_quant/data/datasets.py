"""A data set's splits: texts and labels from the hub, a folder or a file.

Where a split is missing it is cut from train by content: rows whose text's sha256, as a number,
leaves 0 when divided by 20 (5%) are validation, which serves all selection (best epoch,
temperature), 1 or 2 (10%) test. A cut is the same in every run and with any seed, and no copy of a
text lands on the other side. `--max-*-samples N` likewise keeps the N rows with the smallest
hashes. AG News in its own form (a CSV of class, title, description without header) is known by it.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..cli import TASKS, Settings, looks_like_path
from ..errors import UserError
from . import ag_news, tables
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

    @cached_property
    def empty_texts(self) -> int:
        return sum(not text.strip() for text in self.texts)

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
            "empty_texts": self.empty_texts,
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
        notes.append(f"there is no {name} split: {share:.0%} of train, by content, serve as one")
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
    """The splits that the data set itself has, and in sentences what was guessed."""
    named, names = [*source.texts, *filter(None, [source.label])], None
    origin: dict[str, Any] = {"source": source.name, "revision": source.revision}
    origin["cache"] = source.cache
    if looks_like_path(source.name):
        names, files = tables.names_of_file(Path(source.name)), _files(source)
        if not named and names in (None, LABELS) and ag_news.is_form(files["train"][0]):
            origin["facts"] = {"classes": LABELS}
            notes = [f"it has AG News' form, so its classes are {', '.join(LABELS)}"]
            rows = {split: ag_news.read_csv(paths[0]) for split, paths in files.items()}
            return {split: Split(split, *rows[split], **origin) for split in rows}, (
                [] if names else notes
            )
        found = {split: tables.read_files(f, named) for split, f in files.items()}
    else:
        found = tables.read_hub(source.name, source.revision, source.config)
        found = {split: found[name] for split, name in _named_splits(source, found)}
    columns, label = tables.choose_columns(found["train"], source.texts, source.label, source.name)
    notes = [f"texts are read from column {' and '.join(columns)}, labels from {label}"]
    values = {}
    for split, table in found.items():
        where = f"{source.name}, {split}"
        tables.choose_columns(table, columns, label, where)
        tables.check_texts(table, columns, where)
        values[split], by_feature = tables.read_labels(table, label, where)
        names = by_feature or names
    classes = classes_of(values, names, source.name)
    origin["classes"] = classes.names
    origin["facts"] = {"text_columns": columns, "label_column": label, "classes": classes.names}
    splits = {}
    for split, table in found.items():
        splits[split] = Split(
            split, tables.Texts(table, columns), codes(values[split], classes), **origin
        )
        if blank := splits[split].empty_texts:
            fault = f"{source.name}, {split}: {blank:,} of {len(table):,} rows have an empty text"
            raise UserError(f"{fault}; remove these rows")
    return splits, [] if source.texts and source.label else notes


def _named_splits(source: _Source, there: Iterable[str]) -> list[tuple[str, str]]:
    """Our name and theirs of each split that is there. Raises UserError where one is asked for in
    vain, or train is missing.
    """
    pairs = [(split, asked or split) for split, asked in source.splits]
    for (split, name), (_, asked) in zip(pairs, source.splits, strict=True):
        if name not in there and (asked or split == "train"):
            fault = f"--dataset {source.name} has no {name} split; it has {', '.join(there)}"
            raise UserError(f"{fault}: name one with --{split}-split")
    return [(split, name) for split, name in pairs if name in there]


def _files(source: _Source) -> dict[str, list[Path]]:
    """The files of each split that is there; a file alone is train."""
    place = Path(source.name)
    if place.is_file():
        return {"train": [place]}
    found = {}
    for split, asked in source.splits:
        if files := tables.split_files(place, asked or split):
            found[split] = files
        elif asked or split == "train":
            forms = f"{asked or split}.csv, .tsv, .jsonl, .json or .parquet"
            mend = "name a folder that does, or the file itself"
            raise UserError(f"--dataset {place} holds no {forms}: {mend}")
    return found
