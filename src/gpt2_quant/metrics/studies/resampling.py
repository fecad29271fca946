"""Percentile bootstrap over texts (Efron 1979), 95%. All metrics see the same draws, so that
differences are paired.
"""

import numpy as np
import pandas as pd

RESAMPLES = 2000


def draws(n: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Row numbers int64 [resamples, n] of n texts, the same at every call."""
    return np.random.default_rng(0).integers(n, size=(resamples, n))


def document_means(values: pd.DataFrame, documents: pd.Series) -> np.ndarray:
    """Means of each column over resampled documents, several rows of `values` each: float64
    [RESAMPLES, columns]. Undefined values are left out.
    """
    groups = values.groupby(documents)
    sums, counts = groups.sum().to_numpy(), groups.count().to_numpy()
    drawn = draws(len(sums))
    times = np.array([np.bincount(row, minlength=len(sums)) for row in drawn], dtype=float)
    with np.errstate(invalid="ignore"):  # 0 / 0: no document of this column was drawn
        return (times @ sums) / (times @ counts)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the defined resampled `values`."""
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def preferred(gap):
    """1 where the first of two scores is higher, 0 where lower, 0.5 for a tie (to 1e-9)."""
    return np.heaviside(np.round(gap, 9), 0.5)
