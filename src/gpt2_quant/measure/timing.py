"""Timing of calls, and an interval for their median.

All variants get the same batch of real texts, already on the device. Each is warmed up, then timed
once per *round*, in an order shuffled anew: drift of clock and temperature hits all alike.

The median has a distribution-free 95% interval of order statistics: the number of values below the
true median is binomial(n, 1/2), so the k-th smallest and k-th largest enclose it with probability 1
- 2 P(B < k) (Conover, Practical Nonparametric Statistics, section 3.2).
"""

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.stats import quantile_test
from torch import Tensor

from ..data.tokens import Tokens, pad_batch, sorted_batches

Batches = list[dict[str, Tensor]]


def median_interval(values_ms) -> tuple[float, float, float]:
    """Median and its 95% interval, which is NaN for fewer than 6 values."""
    low, high = quantile_test(values_ms, p=0.5).confidence_interval(0.95)
    return float(np.median(values_ms)), float(low), float(high)


def shape_batch(
    tokens: Tokens, batch_size: int, seq_len: int, pad_id: int, device: str
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, int64 [batch_size, seq_len], of evenly spaced texts, cut or
    padded on the right.
    """
    ids = torch.full((batch_size, seq_len), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(np.linspace(0, len(tokens) - 1, batch_size).astype(int)):
        text = torch.from_numpy(tokens.row(row)[:seq_len])
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    return ids.to(device), mask.to(device)


def text_batches(tokens: Tokens, limit: int | None, batch_size: int, pad_id: int) -> Batches:
    """`limit` texts, evenly spaced, or all: batches of like length on the host, longest first."""
    wanted = min(limit or len(tokens), len(tokens))
    rows = np.unique(np.linspace(0, len(tokens) - 1, wanted).astype(int))
    groups = sorted_batches(tokens.lengths[rows], batch_size)
    return [pad_batch(tokens, rows[group], pad_id) for group in groups]


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def time_once(call: Callable[[], object], device: str) -> float:
    """Milliseconds of one `call()`, from an idle device to an idle device."""
    synchronize(device)  # without, only the launch would be timed
    start = time.perf_counter_ns()
    call()
    synchronize(device)
    return (time.perf_counter_ns() - start) / 1e6


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    device: str,
    warmup: int,
    min_rounds: int,
    max_rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Name -> milliseconds in each round.

    After `min_rounds`, rounds go on while the next is expected to end within `seconds`, up to
    `max_rounds`.
    """
    for call in calls.values():
        for _ in range(warmup):
            call()
    values: dict[str, list[float]] = {name: [] for name in calls}
    rng = np.random.default_rng(0)
    gc.collect()
    gc.disable()  # no garbage collection during the rounds
    start = time.perf_counter()
    try:
        for done in range(1, max_rounds + 1):
            for name in rng.permutation(list(calls)).tolist():
                values[name].append(time_once(calls[name], device))
            used = time.perf_counter() - start
            if done >= min_rounds and used * (done + 1) / done > seconds:
                break
    finally:
        gc.enable()
    return values
