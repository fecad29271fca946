"""Timing of calls, and an interval that holds beyond the moment they were timed in.

All variants get the same batch of real texts on the device and are timed in turns, in an order
shuffled anew each *round*: drift of clock and temperature hits all alike. Neighbouring values share
the machine's mood, so rounds are gathered in *blocks*, which lie apart, and the interval is over
the blocks' medians: over all values it would be too narrow.

The median has a distribution-free 95% interval of order statistics: the number of values below the
true median is binomial(n, 1/2), so the k-th smallest and k-th largest enclose it with probability 1
- 2 P(B < k) (Conover, Practical Nonparametric Statistics, section 3.2): of six blocks their range.
"""

import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import quantile_test
from torch import Tensor
from torch.nn.functional import pad

from ..data.tokens import Tokens, pad_batch, sorted_batches

Batches = list[dict[str, Tensor]]
Name = TypeVar("Name", bound=Hashable)
LONGEST_SLEEP_MS = 20.0
CYCLES_PER_MS = 2_000_000  # at least: no GPU's clock is faster by much


def median_interval(values_ms) -> tuple[float, float, float]:
    """Median and its 95% interval, which is NaN for fewer than 6 values."""
    low, high = quantile_test(values_ms, p=0.5).confidence_interval(0.95)
    return float(np.median(values_ms)), float(low), float(high)


def spaced(n: int, wanted: int) -> np.ndarray:
    """`wanted` row numbers, evenly spaced over `n` rows from first to last; int64 [wanted]."""
    return np.linspace(0, n - 1, wanted).astype(int)


def shape_batch(
    tokens: Tokens, batch_size: int, seq_len: int, pad_id: int, device: str
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask, int64 [batch_size, seq_len], of evenly spaced texts, cut or
    padded on the right.
    """
    batch = pad_batch(tokens, spaced(len(tokens), batch_size), pad_id)
    missing = 0, seq_len - batch["input_ids"].shape[1]  # below 0 where it cuts
    ids = pad(batch["input_ids"], missing, value=pad_id)
    return ids.to(device), pad(batch["attention_mask"], missing).to(device)


def text_batches(tokens: Tokens, limit: int, batch_size: int, pad_id: int) -> Batches:
    """At most `limit` texts, evenly spaced: batches of like length on the host, longest first."""
    rows = spaced(len(tokens), min(limit, len(tokens)))
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


def time_on_device(call: Callable[[], object], longest_ms: float) -> tuple[float, bool]:
    """Milliseconds of CUDA's own work in `call()`, by events; whether it waited for the host.

    The device sleeps first, as long as the launches may take (`longest_ms`), and finds all of them
    queued. It waits all the same for a call that asks it something midway.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(int(CYCLES_PER_MS * min(longest_ms, LONGEST_SLEEP_MS)))
    start.record()
    call()
    waited = start.query()  # had begun before all was launched
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end), waited


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def time_interleaved(
    calls: Mapping[Name, Callable[[], object]],
    device: str,
    rng: np.random.Generator,
    max_rounds: int,
    seconds: float,
) -> dict[Name, list[float]]:
    """Name -> milliseconds in each round: one, and further ones, up to `max_rounds`, while the next
    is expected to end within `seconds`.
    """
    values: dict[Name, list[float]] = {name: [] for name in calls}
    names, start = list(calls), time.perf_counter()
    for done in range(1, max_rounds + 1):
        for i in rng.permutation(len(names)):
            values[names[i]].append(time_once(calls[names[i]], device))
        if (time.perf_counter() - start) * (done + 1) / done > seconds:
            break
    return values
