"""Two classifiers on the same rows: is the difference real, and is it too small to matter?

Of n rows the variant alone gets b right, the baseline alone c: accuracy differs by (b - c) / n.

  * *Difference*: exact McNemar (Psychometrika 1947): under H0 b is binomial(b + c, 1/2); over many
    comparisons Holm's adjustment (Scand. J. Stat. 1979).
  * *Equivalence*, which a large p does not show: two one-sided tests (Schuirmann, J. Pharmacokinet.
    Biopharm. 1987) reject a loss, and a gain, of the margin or more, by Tango's score statistic
    (Stat. Med. 1998, eq. 9), which is defined for b + c = 0.
  * *Size*: bootstrap of both on the same samples (`scores.py`).
  * *Beneath*: flips may cancel out: agreement, KL in nats (arXiv 2407.09141).
  * *What n rows can show*: power of both tests (normal approximation; McNemar: Connor, Biometrics
    1987), at the fraction (b + c) / n that was seen.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import log_softmax
from scipy.stats import binomtest, norm

from .scores import RESAMPLES, count_scores, draw_counts, draw_sums, row_terms

MARGIN = 0.005  # half a point: about the half-width of a 95% interval at 0.946 on 7,600 rows
ALPHA, POWER = 0.05, 0.8


def mcnemar(b: int, c: int) -> float:
    """Two-sided exact p-value; 1 when both are 0."""
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def tango(b: int, c: int, n: int, difference: float) -> float:
    """Tango's score statistic for H0: p_b - p_c = D = `difference`; standard normal under H0.

    T = (b - c - n D) / sqrt(n (2 q + D (1 - D))), where q is the likeliest p_c under H0: the root
    of 2n q² + (-b - c + (2n - b + c) D) q - c D (1 - D) = 0.
    """
    linear = -b - c + (2 * n - b + c) * difference
    constant = -c * difference * (1 - difference)
    q = (np.sqrt(linear**2 - 8 * n * constant) - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    surplus = b - c - n * difference
    if variance <= 0:
        return 0.0 if surplus == 0 else float(np.copysign(np.inf, surplus))
    return float(surplus / np.sqrt(variance))


def tango_interval(b: int, c: int, n: int, level: float) -> tuple[float, float]:
    """All differences p_b - p_c that Tango's test does not reject at 1 - `level`, two-sided."""
    z, estimate, edge = norm.ppf(0.5 + level / 2), (b - c) / n, 1 - 1e-9

    def end(target: float, bound: float) -> float:
        def surplus(difference: float) -> float:
            return tango(b, c, n, difference) - target

        if surplus(bound) * surplus(estimate) > 0:
            return bound  # which no data can be told from
        return float(brentq(surplus, bound, estimate, xtol=1e-12))

    return end(z, -edge), end(-z, edge)


def equivalence(b: int, c: int, n: int, margin: float = MARGIN) -> float:
    """TOST p-value, the larger of the two one-sided ones: small means equivalent."""
    return float(max(norm.sf(tango(b, c, n, -margin)), norm.cdf(tango(b, c, n, margin))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: the k-th smallest of m times (m - k + 1), never decreasing, at most 1."""
    ascending = pd.Series(p_values, dtype=float).sort_values(kind="stable")
    scaled = ascending * np.arange(len(ascending), 0, -1)
    return scaled.cummax().clip(upper=1.0).sort_index().tolist()


def minimum_detectable(discordant: float, n: int, alpha: float = ALPHA) -> float:
    """The difference in accuracy that McNemar's test at `alpha` finds on n rows with 80% power,
    where this fraction of the rows is discordant, or, if that is larger, the difference itself.
    """

    def surplus(difference: float) -> float:
        return _rows_for_difference(discordant, difference, alpha) - n

    return float(brentq(surplus, 1e-9, 1)) if surplus(1) < 0 else 1.0


def rows_to_decide(
    discordant: float, difference: float, margin: float = MARGIN, alpha: float = ALPHA
) -> tuple[int, str]:
    """Rows, and which test ("difference" or "equivalence") decides on them at `alpha` with 80%
    power, if both fractions stay as they are: the test that needs fewer.
    """
    size = abs(difference)
    rows = {"difference": _rows_for_difference(discordant, size, alpha) if size else np.inf}
    if size < margin:
        z = norm.isf(alpha) + norm.isf((1 - POWER) / 2)  # either of the two tests may fail
        variance = max(discordant, margin) - size**2
        rows["equivalence"] = z**2 * variance / (margin - size) ** 2
    test = min(rows, key=lambda name: rows[name])
    return int(np.ceil(rows[test])), test


def _rows_for_difference(discordant: float, difference: float, alpha: float) -> float:
    spread = max(discordant, difference)
    deviations = norm.isf(alpha / 2) * np.sqrt(spread)
    deviations += norm.isf(1 - POWER) * np.sqrt(spread - difference**2)
    return float((deviations / difference) ** 2)


def bootstrap_differences(
    labels: np.ndarray,
    logits: dict[str, np.ndarray],
    baseline: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Variant minus baseline with a 95% percentile interval: key -> score (accuracy, f1_macro, nll,
    brier) -> {value, low, high}. labels [n]; logits: key -> [n, C], with the baseline.
    """
    n, n_classes = logits[baseline].shape
    losses = np.stack([row_terms(labels, values)[:, :2] for values in logits.values()], axis=1)
    # float64: a difference of means may be a millionth of either.
    terms = losses.reshape(n, -1).astype(np.float64)
    means = draw_sums(terms, resamples, seed).reshape(-1, len(logits), 2) / n
    mean_losses = dict(zip(logits, np.swapaxes(means, 0, 1), strict=True))

    found: dict[str, dict[str, dict[str, float]]] = {}
    for key in logits:
        if key == baseline:
            continue
        predicted = logits[baseline].argmax(axis=1), logits[key].argmax(axis=1)
        answers = np.column_stack([labels, *predicted])
        (truth, before, after), counts = draw_counts(answers, resamples, seed)
        theirs, ours = (count_scores(counts, truth, guess, n_classes) for guess in (before, after))
        samples = {name: ours[name] - theirs[name] for name in ("accuracy", "f1_macro")}
        samples["nll"], samples["brier"] = (mean_losses[key] - mean_losses[baseline]).T
        found[key] = {}
        for name, sample in samples.items():
            low, high = np.quantile(sample[1:], (0.025, 0.975))
            found[key][name] = {"value": float(sample[0]), "low": float(low), "high": float(high)}
    return found


def divergence(baseline: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """KL(softmax(baseline) || softmax(variant)) of each row, nats, float64 [n]; logits [n, C]."""
    log_p, log_q = (log_softmax(x.astype(np.float64), axis=1) for x in (baseline, variant))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    return np.maximum(kl, 0.0)  # rounding may leave -1e-17


def compare_all(
    labels: np.ndarray, logits: dict[str, np.ndarray], baseline: str, margin: float = MARGIN
) -> dict[str, dict]:
    """`compare` of every other key with `baseline`, and both p-values after Holm's adjustment.
    `alpha` is what Holm asks of the smallest p.
    """
    others = [key for key in logits if key != baseline]
    tests = {key: compare(labels, logits[baseline], logits[key], margin) for key in others}
    for name in ("mcnemar", "tost"):
        adjusted = holm([test[f"{name}_p"] for test in tests.values()])
        for test, p_value in zip(tests.values(), adjusted, strict=True):
            test |= {f"{name}_holm_p": p_value, "alpha": ALPHA / len(others)}
    return tests


def compare(
    labels: np.ndarray, baseline: np.ndarray, variant: np.ndarray, margin: float = MARGIN
) -> dict:
    """labels [n], logits [n, C]; margin as a fraction."""
    n, n_classes = baseline.shape
    before, after = baseline.argmax(axis=1), variant.argmax(axis=1)
    b = int(((after == labels) & (before != labels)).sum())
    c = int(((before == labels) & (after != labels)).sum())
    low, high = tango_interval(b, c, n, 0.90)
    flipped = before != after
    kl = divergence(baseline, variant)
    return {
        "n": n,
        "only_variant_right": b,
        "only_baseline_right": c,
        "mcnemar_p": mcnemar(b, c),
        "tost_p": equivalence(b, c, n, margin),
        "margin": margin,
        "score_interval_90": [low, high],
        "agreement": float(1 - flipped.mean()),
        "flips": int(flipped.sum()),
        "flips_wrong_to_other_wrong": int(flipped.sum()) - b - c,
        "flips_by_true_class": np.bincount(labels[flipped], minlength=n_classes).tolist(),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
    }
