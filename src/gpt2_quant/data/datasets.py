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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

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


@cache
def load_splits(settings: Settings) -> dict[str, Split]:
    """train, validation and test. Raises UserError, one sentence, for a data set that is not there
    or out of reach, files, columns or labels that do not serve, and fewer rows than asked for.
    """
    splits = _load(settings)
    n_classes = len(splits["train"].classes)
    if settings.task and n_classes != (needed := TASKS[settings.task].n_classes):
        fault = f"--task {settings.task} has {needed} classes and --dataset {settings.dataset}"
        raise UserError(f"{fault} {n_classes}: leave one of the two out")
    return splits | {
        "train": _fewer(splits["train"], settings.max_train_samples),
        "test": _fewer(splits["test"], settings.max_test_samples),
    }


def _load(settings: Settings) -> dict[str, Split]:
    whole, notes = _read(settings)
    hashes = {name: _hashes(split.texts) for name, split in whole.items()}
    _, remainder = hashes["train"]
    rows = {name: np.arange(len(split.texts)) for name, split in whole.items()}
    for name in [split for split in CUTS if split not in whole]:
        rows[name] = np.flatnonzero(np.isin(remainder, CUTS[name]))
        rows["train"] = np.setdiff1d(rows["train"], rows[name])
        whole[name] = replace(whole["train"], name=name)
        hashes[name] = hashes["train"]
        share = len(CUTS[name]) / DIVISOR
        notes.append(f"there is no {name} split: {share:.0%} of train, by content, serve as one")
    if without := [name for name in rows if not len(rows[name])]:
        fault = f"--dataset {settings.dataset}: its {len(remainder)} train rows leave none for"
        raise UserError(f"{fault} {without[0]}; give more rows")
    kept = {name: hashes[name][0][rows[name]] for name in ("train", *CUTS)}
    shared = {}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if count := int(np.isin(kept[other], kept[one]).sum()):
            shared[f"{one}, {other}"] = count
            notes.append(f"{count:,} of the {len(kept[other]):,} {other} texts are in {one}, too")
    if notes and os.environ.get("RANK", "0") == "0":
        print(f"{settings.dataset}: {'; '.join(notes)}.")
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
        raise UserError(f"{fault}: give {n} or less")
    lowest = np.argsort(_hashes(split.texts)[0], kind="stable")[:limit]
    fewer = split.take(np.sort(lowest))
    if split.name == "train" and len(set(fewer.labels)) < 2:
        fault = f"--max-train-samples {limit} leaves one class only of {len(split.classes)}"
        raise UserError(f"{fault}: give more")
    return fewer


def _read(settings: Settings) -> tuple[dict[str, Split], list[str]]:
    """The splits that the data set itself has, and in sentences what was guessed."""
    place, texts, label = settings.dataset, settings.text_columns or (), settings.label_column
    named, names = [*texts, *filter(None, [label])], None
    origin: dict[str, Any] = {"source": place, "cache": settings.results_dir / "cache"}
    if looks_like_path(place):
        names, one_file = tables.names_of_file(Path(place)), Path(place).is_file()
        find = partial(tables.split_files, Path(place))
        forms = ".csv, .tsv, .jsonl, .json or .parquet"
        files = {"train": [Path(place)]} if one_file else _present(settings, find, forms)
        if not named and names in (None, LABELS) and ag_news.is_form(files["train"][0]):
            notes = [] if names else [f"in AG News' form, its classes are {', '.join(LABELS)}"]
            origin["facts"] = {"classes": LABELS}
            rows = {split: ag_news.read_csv(paths[0]) for split, paths in files.items()}
            return {split: Split(split, *rows[split], **origin) for split in rows}, notes
        found = {split: tables.read_files(f, named) for split, f in files.items()}
    else:
        origin["revision"] = settings.dataset_revision
        whole = tables.read_hub(place, settings.dataset_revision, settings.dataset_config)
        found = _present(settings, whole.get, f" split; it has {', '.join(whole)}")
    columns, column = tables.choose_columns(found["train"], texts, label, place)
    notes = [f"texts are read from column {' and '.join(columns)}, labels from {column}"]
    values, splits = {}, {}
    for split, table in found.items():
        tables.choose_columns(table, columns, column, f"{place}, {split}")
        values[split], by_feature = tables.read_labels(table, column, f"{place}, {split}")
        names = by_feature or names
    classes = classes_of(values, names, place)
    facts = {"text_columns": columns, "label_column": column, "classes": classes.names}
    origin |= {"classes": classes.names, "facts": facts}
    for split, table in found.items():
        joined, labels = tables.Texts(table, columns), codes(values[split], classes)
        splits[split] = Split(split, joined, labels, **origin)
        if blank := splits[split].empty_texts:
            fault = f"{place}, {split}: {blank:,} of {len(table):,} rows have an empty text"
            raise UserError(f"{fault}; remove these rows")
    return splits, [] if texts and label else notes


def _present(settings: Settings, find: Callable[[str], Any], forms: str) -> dict[str, Any]:
    """What `find` has for each split, by our name of it. Raises UserError where train, or a split
    that is asked for, is missing.
    """
    found = {}
    for split in ("train", *CUTS):
        asked = vars(settings)[f"{split}_split"]
        if one := find(asked or split):
            found[split] = one
        elif asked or split == "train":
            fault = f"--dataset {settings.dataset} holds no {asked or split}{forms}"
            raise UserError(f"{fault}: name another with --{split}-split or --dataset")
    return found
