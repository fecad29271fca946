"""Scores of one classifier from its logits, each with a 95% interval.

The bootstrap draws n of the n rows with replacement: scores of counts (accuracy, precision, recall,
F1) multinomially, sums over rows (NLL, Brier, ECE) row by row. Intervals are its percentiles (Efron
& Tibshirani 1993, ch. 13), but for

  * proportions (accuracy, precision and recall per class): Wilson's score interval, which stays in
    [0, 1] and is not empty at its ends (JASA 1927, eq. 7);
  * calibration errors, which sampling biases upward and resampling once more; the basic bootstrap
    takes that off: [2v - q97.5, 2v - q2.5] (Davison & Hinkley 1997, eq. 5.6).
"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix

from ..errors import UserError

RESAMPLES = 10_000
BINS = 15


def check_predictions(labels: np.ndarray, logits: np.ndarray, name: str = "predictions") -> None:
    """Raise UserError unless labels [n] are in [0, C), logits [n, C] finite, n >= 1, C >= 2."""
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        fault = f"expected n labels and n x C logits, got {labels.shape} and {logits.shape}"
    elif len(labels) == 0:
        fault = "there are no rows to score"
    elif len(bad := np.flatnonzero(~np.isfinite(logits).all(axis=1))):
        fault = f"{len(bad)} rows have NaN or infinite logits, the first is row {bad[0]}"
    elif labels.min() < 0 or labels.max() >= (columns := logits.shape[1]):
        span = f"labels run from {labels.min()} to {labels.max()}"
        fault = f"{span} but the logits have {columns} columns"
    else:
        return
    raise UserError(f"{name}: {fault}; predict again")


def draw_counts(answers: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of `answers` [n, m], transposed to [m, cells], and their counts [1 +
    resamples, cells], the sample itself first.
    """
    cells, counts = np.unique(answers, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(answers), counts / len(answers), resamples)
    return cells.T, np.vstack([counts, drawn])


def count_scores(
    counts: np.ndarray, labels: np.ndarray, predicted: np.ndarray, n_classes: int
) -> dict[str, np.ndarray]:
    """Accuracy; precision, recall, F1 per class (`f1_2`) and macro; weighted F1: each [...], where
    counts [..., cells] rows have `labels` [cells] and `predicted` [cells]; 0 / 0 is 0.
    """
    classes = np.eye(n_classes)
    labelled, answered = counts @ classes[labels], counts @ classes[predicted]
    correct = counts @ (classes[labels] * (labels == predicted)[:, None])
    scores = {"accuracy": correct.sum(axis=-1) / counts.sum(axis=-1)}
    # Macro means are over the classes that occur in a draw, as scikit-learn's are.
    occurring = (labelled + answered > 0).sum(axis=-1)
    for name, factor, of in (
        ("precision", 1, answered), ("recall", 1, labelled), ("f1", 2, labelled + answered)
    ):  # fmt: skip
        per_class = factor * correct / np.maximum(of, 1)
        scores[f"{name}_macro"] = per_class.sum(axis=-1) / occurring
        scores |= {f"{name}_{c}": per_class[..., c] for c in range(n_classes)}
    weight = labelled / counts.sum(axis=-1)[..., None]
    scores["f1_weighted"] = (weight * per_class).sum(axis=-1)  # the loop ends on F1
    return scores


def row_terms(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """What each row adds to the scores that are sums over rows, float32 [n, 32].

    Columns: NLL in nats | Brier score, summed over classes (0 to 2) | confidence - correct of the
    top label in 15 bins of equal width (Guo et al., arXiv 1706.04599, eq. 3) | in 15 bins of equal
    count (Nixon et al., arXiv 1904.01685).
    """
    rows = np.arange(len(labels))
    log_probability = log_softmax(logits.astype(np.float64), axis=1)
    probability = np.exp(log_probability)
    confidence = probability.max(axis=1)
    gap = confidence - (logits.argmax(axis=1) == labels)
    terms = np.zeros((len(labels), 2 + 2 * BINS), dtype=np.float32)
    terms[:, 0] = -log_probability[rows, labels]  # scikit-learn's log_loss stops at 36 nats a row
    terms[:, 1] = np.square(probability - np.eye(logits.shape[1])[labels]).sum(axis=1)
    terms[rows, 2 + equal_width_bins(confidence)] = gap
    for number, run in enumerate(np.array_split(np.argsort(confidence, kind="stable"), BINS)):
        terms[run, 2 + BINS + number] = gap[run]
    return terms


def equal_width_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence: bin b holds (b/15, (b+1)/15], closed on the right as in Guo et al."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)


def draw_sums(terms: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of `terms` floats [n, k] over the rows drawn, [1 + resamples, k], undrawn first."""
    n, rng = len(terms), np.random.default_rng(seed)
    sums = np.empty((1 + resamples, terms.shape[1]))
    sums[0] = terms.sum(axis=0, dtype=np.float64)
    for sample in sums[1:]:
        times_drawn = np.bincount(rng.integers(0, n, n, dtype=np.int32), minlength=n)
        sample[:] = times_drawn.astype(terms.dtype) @ terms
    return sums


def sum_scores(sums: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """NLL, Brier score and calibration errors from sums [..., 32] of `row_terms` over n rows."""
    bins = np.abs(sums[..., 2:]) / n
    scores = {"nll": sums[..., 0] / n, "brier": sums[..., 1] / n}
    scores |= {"ece": bins[..., :BINS].sum(axis=-1), "ece_adaptive": bins[..., BINS:].sum(axis=-1)}
    return scores


def calibration_error(labels: np.ndarray, logits: np.ndarray) -> float:
    """Expected calibration error in 15 bins of equal width."""
    sums = row_terms(labels, logits).sum(axis=0, dtype=np.float64)
    return float(sum_scores(sums, len(labels))["ece"])


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion; (0, 1) for n = 0."""
    if n == 0:
        return 0.0, 1.0
    found = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def classification_scores(
    labels: np.ndarray, logits: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, dict[str, float]]:
    """All scores: name -> {value, low, high, n}, n being the rows that the score speaks of.

    labels [n] in [0, C); logits [n, C]. Raises UserError (`check_predictions`).
    """
    check_predictions(labels, logits)
    n, n_classes = logits.shape
    predicted, classes = logits.argmax(axis=1), range(n_classes)
    (truth, guess), counts = draw_counts(np.column_stack([labels, predicted]), resamples, seed)
    samples = count_scores(counts, truth, guess, n_classes)
    samples |= sum_scores(draw_sums(row_terms(labels, logits), resamples, seed), n)

    table = confusion_matrix(labels, predicted, labels=classes)  # [label, prediction]
    proportions = {"accuracy": (table.trace(), n)}
    for name, totals in (("precision", table.sum(axis=0)), ("recall", table.sum(axis=1))):
        proportions |= {f"{name}_{c}": (table[c, c], totals[c]) for c in classes}

    scores = {}
    for name, sample in samples.items():
        value, (low, high) = sample[0], np.quantile(sample[1:], (0.025, 0.975))
        hits, of = proportions.get(name, (None, n))
        if hits is not None:
            low, high = wilson(hits, of)
        elif name.startswith("ece"):
            low, high = max(2 * value - high, 0.0), max(2 * value - low, 0.0)
        scores[name] = {"value": float(value), "low": float(low), "high": float(high), "n": int(of)}
    return scores


def reliability(labels: np.ndarray, logits: np.ndarray, temperature: float = 1.0) -> pd.DataFrame:
    """Rows (`count`), mean `confidence` and `accuracy` per equal-width bin that is not empty."""
    confidence = softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1)
    hits = logits.argmax(axis=1) == labels
    frame = pd.DataFrame({"count": 1, "confidence": confidence, "accuracy": hits})
    how = {"count": "sum", "confidence": "mean", "accuracy": "mean"}
    return frame.groupby(equal_width_bins(confidence)).agg(how)


def fit_temperature(labels: np.ndarray, logits: np.ndarray) -> float:
    """The T that minimises the NLL of softmax(logits / T): temperature scaling (Guo, section 4.2).

    For validation logits only. NLL is convex in 1/T; T > 1 means overconfidence.
    """
    check_predictions(labels, logits)
    logits, rows = logits.astype(np.float64), np.arange(len(labels))

    def nll(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(nll, bounds=np.log((0.05, 20.0)), method="bounded").x))
