"""All variants side by side: scores, paired tests, sizes, latencies, one row a classifier.

Nothing is run here. Scores and tests come from the predictions, sizes and latencies from the
records, and each is computed in one place (`scores.py`, `paired.py`); this file only decides what
is compared with what:

  * Every row is tested against one baseline. The McNemar tests of all rows are one family for
    Holm's adjustment, the equivalence tests another.
  * Size is the bytes of the tensors that a checkpoint stores, scales and zero-points included;
    resident bytes stand beside it. Compression is the baseline's over the row's; a second figure
    divides the FP16 control's, because half of "4x" is float16.
  * Latencies compare only when one process timed the rows in turns, which their `session` says. A
    row from another session keeps its figure and is marked.

MB means 2**20 bytes, as in the published table.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..measure import paired
from ..measure.scores import calibration_error, classification_scores, fit_temperature
from ..models.variants import BASELINE, FP16, VARIANTS
from .result_files import Source, read_sources

MIB = 2**20
HEADLINE_SHAPE = (16, 128)  # batch, tokens: what the table's latency column shows


@dataclass
class Row:
    """One classifier. `missing` is the sentence that stands for results not made yet; then all else
    is empty.
    """

    key: str
    label: str
    missing: str | None = None
    source: Source | None = None
    metrics: dict = field(default_factory=dict)
    temperature: float | None = None
    ece_after_temperature: float | None = None
    against: dict | None = None  # paired results; None for the baseline itself
    size: dict = field(default_factory=dict)
    latency: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class Comparison:
    """Rows in table order, the labels [n] that all share, and sentences that belong under the
    table.
    """

    baseline: str
    labels: np.ndarray
    rows: list[Row]
    notes: list[str]

    @property
    def present(self) -> list[Row]:
        """The rows that have results."""
        return [row for row in self.rows if row.missing is None]

    def row(self, key: str) -> Row | None:
        """The row of `key`, if it has results."""
        return next((row for row in self.present if row.key == key), None)

    @property
    def record(self) -> dict | None:
        """A record that speaks for all of ours (the baseline's where it has one); None when all are
        outsiders.
        """
        ours = [row for row in self.present if row.source.record]
        return min(ours, key=lambda row: row.key != self.baseline).source.record if ours else None


def compare_results(
    results_dir: Path, baseline: str = BASELINE.key, predictions: Path | None = None
) -> Comparison:
    """Compare everything below `results_dir`, and outside `predictions`, with the row `baseline`.

    Raises UserError for results that must not share a table (`result_files.py`), none at all, or no
    baseline.
    """
    sources = read_sources(results_dir, predictions)
    if not sources:
        raise UserError(
            f"{results_dir} holds no results to compare: run python src/1_baseline_finetuning.py first"
        )
    if baseline not in {source.key for source in sources}:
        script = VARIANTS.get(baseline, BASELINE).script_path
        known = ", ".join(source.key for source in sources)
        raise UserError(
            f"the baseline {baseline} has no results: run python {script}, or give --baseline one of {known}"
        )
    labels = sources[0].labels
    present = {source.key: _scored(source) for source in sources}
    _test(present, baseline, labels)
    _weigh(present, baseline)
    notes = _time(present, baseline) + _twins(present)
    rows = list(present.values())
    if any(source.record for source in sources):
        preset = next(source.record for source in sources if source.record)["settings"]["preset"]
        rows = _with_missing(present, preset)
    return Comparison(baseline, labels, rows, notes)


def _with_missing(present: dict[str, Row], preset: str) -> list[Row]:
    """All variants in the order of VARIANTS, those without results as a sentence; then the other
    rows.
    """
    flag = "" if preset == "paper" else f" --preset {preset}"
    rows = []
    for key, variant in VARIANTS.items():
        sentence = f"{variant.label} is missing: run python {variant.script_path}{flag}"
        rows.append(present.get(key) or Row(key, variant.label, missing=sentence))
    return rows + [row for key, row in present.items() if key not in VARIANTS]


def _scored(source: Source) -> Row:
    """Scores with intervals. Temperature is fitted on validation; its effect is shown on test,
    where nothing is chosen.
    """
    row = Row(source.key, source.label, source=source)
    # A record already holds them, computed from these very predictions (read_sources has checked
    # that).
    row.metrics = (
        source.record["metrics"]
        if source.record
        else classification_scores(source.labels, source.logits)
    )
    if source.validation is not None:
        row.temperature = fit_temperature(*source.validation)
        cooled = source.logits / row.temperature
        row.ece_after_temperature = calibration_error(source.labels, cooled)
    return row


def _test(present: dict[str, Row], baseline: str, labels: np.ndarray) -> None:
    """Paired results of every row against the baseline, with Holm's adjustment over the rows."""
    logits = {key: row.source.logits for key, row in present.items()}
    differences = paired.bootstrap_differences(labels, logits, baseline)
    others = [key for key in present if key != baseline]
    for key in others:
        result = paired.compare(labels, logits[baseline], logits[key])
        present[key].against = {**result, "difference": differences[key]}
    for name in ("mcnemar", "tost"):
        adjusted = paired.holm([present[key].against[f"{name}_p"] for key in others])
        for key, p_value in zip(others, adjusted, strict=True):
            present[key].against[f"{name}_holm_p"] = p_value


def _weigh(present: dict[str, Row], baseline: str) -> None:
    """Stored and resident sizes of the rows that have a record, checked against the file, and
    compression both ways.
    """
    for key, row in present.items():
        if row.source.record:
            row.size = _size(key, row.source.record["size"])
            row.size["peak_bytes"] = (row.source.record.get("memory") or {}).get("peak_bytes")
    for row in present.values():
        for name, other in (("compression", baseline), ("compression_fp16", FP16.key)):
            reference = present[other].size.get("stored_bytes") if other in present else None
            if row.size:
                row.size[name] = reference / row.size["stored_bytes"] if reference else None


def _size(key: str, size: dict) -> dict:
    """Sizes of one record in bytes. Raises UserError where a sum over parts or the file's length
    does not come out.

    FP16 has no file of its own: it is made from the FP32 file at load, and would store what it
    keeps resident.
    """
    stored = (
        {"parts": size["parts"], "tensor_bytes": size["tensor_bytes"]}
        if key == FP16.key
        else size["stored"]
    )
    whole_file = (
        key == FP16.key or stored["header_bytes"] + stored["tensor_bytes"] == size["file_bytes"]
    )
    sums = all(sum(kind["parts"].values()) == kind["tensor_bytes"] for kind in (size, stored))
    if not (whole_file and sums):
        raise UserError(
            f"records/{key}.json: its sizes do not add up to the file's bytes; run the script that makes {key} with --overwrite"
        )
    return {
        "stored_bytes": stored["tensor_bytes"],
        "stored_parts": stored["parts"],
        "header_bytes": stored.get("header_bytes"),
        "file_bytes": None if key == FP16.key else size["file_bytes"],
        "resident_bytes": size["resident_bytes"],
        "resident_parts": size["parts"],
    }


def _time(present: dict[str, Row], baseline: str) -> list[str]:
    """Latency at one shape for every row, marked where it was timed in another session than the
    baseline's.
    """
    notes = []
    reference = present[baseline].source.record or {}
    session = next((entry["session"] for entry in reference.get("latency", [])), None)
    shape = _common_shape(present)
    for row in present.values():
        record = row.source.record or {}
        entries = [
            entry
            for entry in record.get("latency", [])
            if (entry["batch_size"], entry["seq_len"]) == shape
        ]
        if not entries:
            continue
        by_mode = {entry["mode"]: _with_interval(entry) for entry in entries}
        row.latency = {
            "shape": shape,
            "eager": by_mode.get("eager"),
            "best": by_mode.get("best"),
            "same_session": session is not None
            and all(entry["session"] == session for entry in entries),
            "texts_per_s": _by_mode(record.get("throughput"), "texts_per_s"),
            "joules_per_1000_texts": _by_mode(record.get("energy"), "joules_per_1000_texts"),
        }
    apart = [
        row.label for row in present.values() if row.latency and not row.latency["same_session"]
    ]
    if apart:
        notes.append(
            f"{', '.join(apart)}: latency marked * was timed in another process than the baseline's and does not compare; "
            "run python src/3_bitsandbytes_quant.py --overwrite to time all in turns"
        )
    return notes


def _with_interval(entry: dict) -> dict:
    """The entry with an interval in any case: below six values there is none of the median at 95%,
    so their range stands.
    """
    if entry["median_low_ms"] is not None:
        return entry
    return {
        **entry,
        "median_low_ms": min(entry["values_ms"]),
        "median_high_ms": max(entry["values_ms"]),
    }


def _by_mode(section: dict | None, name: str) -> dict[str, float]:
    """One figure of a record's section for each mode, `eager` and `best`, that was measured."""
    return {mode: section[mode][name] for mode in ("eager", "best") if mode in (section or {})}


def _common_shape(present: dict[str, Row]) -> tuple[int, int] | None:
    """The (batch, tokens) that most rows were timed at; the headline shape wins a tie, then the
    largest.
    """
    counts: dict[tuple[int, int], int] = {}
    for row in present.values():
        latency = (row.source.record or {}).get("latency", [])
        for shape in {(entry["batch_size"], entry["seq_len"]) for entry in latency}:
            counts[shape] = counts.get(shape, 0) + 1
    return max(
        counts, key=lambda shape: (counts[shape], shape == HEADLINE_SHAPE, shape), default=None
    )


def _twins(present: dict[str, Row]) -> list[str]:
    """A sentence for every two rows with bit-identical logits: most likely one classifier, counted
    twice.
    """
    rows = list(present.values())
    return [
        f"{one.label} and {other.label} answer with identical logits on every row: one classifier under two names?"
        for i, one in enumerate(rows)
        for other in rows[i + 1 :]
        if np.array_equal(one.source.logits, other.source.logits)
    ]
