"""Scores of one classifier from its logits, each with a 95% interval.

Every score here is a function of *sums over the test rows*: of correct answers, of rows predicted
as class c, of negative log-likelihoods, of (confidence - correct) in each calibration bin.
`contributions` lays one row's terms out as a row of a matrix M [n, k], and `scores_from_sums` turns
any vector of k sums into scores. So

    the score            is  scores_from_sums(1ᵀ M)
    bootstrap resamples  are scores_from_sums(W M),   W [resamples, n] = how often each row was drawn

and ten thousand resamples are one matrix product instead of ten thousand passes. Using the same W
for two classifiers makes the bootstrap paired (see `paired.py`).

Intervals, and why not one kind for all:
  * accuracy, per-class precision and recall are proportions of a known number of rows: Wilson's
    score interval, which stays inside [0, 1] and is not empty at 0 or 1 (Wilson, JASA 1927, eq. 7).
  * F1, macro averages, NLL and Brier are not proportions: percentile bootstrap (Efron & Tibshirani
    1993, ch. 13).
  * calibration error is a sum of absolute values, so resampling adds to it what sampling already
    added; the basic ("reflected") bootstrap, [2v - q97.5, 2v - q2.5], takes that bias off instead
    of counting it twice (Davison & Hinkley 1997, eq. 5.6).

Calibration error (Guo et al., arXiv 1706.04599, eq. 3) is of the top label, in 15 bins: `ece` has
bins of equal width (0, 1/15], (1/15, 2/15], …; `ece_adaptive` has bins of equal count (Nixon et
al., arXiv 1904.01685). Bins are fixed on the sample and kept while resampling.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest

from ..errors import UserError

RESAMPLES = 10_000
CALIBRATION_BINS = 15
_CHUNK_RESAMPLES = 500  # W is [500, 7600] float32 at a time: 15 MB, where all of it would be 300 MB


def check_predictions(labels: np.ndarray, logits: np.ndarray, name: str = "predictions") -> None:
    """Refuse what no score is defined for: shapes that disagree, no rows, NaN or infinite logits,
    unknown labels.

    labels [n] integers in [0, C); logits [n, C] floats, C >= 2. Raises UserError naming `name` and
    the fault.
    """
    labels, logits = np.asarray(labels), np.asarray(logits)
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise UserError(
            f"{name}: expected n labels and n x C logits, got {labels.shape} and {logits.shape}."
        )
    if len(labels) == 0:
        raise UserError(f"{name}: there are no rows to score.")
    bad_rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(bad_rows):
        raise UserError(
            f"{name}: {len(bad_rows)} rows have NaN or infinite logits, the first is row {bad_rows[0]}."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(
            f"{name}: labels run from {labels.min()} to {labels.max()} but the logits have {logits.shape[1]} columns."
        )


@dataclass(frozen=True)
class Contributions:
    """Each test row's additive terms, [n, k] float32, and where each kind of term lies among the k
    columns.
    """

    matrix: np.ndarray
    n_classes: int

    @property
    def sums(self) -> np.ndarray:
        """Sums over all rows, [k] float64: the point estimates come from these."""
        return self.matrix.sum(axis=0, dtype=np.float64)


def contributions(labels: np.ndarray, logits: np.ndarray) -> Contributions:
    """Lay out the terms of every score, one test row a row.

    Columns: 1 (the row itself) | label is c, C columns | prediction is c, C | both are c, C |
    negative log-likelihood in nats | Brier score | confidence - correct in each equal-width bin |
    in each equal-count bin.
    """
    check_predictions(labels, logits)
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    n, n_classes = logits.shape
    log_probability = log_softmax(logits, axis=1)
    probability = np.exp(log_probability)
    predicted = logits.argmax(axis=1)
    is_label = np.eye(n_classes)[labels]
    is_predicted = np.eye(n_classes)[predicted]
    confidence = probability.max(axis=1)
    gap = (confidence - (predicted == labels))[:, None]
    nll = -log_probability[np.arange(n), labels]
    brier = np.square(probability - is_label).sum(axis=1)
    columns = [
        np.ones((n, 1)),
        is_label,
        is_predicted,
        is_label * is_predicted,
        nll[:, None],
        brier[:, None],
        gap * np.eye(CALIBRATION_BINS)[equal_width_bins(confidence)],
        gap * np.eye(CALIBRATION_BINS)[equal_count_bins(confidence)],
    ]
    return Contributions(
        np.concatenate(columns, axis=1, dtype=np.float32, casting="same_kind"), n_classes
    )


def equal_width_bins(confidence: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Bin number of each confidence; bin b holds (b/bins, (b+1)/bins], closed on the right as in
    Guo et al.
    """
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)


def equal_count_bins(confidence: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Bin number of each confidence when rows sorted by confidence are cut into `bins` runs of
    (almost) equal count.
    """
    numbers = np.empty(len(confidence), dtype=int)
    for number, rows in enumerate(np.array_split(np.argsort(confidence, kind="stable"), bins)):
        numbers[rows] = number
    return numbers


def scores_from_sums(sums: np.ndarray, n_classes: int) -> dict[str, np.ndarray]:
    """Scores from sums [..., k] (columns as in `contributions`); each value has the leading shape
    of `sums`.

    A class never predicted has precision 0, one with no rows recall 0 (scikit-learn's
    zero_division=0); macro averages run over all C classes. Brier is the sum over classes of
    squared errors, so 0 to 2 (Brier 1950).
    """
    widths = [1, n_classes, n_classes, n_classes, 1, 1, CALIBRATION_BINS, CALIBRATION_BINS]
    parts = np.split(np.asarray(sums, dtype=np.float64), np.cumsum(widths)[:-1], axis=-1)
    rows, labelled, predicted, correct, nll, brier, width_gaps, count_gaps = parts
    n = rows[..., 0]
    precision = correct / np.maximum(predicted, 1)
    recall = correct / np.maximum(labelled, 1)
    f1 = 2 * correct / np.maximum(predicted + labelled, 1)
    scores = {
        "accuracy": correct.sum(axis=-1) / n,
        "f1_macro": f1.mean(axis=-1),
        "precision_macro": precision.mean(axis=-1),
        "recall_macro": recall.mean(axis=-1),
        "nll": nll[..., 0] / n,
        "brier": brier[..., 0] / n,
        "ece": np.abs(width_gaps).sum(axis=-1) / n,
        "ece_adaptive": np.abs(count_gaps).sum(axis=-1) / n,
    }
    for number in range(n_classes):
        scores[f"precision_{number}"] = precision[..., number]
        scores[f"recall_{number}"] = recall[..., number]
        scores[f"f1_{number}"] = f1[..., number]
    return scores


def bootstrap_sums(matrix: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Column sums of `matrix` [n, k] over resamples of its rows, drawn with replacement:
    [resamples, k] float64.

    The draws depend on (n, resamples, seed) alone, so matrices of the same rows get the same
    indices: paired. float32 products are exact for counts (below 2**24) and good to 1e-6 relative
    for the rest.
    """
    n = len(matrix)
    matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, matrix.shape[1]))
    for start in range(0, resamples, _CHUNK_RESAMPLES):
        count = min(_CHUNK_RESAMPLES, resamples - start)
        drawn = generator.integers(0, n, size=(count, n), dtype=np.int32)
        drawn += np.arange(count, dtype=np.int32)[:, None] * n
        times_drawn = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        sums[start : start + count] = times_drawn.astype(np.float32) @ matrix
    return sums


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion (Wilson 1927); (0, 1) when there are no rows to know it
    from.
    """
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(int(successes), int(n)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def classification_scores(
    labels: np.ndarray, logits: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, float]]:
    """All scores of one classifier: name -> {value, low, high, n}, n being the rows the score is a
    statement about.

    labels [n] in [0, C); logits [n, C], any float dtype. Per-class scores are named by class number
    (`f1_2`). Raises UserError for predictions that cannot be scored (`check_predictions`).
    """
    terms = contributions(labels, logits)
    values = scores_from_sums(terms.sums, terms.n_classes)
    drawn = scores_from_sums(bootstrap_sums(terms.matrix, resamples, seed), terms.n_classes)
    lows_highs = {name: np.quantile(sample, (0.025, 0.975)) for name, sample in drawn.items()}
    rows = dict.fromkeys(values, len(terms.matrix))
    for name in ("ece", "ece_adaptive"):
        reflected = 2 * values[name] - lows_highs[name][::-1]
        lows_highs[name] = np.maximum(reflected, 0.0)

    predicted = np.asarray(logits).argmax(axis=1)
    hits = predicted == np.asarray(labels)
    lows_highs["accuracy"] = wilson(hits.sum(), len(hits))
    for number in range(terms.n_classes):
        for name, members in (
            ("precision", predicted == number),
            ("recall", np.asarray(labels) == number),
        ):
            rows[f"{name}_{number}"] = int(members.sum())
            lows_highs[f"{name}_{number}"] = wilson(hits[members].sum(), members.sum())
    return {
        name: {
            "value": float(value),
            "low": float(lows_highs[name][0]),
            "high": float(lows_highs[name][1]),
            "n": rows[name],
        }
        for name, value in values.items()
    }


def reliability(
    labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0
) -> dict[str, np.ndarray]:
    """What a reliability diagram draws: per equal-width bin, rows, mean confidence and accuracy
    (NaN when empty).
    """
    check_predictions(labels, logits)
    probability = softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=1)
    confidence = probability.max(axis=1)
    hits = probability.argmax(axis=1) == np.asarray(labels)
    bins = equal_width_bins(confidence)
    count = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        return {
            "count": count,
            "confidence": np.bincount(bins, confidence, CALIBRATION_BINS) / count,
            "accuracy": np.bincount(bins, hits, CALIBRATION_BINS) / count,
        }


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(logits / T): temperature scaling, Guo et al. 2017,
    section 4.2.

    Fit it on validation logits only. NLL is convex in 1/T, so the one minimum over T in [0.05, 20]
    is the answer. T > 1 means that the classifier was overconfident. No prediction changes.
    """
    check_predictions(labels, logits)
    labels, logits = np.asarray(labels), np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(nll, bounds=np.log((0.05, 20.0)), method="bounded").x))
