"""Each text's pooled token, and the last norm and head on it: two launches for torch's ten."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import await_predecessor, hopper_options, read


@triton.jit
def _pooled_kernel(
    ids_ptr, positions_ptr, rows_ptr, length, pad, BLOCK: tl.constexpr, HOPPER: tl.constexpr
):
    await_predecessor(HOPPER)
    text = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + text * length + at, mask=at < length, other=pad)
    position = tl.max(tl.where(ids != pad, at, 0), axis=0).to(tl.int64)
    tl.store(positions_ptr + text, position)
    tl.store(rows_ptr + text, text * length + position)


@triton.jit
def _head_kernel(
    x_ptr, weight_ptr, bias_ptr, head_ptr, logits_ptr, n_columns, n_classes, epsilon,
    BLOCK: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    text = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    x = read(x_ptr + text * n_columns + columns, inside)
    weight = read(weight_ptr + columns, inside)
    bias = read(bias_ptr + columns, inside)
    centred = tl.where(inside, x - tl.sum(x, axis=0) / n_columns, 0.0)
    variance = tl.sum(centred * centred, axis=0) / n_columns
    normed = centred * tl.rsqrt(variance + epsilon) * weight + bias
    for label in range(n_classes):
        head = read(head_ptr + label * n_columns + columns, inside)
        total = tl.sum(normed * head, axis=0)
        tl.store(logits_ptr + text * n_classes + label, total)


def pooled_rows(ids: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """The last token of each text that is not padding, else the first: ids int64 `[texts, length]`
    -> its position in the text and its row in `[texts * length, width]`, int64 `[texts]`.
    """
    texts, length = ids.shape
    positions, rows = torch.empty(2, texts, dtype=torch.int64, device=ids.device).unbind()
    block = triton.next_power_of_2(length)
    _pooled_kernel[(texts,)](
        ids, positions, rows, length, pad_token_id, BLOCK=block, **hopper_options(ids.device)
    )
    return positions, rows


def layer_norm_head(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, head: Tensor
) -> Tensor:
    """`layer_norm(x) head^T`, float32: `[texts, n]`, head `[classes, n]` -> `[texts, classes]`."""
    texts, n_columns = x.shape
    logits = torch.empty((texts, len(head)), dtype=torch.float32, device=x.device)
    _head_kernel[(texts,)](
        x, weight, bias, head, logits, n_columns, len(head), epsilon,
        BLOCK=triton.next_power_of_2(n_columns), **hopper_options(x.device),
    )  # fmt: skip
    return logits
