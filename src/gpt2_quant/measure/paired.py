"""Two classifiers on the same test rows: is the difference real, and is it small enough not to
matter?

Both answered the same questions, so only the rows where exactly one is right tell them apart: b
rows that the variant alone gets right, c rows that the baseline alone gets right, of n. The
difference in accuracy is d = (b - c) / n.

  * *Is there a difference?* Exact McNemar: if neither is better, b of b + c is a fair coin's count
    (McNemar, Psychometrika 1947; the exact form is the binomial test). Many comparisons with one
    baseline: Holm's step-down adjustment (Scand. J. Stat. 1979) keeps the chance of any false claim
    below alpha.
  * *Is there none that matters?* A large p is not evidence of equality. Two one-sided tests
    (Schuirmann, J. Pharmacokinet. Biopharm. 1987) reject "the loss is at least the margin" and "the
    gain is at least the margin"; both use Tango's score statistic (Stat. Med. 1998, eq. 9), which
    still works when b + c is 0. The 90% interval made of the same statistic lies within the margin
    exactly when both reject at 5%.
  * *How large is it?* Paired bootstrap: the same drawn rows for every classifier, 10,000 times (see
    `scores.py`).
  * *What changed beneath the accuracy?* Answers may flip both ways and cancel out: agreement, flips
    by direction and class, and the Kullback-Leibler divergence of the predicted distributions,
    KL(baseline || variant) in nats (arXiv 2407.09141).
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax
from scipy.stats import binomtest, norm

from .scores import RESAMPLES, bootstrap_sums, contributions, scores_from_sums

MARGIN = 0.005  # 0.5 points of accuracy: about the half-width of a 95% interval at 0.946 on 7,600 rows (0.51)
DIFFERENCES = ("accuracy", "f1_macro", "nll", "brier")


def discordant(labels: np.ndarray, baseline: np.ndarray, variant: np.ndarray) -> tuple[int, int]:
    """(b, c): rows only the variant gets right, rows only the baseline gets right. All arguments
    [n], classes.
    """
    baseline_right, variant_right = baseline == labels, variant == labels
    return int((variant_right & ~baseline_right).sum()), int(
        (baseline_right & ~variant_right).sum()
    )


def mcnemar(b: int, c: int) -> float:
    """Two-sided exact p-value that b and c differ by chance alone; 1 when no row is discordant."""
    return float(binomtest(b, b + c, 0.5).pvalue) if b + c else 1.0


def tango(b: int, c: int, n: int, difference: float) -> float:
    """Tango's score statistic for H0: p_b - p_c = `difference`; standard normal under it, positive
    when d is larger.

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
    """Interval of p_b - p_c: all differences that Tango's test does not reject at 1 - `level`,
    two-sided.
    """
    z = norm.ppf(0.5 + level / 2)
    edge = 1 - 1e-9
    estimate = (b - c) / n

    def end(target: float, bound: float) -> float:
        def surplus(difference: float) -> float:
            return tango(b, c, n, difference) - target

        # At the bound itself no data can be told from it: then the bound is the end.
        return (
            bound
            if surplus(bound) * surplus(estimate) > 0
            else float(brentq(surplus, bound, estimate, xtol=1e-12))
        )

    return end(z, -edge), end(-z, edge)


def equivalence(b: int, c: int, n: int, margin: float = MARGIN) -> float:
    """TOST p-value: the larger of the two one-sided p-values against -margin and +margin; small
    means equivalent.
    """
    no_loss = norm.sf(tango(b, c, n, -margin))
    no_gain = norm.cdf(tango(b, c, n, margin))
    return float(max(no_loss, no_gain))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values, in the order given: the k-th smallest of m times (m - k + 1), never
    decreasing, at most 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def bootstrap_differences(
    labels: np.ndarray,
    logits: dict[str, np.ndarray],
    baseline: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, dict[str, dict[str, float]]]:
    """Variant minus baseline with a 95% percentile interval: key -> score -> {value, low, high}.

    labels [n]; logits: key -> [n, C], the baseline among them. All classifiers are laid side by
    side in one matrix, so one product per chunk of resamples serves them all, and every resample
    holds the same rows for all.
    """
    terms = {key: contributions(labels, values) for key, values in logits.items()}
    n_classes = terms[baseline].n_classes
    width = terms[baseline].matrix.shape[1]
    sums = bootstrap_sums(
        np.concatenate([term.matrix for term in terms.values()], axis=1), resamples, seed
    )
    drawn = {
        key: scores_from_sums(sums[:, i * width : (i + 1) * width], n_classes)
        for i, key in enumerate(terms)
    }
    values = {key: scores_from_sums(term.sums, n_classes) for key, term in terms.items()}
    result = {}
    for key in logits:
        if key == baseline:
            continue
        result[key] = {}
        for name in DIFFERENCES:
            low, high = np.quantile(drawn[key][name] - drawn[baseline][name], (0.025, 0.975))
            value = values[key][name] - values[baseline][name]
            result[key][name] = {"value": float(value), "low": float(low), "high": float(high)}
    return result


def divergence(baseline: np.ndarray, variant: np.ndarray) -> np.ndarray:
    """KL(softmax(baseline) || softmax(variant)) of each row, nats, float64 [n]; logits [n, C]."""
    log_p = log_softmax(np.asarray(baseline, dtype=np.float64), axis=1)
    log_q = log_softmax(np.asarray(variant, dtype=np.float64), axis=1)
    return np.maximum(
        (np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0
    )  # rounding may leave -1e-17


def compare(
    labels: np.ndarray, baseline: np.ndarray, variant: np.ndarray, margin: float = MARGIN
) -> dict:
    """Everything about one pair but the bootstrap and Holm, which need the whole family. Logits [n,
    C], labels [n].
    """
    labels = np.asarray(labels)
    n, n_classes = baseline.shape
    before, after = baseline.argmax(axis=1), variant.argmax(axis=1)
    b, c = discordant(labels, before, after)
    low, high = tango_interval(b, c, n, 0.90)
    flipped = before != after
    kl = divergence(baseline, variant)
    moves = np.bincount(before * n_classes + after, minlength=n_classes**2).reshape(
        n_classes, n_classes
    )
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
        "answers_before_after": moves.tolist(),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
    }
