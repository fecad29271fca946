"""Other people's data: a hub data set, a folder or a file, through `datasets`' own loaders.

Rows are written once to Arrow files and mapped from there, so memory stays flat however many there
are. Columns are guessed only where one alone can be meant. CSV is read as text throughout: "NA",
"007" and "" stay what they are.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..cli import DATA_FILES
from ..errors import UserError
from .hub import hub_faults, retried

BATCH_ROWS = 1000
MOST_BRACKETS = 10_000  # of a line of JSON that is not looked at


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


def read_hub(name: str, revision: str | None, config: str | None) -> dict[str, Any]:
    """Tables of all splits. Raises UserError, for an unknown configuration with the known ones."""
    from datasets import load_dataset

    try:
        with hub_faults(name, "--dataset"), _faults_of_content(name):
            return retried(lambda: load_dataset(name, config, revision=revision))
    except (ValueError, RuntimeError) as fault:
        said = " ".join(str(fault).split())[:300]
        if isinstance(fault, ValueError) and "onfig" in said:
            raise UserError(f"--dataset {name}: {said}; name one with --dataset-config") from fault
        if isinstance(fault, RuntimeError) and "script" in said:
            said = f"--dataset {name} is a program, which is not run here"
            raise UserError(f"{said}: download its files and name their folder") from fault
        raise


def split_files(place: Path, split: str) -> list[Path]:
    """The files of `split`, `train.csv` or `data/train-00000-of-00002.parquet`, all of one form."""
    if place.is_file():
        return [place]
    for suffix in DATA_FILES:
        if (path := place / f"{split}{suffix}").is_file():
            return [path]
        found = {*place.rglob(f"{split}{suffix}"), *place.rglob(f"{split}[-_.]*{suffix}")}
        if shards := sorted(path for path in found if path.is_file()):
            return shards
    return []


def data_files(args: argparse.Namespace) -> list[Path]:
    """The files that `--dataset` names, and the names of their classes; none for a hub id."""
    if not (args.dataset and (place := Path(args.dataset)).exists()):
        return []
    names = [vars(args)[f"{split}_split"] or split for split in ("train", "validation", "test")]
    found = [path for name in names for path in split_files(place, name)]
    return [*dict.fromkeys(found), _classes_file(place)]


def read_files(paths: list[Path], named: Sequence[str]):
    """One table of files of one form.

    A CSV has no header where `named`, the columns that the user names, are numbers (from 0), or its
    first row holds a whole number. Raises UserError for files that are empty or damaged.
    """
    from datasets import Features, Value, load_dataset

    where, suffix, options = str(paths[0]), paths[0].suffix.lower(), {}
    for path in paths:
        if not path.stat().st_size:
            raise UserError(f"{path} is empty: fetch it again")
        with open(path, "rb") as file:
            archive = file.read(4) == b"PK\3\4"
        if archive:
            raise UserError(f"{path} is a spreadsheet or another archive: save it as CSV")
        if DATA_FILES[suffix] == "json" and _is_deep(path):
            raise UserError(f"{path} is nested too deep: give an object with texts on each line")
        if DATA_FILES[suffix] == "csv" and _holds_nul(path):
            fault = f"{path} holds a NUL byte, so it is damaged or not UTF-8"
            raise UserError(f"{fault}: convert it or fetch it again")
    if DATA_FILES[suffix] == "csv":
        separator = "\t" if suffix == ".tsv" else ","
        head = first_row(paths[0], separator)
        numbers = bool(named) and all(map(is_whole, named))
        headless = numbers or (any(map(is_whole, head)) and not {*named, "label"} & {*head})
        names = [str(i) for i in range(len(head))] if headless else head
        if len(set(names)) < len(names):
            raise UserError(f"{where} has two columns of one name in its header: rename one")
        text = Features(dict.fromkeys(names, Value("string")))
        options = {"sep": separator, "header": None if headless else 0, "column_names": names}
        options |= {"keep_default_na": False, "features": text}
    with _faults_of_content(where):
        files = list(map(str, paths))
        form = DATA_FILES[suffix]
        return load_dataset(form, data_files=files, split="train", **options)  # nosec B615: local


def _is_deep(path: Path) -> bool:
    """Whether Python's reader, which counts, gives a line up; pyarrow's would end the process."""
    with open(path, "rb") as file:
        for line in file:
            if line.count(b"[") + line.count(b"{") > MOST_BRACKETS:
                try:
                    json.loads(line)
                except RecursionError:
                    return True
                except ValueError:
                    pass  # its reader says what is wrong
    return False


def _holds_nul(path: Path) -> bool:
    with open(path, "rb") as file:
        return any(b"\0" in part for part in iter(partial(file.read, 1 << 20), b""))


def first_row(path: Path, separator: str = ",") -> list[str]:
    csv.field_size_limit(1 << 30)
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file, delimiter=separator), [])


def is_whole(text: str) -> bool:
    return text.isascii() and text.strip().removeprefix("-").isdecimal()


@contextmanager
def _faults_of_content(where: str) -> Iterator[None]:
    """Turn what `datasets` raises and logs for files of another form into a UserError."""
    import datasets
    import pyarrow

    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    except (datasets.exceptions.DatasetGenerationError, pyarrow.ArrowException) as fault:
        cause = fault.__cause__ or fault
        if isinstance(cause, OSError) and cause.errno:
            raise cause from fault  # a full disk, say
        said = " ".join(str(cause).split())[:200] or type(cause).__name__
        said = f"{where} cannot be read as its name says ({said})"
        raise UserError(f"{said}: mend it, or rename it to what it is") from fault
    except ValueError as fault:
        if "no data" not in str(fault):
            raise
        raise UserError(f"{where} holds no rows: give one with some") from fault
    finally:
        datasets.logging.set_verbosity(before)


def choose_columns(
    table, texts: Sequence[str], label: str | None, where: str
) -> tuple[list[str], str]:
    """The named columns, or the only ones that can be meant.

    Raises UserError for columns that are not there, hold no text, nulls, or bytes that are not
    UTF-8.
    """
    import pyarrow

    columns, listed = table.column_names, f"it has {', '.join(table.column_names)}"
    for column in filter(partial(_is_text, table), columns):  # before any is looked at
        try:
            table.data.column(column).validate(full=True)
        except pyarrow.ArrowInvalid as invalid:
            raise UserError(f"{where}: column {column} is not UTF-8; convert it") from invalid
    first = table[:BATCH_ROWS]
    for flag, name in [*(("--text-columns", t) for t in texts), ("--label-column", label)]:
        if name is not None and name not in columns:
            raise UserError(f"{flag} {name}: {where} has no such column; {listed}")
    if not label:
        found = [c for c in columns if c.casefold() in ("label", "labels")]
        found = found or [c for c in columns if is_whole(c) and is_whole(str(first[c][0]))]
        if len(found) != 1:
            fault = f"{where} has no column label or labels that could be meant alone; {listed}"
            raise UserError(f"{fault}: name it with --label-column")
        label = found[0]
    if not texts:
        texts = [c for c in columns if c != label and _is_text(table, c)]
        texts = [c for c in texts if not all(map(_is_number, first[c]))]
        if len(texts) != 1:
            fault = f"{where} has {len(texts)} columns of text beside {label}; {listed}"
            raise UserError(f"{fault}: name those to read with --text-columns")
    for column in (x for x in texts if x == label or texts.count(x) > 1):
        said = "the column of labels" if column == label else "named twice"
        raise UserError(f"--text-columns {column} is {said}: leave it out")
    for column in texts:
        values = table.data.column(column)
        if not _is_text(table, column):
            fault = f"{where}: column {column} holds {values.type}, not text"
            raise UserError(f"{fault}; name another with --text-columns")
        if nulls := values.null_count:
            fault = f"{where}: column {column} has no text in {nulls:,} of {len(values):,} rows"
            raise UserError(f"{fault}; remove these rows")
    return list(texts), label


def _is_text(table, column: str) -> bool:
    return str(table.data.column(column).type) in ("string", "large_string", "string_view")


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) is not None
    except ValueError:
        return False


def read_labels(table, column: str, where: str) -> tuple[Any, tuple[str, ...] | None]:
    """The labels as an Arrow array of int64 or strings, and the names that their feature gives.

    Strings that are whole numbers throughout count as numbers. Raises UserError for labels of
    another kind, and where some are missing (null, "" or -1), with their count.
    """
    import pyarrow
    import pyarrow.compute as pc

    values, text = table.data.column(column).combine_chunks(), _is_text(table, column)
    if pyarrow.types.is_boolean(values.type):
        values, text = values.cast(pyarrow.string()), True
    if not text and not pyarrow.types.is_integer(values.type):
        fault = f"{where}: column {column} holds {values.type}, not whole numbers or strings"
        raise UserError(f"{fault}; name another with --label-column")
    if text:
        distinct = pc.unique(values).to_pylist()
        if all(value and is_whole(value) for value in distinct):
            values, text = pc.utf8_trim_whitespace(values), False
        elif all(map(_is_number, distinct)):
            fault = f"{where}: column {column} holds fractions such as {distinct[0]}"
            raise UserError(f"{fault}; labels are whole numbers or strings")
    if not text:
        try:
            values = values.cast(pyarrow.int64())
        except pyarrow.ArrowInvalid as fault:
            said = f"{where}: column {column} holds numbers of more than 64 bits"
            raise UserError(f"{said}; labels are small whole numbers or strings") from fault
    count = values.null_count + (pc.sum(pc.equal(values, "" if text else -1)).as_py() or 0)
    if count:
        said = f"{where}: {count:,} of {len(values):,} rows have no label (null, empty or -1)"
        raise UserError(f"{said}; remove them or label them")
    return values, getattr(table.features[column], "names", None)


def _classes_file(place: Path) -> Path:
    return (place if place.is_dir() else place.parent) / "classes.txt"


def names_of_file(place: Path) -> tuple[str, ...] | None:
    """Class names, one a line, from `classes.txt` in the folder or beside the file."""
    path = _classes_file(place)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
    except UnicodeDecodeError as fault:
        raise UserError(f"{path} is no text in UTF-8: write a class name on each line") from fault
    return tuple(filter(None, map(str.strip, lines))) or None
