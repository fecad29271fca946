"""Causal attention over short sequences (FlashAttention, arXiv 2205.14135).

Heads are read from the joint projection, saving three transposed copies. A program walks over a
block of queries' keys with a running maximum and sum: scores never leave the registers. Hopper's
copy engine (TMA; else Triton makes pointers) moves the tiles, with zeros beyond a text's end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import await_predecessor, hopper_options

# The score of a hidden key. Finite: a row without any visible key (left padding) then becomes an
# unused average instead of NaN, which would spread through 0 * NaN.
_HIDDEN = tl.constexpr(-1.0e30)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attention_kernel(
    query, key, value, bias_ptr, position_ptr, out, n_keys, scale, HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    # The last texts first: what the projection wrote last is still in the L2.
    program = tl.num_programs(1) - 1 - tl.program_id(1)
    text, channel = program // HEADS, program % HEADS * HEAD_DIM
    first = tl.program_id(0) * BLOCK_Q
    queries = query.load([text, first, channel]).reshape(BLOCK_Q, HEAD_DIM)
    if position_ptr is not None:
        positions = tl.load(position_ptr + text).to(tl.int32) + tl.zeros((BLOCK_Q,), dtype=tl.int32)
        end = n_keys
    else:
        positions = first + tl.arange(0, BLOCK_Q)
        end = min(n_keys, first + BLOCK_Q)

    highest = tl.full((BLOCK_Q,), _HIDDEN, dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    result = tl.zeros((BLOCK_Q, HEAD_DIM), dtype=tl.float32)
    for start in range(0, end, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        keys = key.load([text, start, channel]).reshape(BLOCK_K, HEAD_DIM)
        scores = tl.dot(queries, keys.T, input_precision="ieee") * (scale * _LOG2_E)
        if bias_ptr is not None:
            scores += tl.load(bias_ptr + text * n_keys + at, mask=at < n_keys, other=0.0)[None, :]
        # The comparison also hides what lies over the edge.
        scores = tl.where(at[None, :] <= positions[:, None], scores, _HIDDEN)
        raised = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(highest - raised)
        values = value.load([text, start, channel]).reshape(BLOCK_K, HEAD_DIM)
        shrunk = result * shrink[:, None]
        result = tl.dot(weights.to(values.dtype), values, shrunk, input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        highest = raised
    result /= total[:, None]
    out.store([text, first, channel], result.to(out.dtype).reshape(1, BLOCK_Q, HEAD_DIM))


def padding_bias(mask: Tensor) -> Tensor:
    """What hides padded keys, float32: 0 where the mask is 1, else -1e30."""
    return (mask == 0).float() * _HIDDEN.value


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, texts: int, heads: int, scale: float,
    bias: Tensor | None = None, positions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal softmax attention, in the query's shape.

    query, key, value  float `[texts * length, width]`, also column slices of a wider matrix, their
                       rows at multiples of 16 bytes; heads of a power of two, at least 16
    bias               float32 `[texts, length]`: `padding_bias` of a mask
    positions          int64 `[texts]`: `query` is then `[texts, width]`, one query of each text
    """
    width = query.shape[1]
    n_keys, n_queries = key.shape[0] // texts, query.shape[0] // texts
    out = torch.empty((query.shape[0], width), dtype=query.dtype, device=query.device)
    block_q = min(64, max(16, triton.next_power_of_2(n_queries)))
    # Half as many FP32 keys take the same registers.
    block_k = min(128 // query.itemsize, max(16, triton.next_power_of_2(n_keys)))
    grid = (triton.cdiv(n_queries, block_q), texts * heads)

    def tiles(x: Tensor, rows: int) -> TensorDescriptor:
        by_text = x.unflatten(0, (texts, -1))
        return TensorDescriptor.from_tensor(by_text, [1, rows, width // heads])

    _attention_kernel[grid](
        tiles(query, block_q), tiles(key, block_k), tiles(value, block_k), bias, positions,
        tiles(out, block_q), n_keys, scale, HEADS=heads, HEAD_DIM=width // heads, BLOCK_Q=block_q,
        BLOCK_K=block_k, num_warps=4, num_stages=2, **hopper_options(query.device),
    )  # fmt: skip
    return out
