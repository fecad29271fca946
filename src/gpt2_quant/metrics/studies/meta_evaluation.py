"""Correlation of metrics with human ratings.

*Summary level*: per document the rank correlation over its systems between metric and rating, then
the mean over documents; a document with constant ratings has none. *System level*: one
correlation over systems of the means over documents. Intervals are bootstrapped over documents.

    partial correlation, z held constant = (r_xy - r_xz r_yz) / sqrt((1 - r_xz²)(1 - r_yz²))
"""

import warnings

import numpy as np
from scipy import stats

from .resampling import RESAMPLES, interval

SYSTEM_RESAMPLES = 500
NAN = float("nan")


def _defined(*columns: np.ndarray) -> list[np.ndarray]:
    together = np.isfinite(columns).all(0)
    return [np.where(together, column, np.nan) for column in columns]


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the last axis, of the pairs where both are defined; NaN when
    fewer than three, or one side is constant.
    """
    x, y = _defined(x, y)
    n = np.isfinite(x).sum(-1)
    x, y = (v - np.nansum(v, -1, keepdims=True) / np.maximum(n, 1)[..., None] for v in (x, y))
    scale = np.sqrt(np.nansum(x * x, -1) * np.nansum(y * y, -1))
    usable = (scale > 1e-12) & (n > 2)
    return np.where(usable, np.nansum(x * y, -1) / np.where(usable, scale, 1), np.nan)


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation; axis, pairs and NaN as `pearson`."""
    return pearson(*(stats.rankdata(v, axis=-1, nan_policy="omit") for v in _defined(x, y)))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b; axis, pairs and NaN as `pearson`."""
    x, y = _defined(x, y)
    with warnings.catch_warnings(action="ignore"):  # rows of fewer than two pairs
        # The p-value is not used.
        tau = stats.kendalltau(x, y, axis=-1, nan_policy="omit", method="asymptotic").statistic
    return np.where(np.isfinite(x).sum(-1) > 2, tau, np.nan)


def partial_spearman(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Spearman of x and y with z held constant; where z is constant already, plain Spearman."""
    x, y, z = _defined(x, y, z)
    xy, xz, yz = spearman(x, y), spearman(x, z), spearman(y, z)
    spread = (1 - xz**2) * (1 - yz**2)
    partial = np.where(spread > 1e-12, (xy - xz * yz) / np.sqrt(np.maximum(spread, 1e-12)), np.nan)
    return np.where(np.isfinite(xz) & np.isfinite(yz), partial, xy)


def summary_level(
    metric: np.ndarray, ratings: np.ndarray, length: np.ndarray
) -> dict[str, np.ndarray]:
    """Statistic -> correlation of each document, arguments [documents, systems]; 0 where the metric
    alone is constant and so ranks nothing, NaN where the ratings are.
    """
    rated, _ = _defined(ratings, metric)
    usable = np.isfinite(pearson(rated, rated))
    columns = {
        "spearman": spearman(metric, ratings),
        "kendall": kendall(metric, ratings),
        "spearman without length": partial_spearman(metric, ratings, length),
    }
    return {name: np.where(usable, np.nan_to_num(v), NAN) for name, v in columns.items()}


def interval_of_mean(per_document: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Mean over the defined documents: {value, low, high, n}."""
    n = int(np.isfinite(per_document).sum())
    if not n:
        return {"value": NAN, "low": NAN, "high": NAN, "n": 0}
    low, high = interval(_resampled_means(per_document, drawn))
    return {"value": float(np.nanmean(per_document)), "low": low, "high": high, "n": n}


def difference(first: np.ndarray, second: np.ndarray, drawn: np.ndarray) -> dict[str, float]:
    """Mean of first - second over the documents that both define: {value, low, high, n, p}; p is
    two-sided, at least 1/RESAMPLES.
    """
    gap = first - second
    means = _resampled_means(gap, drawn)
    p = 2 * min((means <= 0).mean(), (means >= 0).mean())
    return {**interval_of_mean(gap, drawn), "p": float(np.clip(p, 1 / RESAMPLES, 1))}


def _resampled_means(per_document: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    n = np.isfinite(per_document)[drawn].sum(1)
    return np.nan_to_num(per_document)[drawn].sum(1) / np.maximum(n, 1)


def system_level(
    metric: np.ndarray, rating: np.ndarray, drawn: np.ndarray
) -> dict[str, dict[str, float]]:
    """Spearman and Kendall over systems of the means over [documents, systems]."""
    # Row 0: every document once; others: resamples.
    rows = np.vstack([np.arange(len(metric)), drawn[:SYSTEM_RESAMPLES]])
    means = np.nanmean(metric[rows], axis=1), rating[rows].mean(axis=1)
    result = {}
    for name, statistic in (("spearman", spearman), ("kendall", kendall)):
        values = statistic(*means)
        low, high = interval(values[1:])
        result[name] = {"value": values[0], "low": low, "high": high, "n": metric.shape[1]}
    return result


def williams(r12: float, r13: float, r23: float, n: int) -> float:
    """Two-sided p that two correlations with variable 1, of n observations, are equal (Steiger
    1980); 2 and 3 correlate by r23.
    """
    determinant = 1 - r12**2 - r13**2 - r23**2 + 2 * r12 * r13 * r23
    mean = (r12 + r13) / 2
    bottom = 2 * determinant * (n - 1) / (n - 3) + mean**2 * (1 - r23) ** 3
    t = (r12 - r13) * np.sqrt((n - 1) * (1 + r23) / bottom)
    return float(2 * stats.t.sf(abs(t), n - 3))
