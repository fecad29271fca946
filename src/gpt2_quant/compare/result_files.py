"""Read results; refuse what does not belong in one table.

Two classifiers compare when they answered the same texts, come from the same weights and ran under
the same preset: by the records' fingerprints, and text by text for predictions.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import UserError
from ..measure.predictions import load_predictions, predictions_path
from ..measure.scores import check_predictions, classification_scores
from ..models.variants import VARIANTS
from ..records import VARIANT_RECORD, load_records, schema_fault

# What records in one table must agree in, and where a record says it.
SAME = {
    "presets": ("settings", "preset"),
    "baseline checkpoints": ("checkpoint", "baseline_sha256"),
    "test sets": ("data", "sha256"),
    "text lengths (--max-length)": ("settings", "max_length"),
}
LONGEST_NAME = 60  # letters of an outside classifier's: it names figures and table rows
SMALLEST_PROBABILITY = 1e-12  # what a softmax rounded to 0, so that its logarithm is finite
REDO = "run the script that makes {} with --overwrite"


@dataclass(frozen=True, eq=False)
class Source:
    """One classifier's results: labels int [n] and logits [n, C] of test, the same of validation
    where kept, and its record ({} for an outside classifier).
    """

    key: str
    label: str
    labels: np.ndarray
    logits: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None
    record: dict

    @property
    def of_gpt2(self) -> bool:
        """Whether made from the records' one checkpoint: no outside classifier, no control."""
        variant = VARIANTS.get(self.key)
        return bool(self.record) and not (variant and variant.reads_texts)


def read_sources(
    results_dir: Path, predictions: Path | None = None, probabilities: bool = False
) -> list[Source]:
    """Every classifier with results: variants in the registry's order, other records, outsiders.

    Raises UserError when two may not stand in one table, or one cannot be scored.
    """
    records = load_records(results_dir)
    for key in VARIANTS:
        if key not in records and (results_dir / "records" / f"{key}.json").exists():
            fault = f"records/{key}.json does not say which variant it is of"
            raise UserError(f"{fault}; {REDO.format(key)}")
    _check_same_experiment(records)
    order = [key for key in VARIANTS if key in records] + sorted(set(records) - set(VARIANTS))
    sources = [_own(results_dir, key, records[key]) for key in order]
    if predictions is not None:
        sources += _outsiders(predictions, order, probabilities)
    for source in sources[1:]:
        _check_same_texts(sources[0], source)
    labels = [source.label for source in sources]
    for label in labels:
        if labels.count(label) > 1 or not (label.isprintable() and 0 < len(label) <= LONGEST_NAME):
            mend = f"give it 1 to {LONGEST_NAME} printable letters that no other row has"
            raise UserError(f"{label!a:.70} is no name for a row of the table: {mend}")
    for source in sources:
        _check_scores(source, predictions_path(results_dir, source.key))
    return sources


def _check_same_experiment(records: dict[str, dict]) -> None:
    for key, record in records.items():
        if fault := schema_fault(record, VARIANT_RECORD) or _latency_fault(record):
            raise UserError(f"records/{key}.json: {fault}; {REDO.format(key)}")
        if (said := record.get("key")) != key:
            raise UserError(f"records/{key}.json is a copy of the record of {said}: delete it")
    for what, (section, field) in SAME.items():
        holders: dict[object, str] = {}  # value -> the first key that has it
        for key, record in records.items():
            holders.setdefault(record[section][field], key)
        if len(holders) > 1:
            said = " and ".join(f"{key} has {str(v)[:12]}" for v, key in [*holders.items()][:2])
            mend = "keep each in its own --results-dir, or run the scripts again with --overwrite"
            raise UserError(f"these results come from two {what} ({said}): {mend}")


def _latency_fault(record: dict) -> str:
    """That a median is one of its values, and inside its interval; "" where all are."""
    for entry in record.get("latency") or []:
        median, values = entry["median_ms"], entry["values_ms"] or [0.0]
        low = max(min(values) - 1e-5, entry.get("median_low_ms") or 0)  # values are rounded so
        if not low <= median <= min(max(values) + 1e-5, entry.get("median_high_ms") or median):
            return f"latency[].median_ms is {median}, which its values or its interval do not give"
    return ""


def _own(results_dir: Path, key: str, record: dict) -> Source:
    labels, logits = _arrays(partial(load_predictions, results_dir, key), key)
    data = record["data"]
    recorded = {"rows": data["n"], "classes": len(data.get("classes") or logits.T)}
    for n, (what, said) in zip(logits.shape, recorded.items(), strict=True):
        if n != said:
            fault = f"{predictions_path(results_dir, key)} has {n} {what}"
            raise UserError(f"{fault}, but its record was made from {said}: {REDO.format(key)}")
    validation, name = None, f"{key}.validation"
    if predictions_path(results_dir, name).is_file():
        validation = _arrays(partial(load_predictions, results_dir, name), name)
    return Source(key, record["variant"]["label"], labels, logits, validation, record)


def _check_scores(source: Source, path: Path) -> None:
    """That every score of a record, and its interval, is what the predictions give."""
    recorded = source.record.get("metrics") or {}
    scores = classification_scores(source.labels, source.logits, 1000) if recorded else {}
    for name, score in scores.items():
        # An interval is drawn again, from fewer samples: it moves by a fraction of its width. A
        # class of a few rows has an F1 of a few values, between which its ends jump.
        jumps = name.startswith("f1_") and name[3:].isdecimal()
        parts = {"value"} if jumps else {"value", "low", "high"}
        for part in parts & recorded.get(name, {}).keys():
            slack = 1e-6 + (part != "value") * 0.25 * (score["high"] - score["low"])
            said = recorded[name][part]
            if abs(said - score[part]) > slack:
                what = name if part == "value" else f"{name} ({part} end of its interval)"
                fault = f"{path} gives {what} {score[part]:.6f}, but its record says {said:.6f}"
                raise UserError(f"{fault}: {REDO.format(source.key)}")


def _outsiders(folder: Path, taken: list[str], probabilities: bool) -> list[Source]:
    """Every .csv or .parquet file in `folder` as a classifier of that name; `NAME.validation`
    serves to fit NAME's temperature.
    """
    form = ".csv or .parquet file with the columns id, label and logits"
    if not folder.is_dir():
        raise UserError(f"--predictions {folder}: there is no such folder; name one with a {form}")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".parquet")]
    validations = {path.stem: path for path in files if path.stem.endswith(".validation")}
    sources: dict[str, Source] = {}
    for path in files:
        if (key := path.stem) in validations:
            continue
        if key in [*taken, *sources]:
            raise UserError(f"{path}: there is a row named {key} already; give it another name")
        beside = validations.get(f"{key}.validation")
        validation = _outside_arrays(beside, probabilities) if beside else None
        test = _outside_arrays(path, probabilities)
        sources[key] = Source(key, key.replace("_", " "), *test, validation, {})
    if not sources:
        raise UserError(f"--predictions {folder} holds no {form}")
    return [*sources.values()]


def _outside_frame(path: Path) -> pd.DataFrame:
    """Columns id, label, logit_0 …; a single column `logits` is spread out."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if "logits" in frame:
        # Parquet holds lists, CSV their JSON.
        lists = [json.loads(x) if isinstance(x, str) else x for x in frame["logits"]]
        logits = pd.DataFrame(np.asarray(lists, dtype=float), index=frame.index)
        frame = frame[["id", "label"]].join(logits.add_prefix("logit_"))
    return frame


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Whole numbers id and label, floats logit_0 … Raises a dozen kinds of errors for others."""
    n_logits = frame.columns.str.startswith("logit_").sum()
    if not n_logits:
        raise ValueError(f"its columns are {', '.join(map(str, frame.columns[:8]))}")
    dtypes: dict[str, type] = {"id": np.int64, "label": np.int64}
    dtypes |= {f"logit_{i}": np.float64 for i in range(n_logits)}
    typed = frame[[*dtypes]].astype(dtypes)
    if not (typed[["id", "label"]] == frame[["id", "label"]].astype(float)).all(axis=None):
        raise ValueError("a fraction where a whole number belongs")
    return typed


def _arrays(read: Callable[[], pd.DataFrame], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [n] and logits [n, C], ordered by id, which must be 0 … n-1, each once."""
    try:
        frame = _typed(read()).sort_values("id", kind="stable")
    except (OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        said = f"{name} cannot be read as predictions ({str(error).splitlines()[0][:80]})"
        form = "logit_0, logit_1, … or one column logits with lists of one length"
        raise UserError(f"{said}: it needs whole numbers id and label, and {form}") from error
    doubled = frame["id"][frame["id"].duplicated()]
    if len(doubled):
        fault = f"{name}: id {doubled.iloc[0]} stands there more than once"
        raise UserError(f"{fault}; give each test row one line")
    absent = np.setdiff1d(np.arange(len(frame)), frame["id"])
    if len(absent):
        fault = f"{name}: {len(absent)} test rows are missing, the first has id {absent[0]}"
        raise UserError(f"{fault}; predict every row")
    labels, logits = frame["label"].to_numpy(), frame.drop(columns=["id", "label"]).to_numpy()
    logits[np.abs(logits) > np.finfo(np.float32).max] = np.inf  # scores are computed in float32
    check_predictions(labels, logits, name)
    return labels, logits


def _outside_arrays(path: Path, probabilities: bool) -> tuple[np.ndarray, np.ndarray]:
    """As `_arrays`, of logits, or of the logarithms of `probabilities`, which may be percent."""
    labels, logits = _arrays(partial(_outside_frame, path), str(path))
    total = logits.sum(axis=1, keepdims=True)
    # Two decimals may be all that was kept, and rounding may leave one below zero.
    given = total.min() > 0 and (logits >= -1e-6 * total).all() and np.ptp(total) < 0.04 * total[0]
    if given and not probabilities:
        fault = f"{path}: its rows are probabilities (each sums to {total.mean():.4g}), not logits"
        raise UserError(f"{fault}; say --probabilities, or give logits")
    if probabilities and not given:
        fault = f"{path}: its rows are no probabilities, which are 0 or more and sum to 1"
        raise UserError(f"{fault}; leave out --probabilities")
    return labels, np.log((logits / total).clip(SMALLEST_PROBABILITY)) if given else logits


def _check_same_texts(first: Source, other: Source) -> None:
    pairs = {"test": ((first.labels, first.logits), (other.labels, other.logits))}
    if first.validation and other.validation:
        pairs["validation"] = first.validation, other.validation
    for split, ((labels, logits), (other_labels, other_logits)) in pairs.items():
        for axis, what in enumerate((f"{split} rows", "classes")):
            n, other_n = logits.shape[axis], other_logits.shape[axis]
            if n != other_n:
                fault = f"{other.key} has {other_n} {what} and {first.key} has {n}"
                raise UserError(f"{fault}: only predictions for the same {split} set compare")
        different = np.flatnonzero(labels != other_labels)
        if len(different):
            fault = f"{other.key} has other {split} labels than {first.key}"
            said = f"{len(different)} rows differ, the first is id {different[0]}"
            raise UserError(f"{fault}: {said}; predict the same {split} set")
