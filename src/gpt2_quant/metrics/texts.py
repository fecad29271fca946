"""A user's own files: candidates and references, one text a line, or JSONL. Read in pieces, so
memory does not grow with the file.

A `.txt` (or any other) file has one text a line; a blank line is an empty text, whose scores are
undefined. A `.jsonl` file has one JSON value a line: a string; or for references a list of strings;
or an object with `text`, and `references` respectively. Both files are read once in full before
anything is scored, so a fault in the last line costs seconds and leaves nothing half-written.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ..errors import UserError

CHUNK_LINES = 1000


def check_files(candidates: Path, references: Path | None) -> tuple[int, int]:
    """Read both files to their ends; returns (number of texts, number of blank ones among the
    candidates).

    Raises UserError for a file that is missing, empty, not UTF-8 or not what its suffix says, and
    for files of unequal length.
    """
    lines = blank = 0
    for text in _texts(candidates):
        lines += 1
        blank += not text.strip()
    if not lines:
        raise UserError(f"{candidates} has no line: put one text on each")
    if references is not None:
        others = sum(1 for _ in _groups(references))
        if others != lines:
            raise UserError(
                f"{candidates} has {lines:,} texts but {references} has {others:,}: line n of one belongs to line n of the other"
            )
    return lines, blank


def read_chunks(
    candidates: Path, references: Path | None
) -> Iterator[tuple[list[str], list[list[str]] | None]]:
    """The checked files in pieces of `CHUNK_LINES` texts: (candidates, references of each or None)."""
    texts, groups = _texts(candidates), _groups(references) if references is not None else None
    while chunk := list(islice(texts, CHUNK_LINES)):
        yield chunk, list(islice(groups, CHUNK_LINES)) if groups is not None else None


def _texts(path: Path) -> Iterator[str]:
    for number, value in _values(path):
        if isinstance(value, dict):
            value = value.get("text")
        if not isinstance(value, str):
            raise UserError(
                f'{path} line {number} holds no text: write a JSON string, or an object with "text"'
            )
        yield value


def _groups(path: Path) -> Iterator[list[str]]:
    for number, value in _values(path):
        if isinstance(value, dict):
            value = value.get("references", value.get("text"))
        group = [value] if isinstance(value, str) else value
        if (
            not isinstance(group, list)
            or not group
            or not all(isinstance(text, str) for text in group)
        ):
            raise UserError(
                f'{path} line {number} holds no reference: write a string, a list of strings, or an object with "references"'
            )
        yield group


def _values(path: Path) -> Iterator[tuple[int, object]]:
    """(line number from 1, value) of each line; a last line break ends the last line and begins no
    other.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: name an existing text file")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as fault:
                raise UserError(
                    f"{path} line {number} is not UTF-8: convert it, e.g. iconv -f latin1 -t utf-8 {path}"
                ) from fault
            if path.suffix != ".jsonl":
                yield number, line
                continue
            try:
                yield number, json.loads(line)
            except ValueError as fault:
                raise UserError(
                    f"{path} line {number} is not JSON: a .jsonl file has one JSON value on each line"
                ) from fault
