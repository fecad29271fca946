"""All variants side by side, one row per classifier.

* Every row is tested against one baseline; McNemar and equivalence tests are two families for
  Holm's adjustment.
* Size is the bytes of a checkpoint's tensors. Compression is the baseline's size over the row's;
  a second figure divides FP16's, because half of "4x" is float16.
* Latencies compare only within one `session`: one process that timed the rows in turns.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.labels import LABELS
from ..errors import UserError
from ..measure import paired
from ..measure.scores import calibration_error, classification_scores, fit_temperature
from ..models.variants import BASELINE, FP16, VARIANTS, style
from .result_files import REDO, Source, read_sources
from .timings import MODES, common_shape, latency_of, times_of

MIB = 2**20  # what the published table calls MB


@dataclass(frozen=True)
class Missing:
    """A variant without results; `sentence` says why."""

    key: str
    label: str
    sentence: str


@dataclass(frozen=True, eq=False)
class Row(Source):
    """One classifier's results.

    look     colour and marker in figures
    metrics  name -> {value, low, high, n}
    against  paired results against the baseline; {} for the baseline itself
    size     bytes and compression; {} without a record
    latency  times in ms by mode at one shape, and rates; {} where none were measured
    """

    look: tuple[str, str]
    metrics: dict
    against: dict
    size: dict
    latency: dict
    temperature: float | None = None
    ece_after_temperature: float | None = None

    @property
    def equivalent(self) -> bool:
        return self.against["tost_holm_p"] < paired.ALPHA

    @property
    def different(self) -> bool:
        return self.against["mcnemar_holm_p"] < paired.ALPHA

    @property
    def undecided(self) -> bool:
        return not (self.equivalent or self.different)

    @property
    def gains(self) -> bool:
        return self.different and self.points > 0

    @property
    def discordant(self) -> float:
        """Fraction of the texts."""
        test = self.against
        return (test["only_variant_right"] + test["only_baseline_right"]) / test["n"]

    @property
    def timed(self) -> bool:
        """Whether in the session whose times are compared, the baseline's if it was timed."""
        return bool(self.latency) and self.latency["same_session"]

    @property
    def points(self) -> float:
        return 100 * self.against["difference"]["accuracy"]["value"]

    @property
    def within(self) -> float:
        """Points, by the 90% score interval."""
        return 100 * max(map(abs, self.against["score_interval_90"]))

    @property
    def fastest(self) -> dict:
        entries = [self.latency[mode] for mode in MODES if self.latency[mode]]
        return min(entries, key=lambda entry: entry["median_ms"])


@dataclass(frozen=True, eq=False)
class Comparison:
    """The table's entries in order.

    record is the baseline's, else another row's ({} for outsiders alone); shape is the (batch size,
    tokens) of the table's latencies; margin is that of the equivalence test, a fraction.
    """

    baseline: Row
    entries: list[Row | Missing]
    record: dict
    shape: tuple[int, int] | None
    margin: float

    @property
    def labels(self) -> np.ndarray:
        return self.baseline.labels

    @property
    def margin_points(self) -> str:
        return f"±{100 * self.margin:g} points"

    @property
    def device(self) -> str:
        """What the times were measured on."""
        found = (row.record.get("timing", {}) for row in self.timed)
        made = [of["provenance"] for of in [*found, self.record] if "provenance" in of]
        return next((of["device"] for of in made if of.get("device")), "an unnamed device")

    @property
    def classes(self) -> list[str]:
        """In the order of the logits; numbers where no names fit."""
        n_classes = self.baseline.logits.shape[1]
        # A record that names none is older than data sets other than AG News.
        names = self.record.get("data", {}).get("classes", LABELS)
        return list(names if len(names) == n_classes else map(str, range(n_classes)))

    @property
    def rows(self) -> list[Row]:
        return [entry for entry in self.entries if isinstance(entry, Row)]

    @property
    def missing(self) -> list[Missing]:
        return [entry for entry in self.entries if isinstance(entry, Missing)]

    @property
    def others(self) -> list[Row]:
        return [row for row in self.rows if row is not self.baseline]

    @property
    def derived(self) -> list[Row]:
        """The other rows made from the checkpoint; all others where none is."""
        return [row for row in self.others if row.of_gpt2] or self.others

    @property
    def timed(self) -> list[Row]:
        return [row for row in self.rows if row.timed]

    def row(self, key: str) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def sweep(self) -> pd.DataFrame:
        columns = ["key", "label", "mode", "seq_len", "batch_size", "median_ms"]
        times = [vars(row) | time for row in self.timed for time in times_of(row)]
        return pd.DataFrame(times, columns=columns)


def compare_results(
    results_dir: Path,
    baseline: str = BASELINE.key,
    predictions: Path | None = None,
    probabilities: bool = False,
    margin: float = paired.MARGIN,
) -> Comparison:
    """Compare all results below `results_dir` and outside `predictions` (logits, or
    `probabilities`) with the row `baseline`.

    Raises UserError for results that must not share a table, none at all, or no baseline.
    """
    found = read_sources(results_dir, predictions, probabilities)
    sources = {source.key: source for source in found}
    # A device that computes it in float32 has no float16 row: it would be FP32 once more.
    half = sources.get(FP16.key)
    if half and "float32" in (half.record["variant"].get("dtype") or ""):
        del sources[FP16.key]
    if not sources:
        fault = f"{results_dir} holds no results to compare"
        raise UserError(f"{fault}: run python {BASELINE.script_path} first")
    if baseline not in sources:
        mend = f"run python {VARIANTS.get(baseline, BASELINE).script_path}, or give --baseline"
        known = ", ".join(sources)
        raise UserError(f"the baseline {baseline} has no results: {mend} one of {known}")
    shape, looks = common_shape(sources), style(sources)
    tests, sizes = _tests(sources, baseline, margin), _sizes(sources, baseline)
    # The control runs on the CPU: no times are held against its.
    clocks = filter(lambda source: source.of_gpt2, (sources[baseline], *sources.values()))
    reference = next((time for source in clocks for time in times_of(source)), {})
    rows = {
        key: Row(
            **vars(source),
            **_scores(source),
            look=looks[key],
            against=tests.get(key, {}),
            size=sizes.get(key, {}),
            latency=latency_of(source, shape, reference),
        )
        for key, source in sources.items()
    }
    record = next((row.record for row in (rows[baseline], *rows.values()) if row.record), {})
    return Comparison(rows[baseline], _entries(rows, record), record, shape, margin)


def _entries(rows: dict[str, Row], record: dict) -> list[Row | Missing]:
    """All variants in the registry's order, then the other rows."""
    if not record:
        return [*rows.values()]
    preset = record["settings"]["preset"]
    flag = "" if preset == "paper" else f" --preset {preset}"
    entries: list[Row | Missing] = []
    for key, variant in VARIANTS.items():
        sentence = f"{variant.label} is missing: run python {variant.script_path}{flag}"
        # What its device does not have, or nobody asked for, is not missing.
        if key in rows or not (variant.needs or variant.in_onnx):
            entries.append(rows.get(key) or Missing(key, variant.label, sentence))
    return entries + [row for key, row in rows.items() if key not in VARIANTS]


def _scores(source: Source) -> dict:
    """Scores, and calibration on test at a temperature fitted on validation."""
    # read_sources has checked that a record's scores are of these predictions.
    labels, logits = source.labels, source.logits
    scores = {"metrics": source.record.get("metrics") or classification_scores(labels, logits)}
    if source.validation is None:
        return scores
    temperature = fit_temperature(*source.validation)
    ece = calibration_error(labels, logits / temperature)
    return scores | {"temperature": temperature, "ece_after_temperature": ece}


def _tests(sources: dict[str, Source], baseline: str, margin: float) -> dict[str, dict]:
    """Paired results against the baseline, Holm-adjusted."""
    labels = sources[baseline].labels
    logits = {key: source.logits for key, source in sources.items()}
    tests = paired.compare_all(labels, logits, baseline, margin)
    for key, difference in paired.bootstrap_differences(labels, logits, baseline).items():
        tests[key]["difference"] = difference
    return tests


def _sizes(sources: dict[str, Source], baseline: str) -> dict[str, dict]:
    """Bytes of the rows that have a record, and compression."""
    sizes = {key: _size(key, source.record) for key, source in sources.items() if source.record}
    for name, other in (("compression", baseline), ("compression_fp16", FP16.key)):
        reference = sizes[other]["stored_bytes"] if other in sizes else None
        for size in sizes.values():
            size[name] = reference / size["stored_bytes"] if reference else None
    return sizes


def _size(key: str, record: dict) -> dict:
    """Bytes of one record. Raises UserError where parts or file do not add up."""
    size = record["size"]
    # FP16 is made from the FP32 file at load: it would store what it keeps resident.
    own_file = key != FP16.key
    stored = size["stored"] if own_file else size
    sums = all(sum(kind["parts"].values()) == kind["tensor_bytes"] for kind in (size, stored))
    if own_file:
        sums &= stored["header_bytes"] + stored["tensor_bytes"] == size["file_bytes"]
    if not sums:
        fault = f"records/{key}.json: its sizes do not add up to the file's bytes"
        raise UserError(f"{fault}; {REDO.format(key)}")
    return {
        "stored_bytes": stored["tensor_bytes"],
        "stored_parts": stored["parts"],
        "file_bytes": size["file_bytes"] if own_file else None,
        "resident_bytes": size["resident_bytes"],
        "peak_bytes": (record.get("memory") or {}).get("peak_bytes"),
    }
