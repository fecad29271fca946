"""How well a metric agrees with people, with the uncertainty of the documents at hand.

*Summary level*: for each document the rank correlation over its systems between metric and rating,
then the mean over documents; this asks whether the metric can tell good summaries of one text from
bad ones. *System level*: one correlation over systems of the means over documents. A document on
which people, or the metric, make no difference has no correlation and is left out.

Intervals are percentile bootstrap intervals over documents (2,000 resamples; Efron 1979), since
documents are what was sampled. Two metrics are compared on the same resamples: the interval of the
difference, not two intervals side by side, says which is better. For the one sample of STS pairs
there is Williams' test of two dependent correlations that share a variable (Steiger 1980):

    t = (r12 - r13) * sqrt( (n-1)(1 + r23) / (2 |R| (n-1)/(n-3) + rm² (1 - r23)³) ),   rm = (r12 + r13) / 2,
    |R| = 1 - r12² - r13² - r23² + 2 r12 r13 r23,   df = n - 3

Holm's correction (`paired.holm`) holds over each family. A third variable z (the number of
sentences) is taken out of ranks by the partial correlation (r_xy - r_xz r_yz) / sqrt((1 - r_xz²)(1
- r_yz²)).
"""

import numpy as np
from scipy.stats import kendalltau, rankdata
from scipy.stats import t as student_t

RESAMPLES = 2000


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of the pairs where both are defined; NaN when fewer than three,
    or one side is constant.
    """
    both = np.isfinite(x) & np.isfinite(y)
    return _pearson(rankdata(x[both]), rankdata(y[both])) if both.sum() > 2 else float("nan")


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b of the pairs where both are defined; NaN as `spearman`."""
    both = np.isfinite(x) & np.isfinite(y)
    # Of the two ways to a p-value, which is not used here, the asymptotic one takes no time.
    return (
        float(kendalltau(x[both], y[both], method="asymptotic").statistic)
        if both.sum() > 2
        else float("nan")
    )


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """Spearman of x and y with z held constant; where z is constant already, plain Spearman."""
    both = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    xy, xz, yz = spearman(x[both], y[both]), spearman(x[both], z[both]), spearman(y[both], z[both])
    if not np.isfinite(xz) or not np.isfinite(yz):
        return xy
    spread = (1 - xz**2) * (1 - yz**2)
    return float((xy - xz * yz) / np.sqrt(spread)) if spread > 1e-12 else float("nan")


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 1e-12 else float("nan")


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's correlation of the pairs where both are defined."""
    both = np.isfinite(x) & np.isfinite(y)
    return _pearson(x[both], y[both]) if both.sum() > 2 else float("nan")


def by_document(statistic, *columns: np.ndarray) -> np.ndarray:
    """`statistic` of each document's row; columns are float64 [documents, systems], the result
    float64 [documents].
    """
    return np.array([statistic(*rows) for rows in zip(*columns, strict=True)])


def resampled_documents(n: int, seed: int = 0) -> np.ndarray:
    """Row numbers int64 [RESAMPLES, n]: the bootstrap's documents, the same for every metric."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def interval_of_mean(per_document: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Mean of the defined documents with its 95% bootstrap interval: {value, low, high, n}."""
    defined = np.isfinite(per_document)
    if not defined.any():
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    means = _resampled_means(per_document, drawn)
    low, high = np.nanquantile(means, (0.025, 0.975))
    return {
        "value": float(per_document[defined].mean()),
        "low": float(low),
        "high": float(high),
        "n": int(defined.sum()),
    }


def difference(first: np.ndarray, second: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Mean of first - second over the documents that both define: {value, low, high, n, p}; p is
    two-sided, at least 1/RESAMPLES.
    """
    gap = first - second
    result = interval_of_mean(gap, drawn)
    means = _resampled_means(gap, drawn)
    tail = min(np.nanmean(means <= 0), np.nanmean(means >= 0))
    return {**result, "p": float(min(1.0, max(2 * tail, 1 / RESAMPLES)))}


def _resampled_means(per_document: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    values, defined = np.nan_to_num(per_document), np.isfinite(per_document)
    return values[drawn].sum(1) / np.maximum(defined[drawn].sum(1), 1)


def system_level(
    metric: np.ndarray, rating: np.ndarray, drawn: np.ndarray
) -> dict[str, dict[str, float]]:
    """Spearman and Kendall over systems of the means over documents, with bootstrap intervals;
    arguments [documents, systems].
    """
    means = [(np.nanmean(metric, axis=0), rating.mean(axis=0))]
    for rows in drawn[:500]:
        means.append((np.nanmean(metric[rows], axis=0), rating[rows].mean(axis=0)))
    result = {}
    for name, statistic in (("spearman", spearman), ("kendall", kendall)):
        values = np.array([statistic(*pair) for pair in means])
        low, high = np.nanquantile(values[1:], (0.025, 0.975))
        result[name] = {
            "value": float(values[0]),
            "low": float(low),
            "high": float(high),
            "n": metric.shape[1],
        }
    return result


def williams(r12: float, r13: float, r23: float, n: int) -> float:
    """Two-sided p that two correlations with variable 1, of n observations, are equal; 2 and 3
    correlate by r23.
    """
    determinant = 1 - r12**2 - r13**2 - r23**2 + 2 * r12 * r13 * r23
    mean = (r12 + r13) / 2
    bottom = 2 * determinant * (n - 1) / (n - 3) + mean**2 * (1 - r23) ** 3
    t = (r12 - r13) * np.sqrt((n - 1) * (1 + r23) / bottom)
    return float(2 * student_t.sf(abs(t), n - 3))
