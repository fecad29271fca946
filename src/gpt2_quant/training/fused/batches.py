"""An epoch's batches as the fused step reads them: one int32 array per batch, all on the device.

Padding is on the right and attention looks left, so it needs no mask; it has no gradient either,
so it occurs in no position of the index by token.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from ...data.tokens import Tokens


class Batch(NamedTuple):
    """B texts padded to L, int32: views of one packed array, in this order."""

    ids: Any  # [B L] token ids
    last: Any  # [B] where each text's last token is in ids
    labels: Any  # [B] -1 for texts that an incomplete batch lacks
    count: Any  # [1] texts that are really there
    # The index by token, for the gradient of the token table:
    n_touched: Any  # [1] the number n of different tokens
    touched: Any  # [B L] those tokens, the first n used
    order: Any  # [B L] the positions where they occur, sorted by token
    starts: Any  # [B L + 1] where in `order` each token's positions start


def field_sizes(texts: int, length: int) -> Batch:
    """Entries of each field for a batch [texts, length]."""
    n = texts * length
    return Batch(n, texts, texts, 1, 1, n, n, n + 1)


def unpack(packed: torch.Tensor, texts: int, length: int) -> Batch:
    """The fields of a batch that begins `packed`."""
    sizes = field_sizes(texts, length)
    return Batch(*packed[: sum(sizes)].split(sizes))


def padded_length(longest: int) -> int:
    """Rounded up to 8, which matrix products want and which keeps the number of shapes small."""
    return -(-longest // 8) * 8


def pack(tokens: Tokens, rows: np.ndarray, texts: int, pad_id: int) -> tuple[int, np.ndarray]:
    """The padded length L of the batch of these rows, and its packed array."""
    lengths, labels = tokens.lengths[rows], tokens.labels[rows]
    length = padded_length(int(lengths.max()))
    real = np.zeros((texts, length), dtype=bool)
    real[: len(rows)] = np.arange(length) < lengths[:, None]
    positions = np.flatnonzero(real)
    ids = np.full(real.size, pad_id)
    ids[positions] = np.concatenate([tokens.row(i) for i in rows])
    positions = positions[np.argsort(ids[positions], kind="stable")]
    touched, first = np.unique(ids[positions], return_index=True)
    last = length * np.arange(texts)
    last[: len(rows)] += lengths - 1
    fields = Batch(ids, last, labels, [len(rows)], [len(touched)], touched, positions, first)
    # What fills each field up:
    rest = Batch(0, 0, -1, 0, 0, 0, 0, len(positions))
    sizes = field_sizes(texts, length)
    packed = np.repeat(np.array(rest, dtype=np.int32), sizes)
    for start, values in zip(np.cumsum([0, *sizes[:-1]]), fields, strict=True):
        packed[start : start + len(values)] = values
    return length, packed


def to_device(
    packed: list[tuple[int, np.ndarray]], device: torch.device
) -> list[tuple[int, torch.Tensor]]:
    """The batches as views of one device array: 40 MB for 47,000 texts."""
    lengths, arrays = zip(*packed, strict=True)
    values = torch.from_numpy(np.concatenate(arrays)).to(device)
    return list(zip(lengths, values.split([len(array) for array in arrays]), strict=True))
