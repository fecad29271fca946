"""What may stand in one table: read records and predictions, and refuse what does not belong
together.

Two rows compare when they answered the same texts, come from the same weights and ran under the
same preset. The records say so (fingerprints of the test set and of the baseline's weights), and
predictions are checked row by row: the same ids, the same labels, finite logits. Rows in another
order are put in order by id. What fails is refused with a sentence, never left out in silence.

Someone else's classifier joins through a folder of prediction files: `name.csv` or `name.parquet`
with `id`, `label` and either `logit_0`, `logit_1`, … or one column `logits` that holds a list.
`name.validation.csv` (or .parquet) beside it gives the classifier a temperature.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..measure.predictions import load_predictions, predictions_path
from ..measure.scores import check_predictions
from ..models.variants import VARIANTS
from ..records import load_records


@dataclass(frozen=True)
class Source:
    """One classifier's results as read: labels [n], logits [n, C], the same of validation if kept,
    and its record.
    """

    key: str
    label: str
    labels: np.ndarray
    logits: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None
    record: dict | None


def read_sources(results_dir: Path, predictions: Path | None = None) -> list[Source]:
    """Every classifier with results, in table order: ours as VARIANTS lists them, other records,
    outsiders by name.

    Raises UserError when two of them may not stand in one table, or one cannot be scored.
    """
    records = load_records(results_dir)
    check_same_experiment(records)
    order = [key for key in VARIANTS if key in records] + sorted(set(records) - set(VARIANTS))
    sources = [_own(results_dir, key, records[key]) for key in order]
    if predictions is not None:
        sources += _outsiders(predictions, taken={source.key for source in sources})
    for source in sources[1:]:
        _check_same_rows(sources[0], source)
    return sources


def check_same_experiment(records: dict[str, dict]) -> None:
    """Refuse records of two presets, two baseline checkpoints, two test sets or two text lengths."""
    facts: list[tuple[str, Callable[[dict], object]]] = [
        ("presets", lambda record: record["settings"]["preset"]),
        ("baseline checkpoints", lambda record: record["checkpoint"]["baseline_sha256"]),
        ("test sets", lambda record: record["data"]["sha256"]),
        ("text lengths (--max-length)", lambda record: record["settings"]["max_length"]),
    ]
    for name, read in facts:
        holders: dict[object, str] = {}
        for key, record in records.items():
            if record.get("key") != key:
                raise UserError(
                    f"records/{key}.json is a copy of the record of {record.get('key')}: delete it"
                )
            try:
                holders.setdefault(read(record), key)
            except (KeyError, TypeError):
                raise UserError(
                    f"records/{key}.json lacks what a variant's record holds: run its script with --overwrite"
                ) from None
        if len(holders) > 1:
            said = " and ".join(
                f"{key} has {str(value)[:12]}" for value, key in list(holders.items())[:2]
            )
            raise UserError(
                f"these results come from two {name} ({said}): keep each in a --results-dir of its own, "
                "or run the scripts again with --overwrite"
            )


def _own(results_dir: Path, key: str, record: dict) -> Source:
    """One of our variants: its record and the predictions that the record was made from."""
    labels, logits = _arrays(load_predictions(results_dir, key), key)
    path = predictions_path(results_dir, key)
    if len(labels) != record["data"]["n"]:
        raise UserError(
            f"{path} has {len(labels)} rows, but its record was made from {record['data']['n']}: "
            f"run the script that makes {key} with --overwrite"
        )
    accuracy = (logits.argmax(axis=1) == labels).mean()
    if abs(accuracy - record["metrics"]["accuracy"]["value"]) > 1e-9:
        raise UserError(
            f"{path} gives accuracy {accuracy:.6f}, but its record says {record['metrics']['accuracy']['value']:.6f}: "
            f"run the script that makes {key} with --overwrite"
        )
    validation = None
    if predictions_path(results_dir, f"{key}.validation").is_file():
        validation = _arrays(
            load_predictions(results_dir, f"{key}.validation"), f"{key}.validation"
        )
    return Source(key, record["variant"]["label"], labels, logits, validation, record)


def _outsiders(folder: Path, taken: set[str]) -> list[Source]:
    """Every prediction file in `folder` as a classifier named by its file."""
    if not folder.is_dir():
        raise UserError(
            f"--predictions {folder}: there is no such folder; give one that holds .csv or .parquet files"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in (".csv", ".parquet"))
    tests = [path for path in files if not path.stem.endswith(".validation")]
    if not tests:
        raise UserError(
            f"--predictions {folder} holds no .csv or .parquet file with the columns id, label and logits"
        )
    sources = []
    for path in tests:
        if path.stem in taken:
            raise UserError(
                f"{path}: there is a row named {path.stem} already; give the file another name"
            )
        taken.add(path.stem)
        labels, logits = _arrays(_outside_frame(path), str(path))
        beside = next((file for file in files if file.stem == f"{path.stem}.validation"), None)
        validation = _arrays(_outside_frame(beside), str(beside)) if beside else None
        sources.append(
            Source(path.stem, path.stem.replace("_", " "), labels, logits, validation, None)
        )
    return sources


def _outside_frame(path: Path) -> pd.DataFrame:
    """Columns id, label, logit_0 … of an outside file; a single column `logits` (lists, or their
    JSON) is spread out.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        if "logits" in frame:
            lists = [
                json.loads(cell) if isinstance(cell, str) else cell for cell in frame["logits"]
            ]
            logits = np.asarray(lists, dtype=np.float64)
            spread = pd.DataFrame(
                {f"logit_{i}": logits[:, i] for i in range(logits.shape[1])}, index=frame.index
            )
            frame = frame[["id", "label"]].join(spread)
        names = [
            f"logit_{i}" for i in range(sum(name.startswith("logit_") for name in frame.columns))
        ]
        frame = frame[["id", "label", *names]].astype({"id": np.int64, "label": np.int64})
        return frame.astype(dict.fromkeys(names, np.float64))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as fault:
        raise UserError(
            f"{path} cannot be read as predictions ({str(fault).splitlines()[0][:80]}): it needs the whole-number columns "
            "id and label, and logit_0, logit_1, … or one column logits with lists of one length"
        ) from fault


def _arrays(frame: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and logits [n, C], ordered by id, which must be 0 … n-1, each once."""
    frame = frame.sort_values("id", kind="stable")
    ids = frame["id"].to_numpy()
    doubled = ids[1:][ids[1:] == ids[:-1]]
    if len(doubled):
        raise UserError(
            f"{name}: id {doubled[0]} stands there more than once; give each test row one line"
        )
    absent = np.setdiff1d(np.arange(ids.max(initial=-1) + 1), ids)
    if len(absent) or (len(ids) and ids[0] != 0):
        raise UserError(
            f"{name}: {len(absent)} test rows are missing, the first has id {absent[0]}; predict every row"
        )
    labels, logits = frame["label"].to_numpy(), frame.drop(columns=["id", "label"]).to_numpy()
    check_predictions(labels, logits, name)
    return labels, logits


def _check_same_rows(first: Source, other: Source) -> None:
    """Refuse two classifiers that did not answer the same test set."""
    if len(first.labels) != len(other.labels):
        raise UserError(
            f"{other.key} has {len(other.labels)} test rows and {first.key} has {len(first.labels)}: "
            "only predictions for the same test set compare"
        )
    if first.logits.shape[1] != other.logits.shape[1]:
        raise UserError(
            f"{other.key} has {other.logits.shape[1]} classes and {first.key} has {first.logits.shape[1]}"
        )
    different = np.flatnonzero(first.labels != other.labels)
    if len(different):
        row = different[0]
        raise UserError(
            f"{other.key} was tested on other labels than {first.key}: {len(different)} rows differ, the first is id {row} "
            f"({other.labels[row]} and {first.labels[row]})"
        )
