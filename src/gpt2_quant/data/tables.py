"""Other people's data: a hub data set, a folder or a file, through `datasets`' own loaders.

Rows are written once to Arrow files and mapped from there, so memory stays flat however many there
are. Columns are guessed only where one alone can be meant. CSV is read as text throughout: "NA",
"007" and "" stay what they are.
"""

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import DATA_FILES
from ..errors import UserError
from .hub import hub_faults, retried

BATCH_ROWS = 1000


class Texts(Sequence):
    """The texts of an Arrow table's columns, joined by a space; read when asked for."""

    def __init__(self, table, columns: Sequence[str]):
        self.table, self.columns = table.select_columns(list(columns)), columns

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows):
        found = self.table[rows]
        return _join(found) if isinstance(rows, slice) else " ".join(found.values())

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(map(_join, self.table.iter(BATCH_ROWS)))

    def take(self, rows: Sequence[int] | np.ndarray) -> "Texts":
        return Texts(self.table.select(rows), self.columns)


def _join(batch: dict[str, list[str]]) -> list[str]:
    return [" ".join(parts) for parts in zip(*batch.values(), strict=True)]


def read_hub(name: str, revision: str | None, config: str | None, wanted: list[str]) -> dict:
    """Tables of the splits that are there among `wanted`, and the names of all as `None`."""
    from datasets import load_dataset

    try:
        with hub_faults(name, "--dataset"), _faults_of_files(name):
            loaded = retried(lambda: load_dataset(name, config, revision=revision))
    except ValueError as fault:  # an unknown or missing configuration: the message lists them
        if "onfig" not in str(fault):
            raise
        said = " ".join(str(fault).split())[:300]
        raise UserError(f"--dataset {name}: {said}; name one with --dataset-config") from fault
    except RuntimeError as fault:
        if "script" not in str(fault):
            raise
        mend = "give another id, or download its files and name their folder"
        raise UserError(f"--dataset {name} is a program, which is not run here: {mend}") from fault
    return {None: list(loaded)} | {split: loaded[split] for split in wanted if split in loaded}


def split_files(place: Path, split: str) -> list[Path]:
    """The files of `split` in a folder, `train.csv` or `data/train-00000-of-00002.parquet`, all of
    the first form that is there."""
    for suffix in DATA_FILES:
        if (path := place / f"{split}{suffix}").is_file():
            return [path]
        patterns = f"{split}{suffix}", f"{split}[-_.]*{suffix}"
        if shards := sorted({path for pattern in patterns for path in place.rglob(pattern)}):
            return shards
    return []


def read_files(paths: list[Path], named: Sequence[str], cache: Path):
    """One table of files of one form. `named` are the columns that the user names: numbers mean a
    CSV without a header, which is also taken for one where its first row holds a whole number.

    Raises UserError for files that are empty, damaged or no such form.
    """
    from datasets import Features, Value, load_dataset

    kind, options, where = DATA_FILES[paths[0].suffix], {}, str(paths[0])
    for path in paths:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: fetch it again")
    if kind == "csv":
        separator = "\t" if paths[0].suffix == ".tsv" else ","
        head = first_row(paths[0], separator)
        by_number = bool(named) and all(n.isdigit() and n not in head for n in named)
        headless = by_number or (not set(named) & set(head) and any(map(is_whole, head)))
        names = [str(i) for i in range(len(head))] if headless else head
        if len(set(names)) < len(names):
            raise UserError(f"{where} has two columns of one name in its header: rename one")
        options = {
            "sep": separator, "header": None if headless else 0, "column_names": names,
            "keep_default_na": False, "features": Features(dict.fromkeys(names, Value("string"))),
        }  # fmt: skip
    with _faults_of_files(where):
        files = [str(path) for path in paths]
        cached = str(cache / "datasets")
        table = load_dataset(kind, data_files=files, split="train", cache_dir=cached, **options)
    if not len(table):
        raise UserError(f"{where} holds no rows: give one with some")
    return table


def first_row(path: Path, separator: str = ",") -> list[str]:
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file, delimiter=separator), [])


def is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


@contextmanager
def _faults_of_files(where: str) -> Iterator[None]:
    """Turn `datasets`' faults of content into UserErrors, without its log of them."""
    import datasets

    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except datasets.exceptions.DatasetGenerationError as fault:
        cause = fault.__cause__ or fault.__context__ or fault
        if isinstance(cause, OSError) and cause.errno:
            raise cause from fault  # a full disk, say
        said = " ".join(str(cause).split())[:200] or type(cause).__name__
        mend = "mend it, or give it the name of what it is"
        raise UserError(f"{where} cannot be read as its name says ({said}): {mend}") from fault
    finally:
        datasets.logging.set_verbosity(before)


def choose_columns(
    table, texts: Sequence[str], label: str | None, where: str
) -> tuple[list[str], str]:
    """The named columns, or the only ones that can be meant. Raises UserError."""
    columns = table.column_names
    listed = f"it has {', '.join(columns)}"
    for flag, name in [*(("--text-columns", t) for t in texts), ("--label-column", label)]:
        if name and name not in columns:
            raise UserError(f"{flag} {name}: {where} has no such column; {listed}")
    if not label:
        first = table[0]
        found = [c for c in columns if c.casefold() in ("label", "labels")]
        found = found or [c for c in columns if c.isdecimal() and is_whole(str(first[c]))]
        if len(found) != 1:
            fault = f"{where} has no column label or labels that could be meant alone; {listed}"
            raise UserError(f"{fault}: name it with --label-column")
        label = found[0]
    if not texts:
        texts = [
            c
            for c in columns
            if c != label
            and _dtype(table, c) in STRINGS
            and not all(_is_float(str(text)) for text in table[:BATCH_ROWS][c])
        ]
        if len(texts) != 1:
            fault = f"{where} has {len(texts)} columns of text beside {label}; {listed}"
            raise UserError(f"{fault}: name those to read with --text-columns")
    if label in texts:
        raise UserError(f"--text-columns {label} is the column of labels: leave it out")
    return list(texts), label


STRINGS = ("string", "large_string", "string_view")


def _dtype(table, column: str) -> str:
    return getattr(table.features[column], "dtype", "list")


def check_texts(table, columns: Sequence[str], where: str) -> None:
    """Raises UserError for columns that hold no text, nulls, or bytes that are not UTF-8."""
    import pyarrow

    for column in columns:
        if (dtype := _dtype(table, column)) not in STRINGS:
            fault = f"{where}: column {column} holds {dtype}, not text"
            raise UserError(f"{fault}; name another with --text-columns")
        values = table.data.column(column)
        if nulls := values.null_count:
            fault = f"{where}: column {column} has no text in {nulls:,} of {len(values):,} rows"
            raise UserError(f"{fault}; remove these rows")
        try:
            values.validate(full=True)
        except pyarrow.ArrowInvalid as fault:
            raise UserError(f"{where}: column {column} is not UTF-8; convert it") from fault


def read_labels(table, column: str, where: str) -> tuple[Any, tuple[str, ...] | None]:
    """The labels as an Arrow column of int64 or strings, and the names that its feature gives.

    Strings that are whole numbers throughout count as numbers. Raises UserError for labels of
    another kind, and where some are missing (null, "" or -1), with their count.
    """
    import pyarrow
    import pyarrow.compute as pc

    values, feature = table.data.column(column).combine_chunks(), table.features[column]
    kind = values.type
    if pyarrow.types.is_boolean(kind):
        values = values.cast(pyarrow.string())
    text = str(values.type) in STRINGS
    if not text and not pyarrow.types.is_integer(kind):
        fault = f"{where}: column {column} holds {kind}, where labels are whole numbers or strings"
        raise UserError(f"{fault}; name another with --label-column")
    if text:
        try:
            values.validate(full=True)
        except pyarrow.ArrowInvalid as fault:
            raise UserError(f"{where}: column {column} is not UTF-8; convert it") from fault
        distinct = pc.unique(values).to_pylist()
        if all(value and is_whole(value) for value in distinct):
            values, text = pc.utf8_trim_whitespace(values).cast(pyarrow.int64()), False
        elif all(value and _is_float(value) for value in distinct):
            fault = f"{where}: column {column} holds fractions such as {distinct[0]}"
            raise UserError(f"{fault}; labels are whole numbers or strings")
    missing = pc.equal(values, "" if text else -1)
    count = values.null_count + (pc.sum(missing).as_py() or 0)
    if count:
        said = f"{where}: {count:,} of {len(values):,} rows have no label (null, empty or -1)"
        raise UserError(f"{said}; remove them or label them")
    return values if text else values.cast(pyarrow.int64()), getattr(feature, "names", None)


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def names_of_file(place: Path) -> tuple[str, ...] | None:
    """Class names, one a line, from `classes.txt` in the folder or beside the file."""
    path = (place if place.is_dir() else place.parent) / "classes.txt"
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"{path} is no text in UTF-8: write a class name on each line") from fault
    return tuple(line.strip() for line in lines if line.strip())


def is_main_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
