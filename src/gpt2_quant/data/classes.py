"""Which classes a data set has, and what they are called.

By the data set's own features, else a `classes.txt` (a name on each line, in the order of the
numbers, which start at 0 or 1), else the labels themselves: strings in alphabetical order, numbers
from 0 or 1 without gaps. Train decides; the other splits may have no others.
"""

from typing import Any, NamedTuple

from ..errors import UserError

MOST_CLASSES = 1_000
LONGEST_NAME = 200


class Classes(NamedTuple):
    names: tuple[str, ...]
    values: list  # the label in the file that stands for each class


def classes_of(labels: dict[str, Any], names: tuple[str, ...] | None, where: str) -> Classes:
    """From the Arrow columns of labels by split. Raises UserError for fewer than 2 or more than
    1,000 classes, a name that cannot be shown, a class without train rows, and a label that train
    does not have.
    """
    import pyarrow.compute as pc

    found = {split: sorted(pc.unique(column).to_pylist()) for split, column in labels.items()}
    train = found["train"]
    if len(train) < 2:
        raise UserError(f"{where} has one class only ({train[0]!r}) in train: give rows of another")
    if (n := max(len(train), len(names or ()))) > MOST_CLASSES:
        fault = f"{where} has {n:,} classes, more than {MOST_CLASSES:,}"
        raise UserError(f"{fault}: name another column with --label-column")
    shown = names or [name for name in train if isinstance(name, str)]
    for name in shown:
        seen = " ".join(name.split())
        if not (seen.isprintable() and 0 < len(seen) <= LONGEST_NAME):
            fault = f"{where}: {name!a:.70} is no name for a class"
            raise UserError(f"{fault}; give it 1 to {LONGEST_NAME} printable letters")
    if names and len(set(names)) < len(names):
        raise UserError(f"{where} gives two classes the same name: rename one")
    classes = _named(train, names, where)
    known = set(classes.values)
    for split, values in found.items():
        if extra := [value for value in values if value not in known]:
            count = sum(pc.sum(pc.equal(labels[split], value)).as_py() for value in extra)
            holder = "its list of class names" if split == "train" or names else "train"
            fault = f"{where}: {count:,} {split} rows have labels that {holder} does not have"
            listed = ", ".join(repr(value)[:60] for value in extra[:3])
            raise UserError(f"{fault} ({listed}); remove them or add them there")
    if bare := [name[:60] for name, v in zip(*classes, strict=True) if v not in set(train)]:
        fault = f"{where}: {len(bare)} of {len(known)} classes have no train rows"
        listed = ", ".join(bare[:3])
        raise UserError(f"{fault} ({listed}); give rows to each class or leave it out")
    return classes


def _named(train: list, names: tuple[str, ...] | None, where: str) -> Classes:
    if isinstance(train[0], str):
        return Classes(names or tuple(train), list(names or train))
    if train[0] < 0 or train[-1] > MOST_CLASSES:
        fault = f"{where} has labels from {train[0]} to {train[-1]}"
        raise UserError(f"{fault}: number the classes from 0 or 1, or give their names")
    # Numbers from 1 reach the number of names; numbers from 0 do not.
    start = int(0 not in train and (names is None or len(names) in train))
    values = list(range(start, start + len(names) if names else train[-1] + 1))
    return Classes(names or tuple(map(str, values)), values)


def codes(labels: Any, classes: Classes) -> list[int]:
    """Class numbers 0 … C-1 of an Arrow column of labels."""
    import pyarrow
    import pyarrow.compute as pc

    values = pyarrow.array(classes.values, type=labels.type)
    return pc.index_in(labels, value_set=values).to_pylist()
