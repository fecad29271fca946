"""An epoch's batches for the fused step: one int32 device array per batch.

Of P processes each has the next `texts` texts of a batch. All index the tokens of the whole batch,
so that one sum over processes makes the token table's gradient.

Causal attention never reaches padding on the right: it needs no mask and has no gradient, so the
index by token omits it.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.tokens import Tokens


class Batch(NamedTuple):
    """B texts of one process padded to L, int32: views of one packed array, in this order."""

    ids: Any  # [B L] token ids
    last: Any  # [B] index in ids of each text's last token
    labels: Any  # [B] -1 for missing texts of an incomplete batch
    count: Any  # [1] texts present, in all processes
    # Index by token, for the token table's gradient:
    n_touched: Any  # [1] n, distinct tokens
    touched: Any  # [P B L] those tokens, first n entries; in all processes
    order: Any  # [B L] their positions, sorted by token
    starts: Any  # [P B L + 1] start of each token's positions in `order`


def field_sizes(texts: int, length: int, processes: int = 1) -> Batch:
    n = texts * length
    return Batch(n, texts, texts, 1, 1, processes * n, n, processes * n + 1)


def unpack(packed: torch.Tensor, *shape: int) -> Batch:
    sizes = field_sizes(*shape)
    return Batch(*packed[: sum(sizes)].split(sizes))


def padded_length(longest: int) -> int:
    """A multiple of 8: efficient matrix products, few shapes."""
    return -(-longest // 8) * 8


def pack(
    tokens: Tokens, batch: np.ndarray, texts: int, pad_id: int, process: int = 0, processes: int = 1
) -> tuple[int, np.ndarray]:
    """Padded length L and packed array of this process's part of the `batch`'s rows."""
    length = padded_length(int(tokens.lengths[batch].max()))
    every = [tokens.row(i) for i in batch]
    found = np.sort(np.concatenate(every))
    touched = found[np.diff(found, prepend=-1) > 0]
    own = slice(process * texts, (process + 1) * texts)
    rows = batch[own]
    lengths, labels = tokens.lengths[rows], tokens.labels[rows]
    real = np.zeros((texts, length), dtype=bool)
    real[: len(rows)] = np.arange(length) < lengths[:, None]
    positions = np.flatnonzero(real)
    ids = np.full(real.size, pad_id, dtype=np.int32)
    ids[positions] = np.concatenate([found[:0], *every[own]])
    positions = positions[np.argsort(ids[positions], kind="stable")]
    first = np.searchsorted(ids[positions], touched)
    last = length * np.arange(texts)
    last[: len(rows)] += lengths - 1
    fields = Batch(ids, last, labels, [len(batch)], [len(touched)], touched, positions, first)
    rest = Batch(0, 0, -1, 0, 0, 0, 0, len(positions))
    sizes = field_sizes(texts, length, processes)
    packed = np.repeat(np.array(rest, dtype=np.int32), sizes)
    for start, values in zip(np.cumsum([0, *sizes[:-1]]), fields, strict=True):
        packed[start : start + len(values)] = values
    return length, packed


def to_device(
    packed: list[tuple[int, np.ndarray]], device: torch.device
) -> list[tuple[int, torch.Tensor]]:
    """Views of one device array."""
    lengths, arrays = zip(*packed, strict=True)
    values = torch.from_numpy(np.concatenate(arrays)).to(device)
    return list(zip(lengths, values.split([len(array) for array in arrays]), strict=True))
