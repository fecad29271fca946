"""AG News in its own form: a CSV without header, a row of which is a class, a title, a description.

Read strictly: a fault is named with its file and line.
"""

import csv
from pathlib import Path

from ..errors import UserError
from . import tables

FORM = "AG News' row is a class from 1 to 4, a title and a description"


def is_form(path: Path) -> bool:
    """By the first row, three fields of which the first is a whole number."""
    row = tables.first_row(path) if path.suffix == ".csv" else []
    return len(row) == 3 and tables.is_whole(row[0])


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
            raise UserError(f"{path} is not UTF-8: convert it, with iconv, say") from fault
        except csv.Error as fault:
            wrong = f"line {reader.line_num}, is not well-formed CSV ({fault})"
            raise UserError(f"{path}, {wrong}: mend it or fetch it again") from fault
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
