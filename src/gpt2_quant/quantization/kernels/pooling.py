"""The two ends of the last block: which token is read, and the head on it.

A handful of numbers for each text. As torch operations these are fourteen launches of a few
microseconds, 3% of a forward pass; here they are three.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import await_predecessor, hopper_options


@triton.jit
def _pooled_kernel(
    ids_ptr, positions_ptr, rows_ptr, length, pad, BLOCK: tl.constexpr, HOPPER: tl.constexpr
):
    await_predecessor(HOPPER)
    text = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + text * length + places, mask=places < length, other=pad)
    position = tl.max(tl.where(ids != pad, places, 0), axis=0).to(tl.int64)
    tl.store(positions_ptr + text, position)
    tl.store(rows_ptr + text, text * length + position)


@triton.jit
def _take_kernel(
    x_ptr, codes_ptr, scale_ptr, rows_ptr, out_ptr, out_codes_ptr, out_scale_ptr, n_columns,
    BLOCK: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    target = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + target)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    x = tl.load(x_ptr + row * n_columns + columns, mask=inside, other=0.0)
    codes = tl.load(codes_ptr + row * n_columns + columns, mask=inside, other=0)
    tl.store(out_ptr + target * n_columns + columns, x, mask=inside)
    tl.store(out_codes_ptr + target * n_columns + columns, codes, mask=inside)
    tl.store(out_scale_ptr + target, tl.load(scale_ptr + row))


@triton.jit
def _head_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    head_ptr,
    logits_ptr,
    n_columns,
    n_classes,
    epsilon,
    BLOCK: tl.constexpr,
    HOPPER: tl.constexpr,
):
    await_predecessor(HOPPER)
    text = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    x = tl.load(x_ptr + text * n_columns + columns, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, x - tl.sum(x, axis=0) / n_columns, 0.0)
    variance = tl.sum(centred * centred, axis=0) / n_columns
    normed = centred * tl.rsqrt(variance + epsilon) * weight + bias
    for label in range(n_classes):
        head = tl.load(head_ptr + label * n_columns + columns, mask=inside, other=0.0).to(
            tl.float32
        )
        tl.store(logits_ptr + text * n_classes + label, tl.sum(normed * head, axis=0))


def pooled_rows(ids: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Where the last token that is not padding stands in each text of int64 ids `[texts, length]`;
    0 where there is none.

    Returns its position in the text and its row in `[texts * length, width]`, both int64 `[texts]`.
    """
    texts, length = ids.shape
    positions, rows = torch.empty(2, texts, dtype=torch.int64, device=ids.device).unbind()
    block = triton.next_power_of_2(length)
    _pooled_kernel[(texts,)](
        ids, positions, rows, length, pad_token_id, BLOCK=block, **hopper_options(ids.device)
    )
    return positions, rows


def take_rows(
    x: Tensor, codes: Tensor, scale: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`x[rows], codes[rows], scale[rows]`: float `[m, n]`, int8 `[m, n]`, float32 `[m, 1]`; rows
    int64 `[texts]`.
    """
    n_columns = x.shape[1]
    out, out_codes, out_scale = (
        part.new_empty((len(rows), part.shape[1])) for part in (x, codes, scale)
    )
    _take_kernel[(len(rows),)](
        x, codes, scale, rows, out, out_codes, out_scale, n_columns,
        BLOCK=triton.next_power_of_2(n_columns), **hopper_options(x.device),
    )  # fmt: skip
    return out, out_codes, out_scale


def layer_norm_head(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, head: Tensor
) -> Tensor:
    """`layer_norm(x) head^T` in float32: x float `[texts, n]`, head float `[classes, n]` -> logits
    float32 `[texts, classes]`.
    """
    texts, n_columns = x.shape
    logits = torch.empty((texts, len(head)), dtype=torch.float32, device=x.device)
    _head_kernel[(texts,)](
        x, weight, bias, head, logits, n_columns, len(head), epsilon,
        BLOCK=triton.next_power_of_2(n_columns), **hopper_options(x.device),
    )  # fmt: skip
    return logits
