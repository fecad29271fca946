"""Percentile bootstrap over texts (Efron 1979), 95%. All metrics see the same draws, so that
differences are paired.
"""

import numpy as np

RESAMPLES = 2000


def draws(n: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Row numbers int64 [resamples, n] of n texts, the same at every call."""
    return np.random.default_rng(0).integers(n, size=(resamples, n))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the defined resampled `values`."""
    low, high = np.nanquantile(values, (0.025, 0.975))
    return float(low), float(high)


def preferred(gap):
    """1 where the first of two scores is higher, 0 where lower, 0.5 for a tie (to 1e-9)."""
    return np.heaviside(np.round(gap, 9), 0.5)
