"""A user's own files: candidates and references.

A `.jsonl` file has one JSON value a line: a string, or an object with `text`; for references also a
list of strings, or an object with `references`. Other files have one text a line; a blank line is
an empty text, whose scores are undefined.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError


def read_files(
    candidates: Path, references: Path | None
) -> tuple[list[str], list[list[str]] | None]:
    """(texts, references of each, or None without a file of them).

    Raises UserError for a file that is missing, empty, not UTF-8, not what its suffix says, or of
    another length.
    """
    texts = [_text(candidates, *line) for line in _values(candidates)]
    if not texts:
        raise UserError(f"{candidates} has no line: put one text on each")
    if references is None:
        return texts, None
    groups = [_group(references, *line) for line in _values(references)]
    if len(groups) != len(texts):
        fault = f"{candidates} has {len(texts):,} texts but {references} has {len(groups):,}"
        raise UserError(f"{fault}: line n of one belongs to line n of the other")
    return texts, groups


def _text(path: Path, number: int, value: Any) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        mend = 'write a JSON string, or an object with "text"'
        raise UserError(f"{path} line {number} holds no text: {mend}")
    return text


def _group(path: Path, number: int, value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value.get("references", value.get("text"))
    group = [value] if isinstance(value, str) else value
    if not isinstance(group, list) or not group or not all(isinstance(t, str) for t in group):
        mend = 'write a string, a list of strings, or an object with "references"'
        raise UserError(f"{path} line {number} holds no reference: {mend}")
    return group


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    if not path.is_file():
        raise UserError(f"{path} is not a file: name an existing text file")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                yield number, json.loads(line) if path.suffix == ".jsonl" else line
            except UnicodeDecodeError as fault:
                mend = f"convert it, e.g. iconv -f latin1 -t utf-8 {path}"
                raise UserError(f"{path} line {number} is not UTF-8: {mend}") from fault
            except ValueError as fault:
                mend = "a .jsonl file has one JSON value on each line"
                raise UserError(f"{path} line {number} is not JSON: {mend}") from fault
