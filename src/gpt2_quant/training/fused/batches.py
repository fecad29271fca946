"""An epoch's batches as the fused step reads them: one int32 array a batch, all of them on the
device from the start.

A batch of B texts padded to L is, one after another: token ids [B L], each text's last token [B],
labels [B], the number of texts that are really there, and for the gradient of the token table the
number n of different tokens, those tokens [B L, the first n used], the places [B L] where they
occur, sorted by token, and where each token's places start [B L + 1]. Padding occurs in no place:
it has no gradient. Texts that an incomplete batch lacks have label -1.
"""

import numpy as np
import torch

from ...data.tokens import Tokens

FIELDS = ("ids", "last", "labels", "count", "n_touched", "touched", "order", "starts")


def field_sizes(texts: int, length: int) -> list[int]:
    """Entries of each of FIELDS for a batch [texts, length]."""
    rows = texts * length
    return [rows, texts, texts, 1, 1, rows, rows, rows + 1]


def padded_length(longest: int) -> int:
    """Rounded up to 8, which matrix products want and which keeps the number of shapes small."""
    return -(-longest // 8) * 8


def pack(tokens: Tokens, rows: np.ndarray, texts: int, pad_id: int) -> tuple[int, np.ndarray]:
    """The padded length L of the batch of these rows, and its packed array, int32
    [sum(field_sizes(texts, L))].
    """
    lengths = tokens.lengths[rows]
    length = padded_length(int(lengths.max()))
    ids = np.full((texts, length), pad_id, dtype=np.int32)
    real = np.zeros((texts, length), dtype=bool)
    real[: len(rows)] = np.arange(length) < lengths[:, None]
    ids[real] = np.concatenate([tokens.row(i) for i in rows])
    last, labels = np.zeros(texts, dtype=np.int32), np.full(texts, -1, dtype=np.int32)
    last[: len(rows)], labels[: len(rows)] = lengths - 1, tokens.labels[rows]
    ids, size = ids.reshape(-1), texts * length
    touched, order, starts = (
        np.zeros(size, np.int32),
        np.zeros(size, np.int32),
        np.zeros(size + 1, np.int32),
    )
    places = np.flatnonzero(real.reshape(-1))
    places = places[np.argsort(ids[places], kind="stable")]
    found, first = np.unique(ids[places], return_index=True)
    touched[: len(found)], order[: len(places)] = found, places
    starts[: len(found)], starts[len(found) :] = first, len(places)
    counts = np.array([len(rows), len(found)], dtype=np.int32)
    return length, np.concatenate([ids, last, labels, counts, touched, order, starts])


class EpochOnDevice:
    """All batches of an epoch in one device array (40 MB for 47,000 texts): `batch(i)` gives a
    batch's length and array.
    """

    def __init__(
        self,
        tokens: Tokens,
        batches: list[np.ndarray],
        texts: int,
        pad_id: int,
        device: torch.device,
    ):
        packed = [pack(tokens, rows, texts, pad_id) for rows in batches]
        self.lengths = [length for length, _ in packed]
        self.places = np.concatenate(
            [[0], np.cumsum([len(values) for _, values in packed])]
        ).tolist()
        self.values = torch.from_numpy(np.concatenate([values for _, values in packed])).to(device)

    def batch(self, i: int) -> tuple[int, torch.Tensor]:
        return self.lengths[i], self.values[self.places[i] : self.places[i + 1]]
