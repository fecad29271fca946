"""Causal attention over short sequences (FlashAttention, arXiv 2205.14135).

Heads are read by strides from the joint projection, saving three transposed copies. A program walks
over a block of queries' keys with a running maximum and sum: scores never leave the registers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import await_predecessor, hopper_options

# The score of a hidden key. Finite: a row without any visible key (left padding) then becomes an
# unused average instead of NaN, which would spread through 0 * NaN.
_HIDDEN = tl.constexpr(-1.0e30)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attention_kernel(
    query_ptr, key_ptr, value_ptr, bias_ptr, position_ptr, out_ptr, n_queries, n_keys,
    query_stride, key_stride, scale, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    text = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    queries = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    channels = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    query_rows = text * n_queries + queries
    is_query = (queries < n_queries)[:, None]
    query_at = query_rows[:, None] * query_stride + channels[None, :]
    query = tl.load(query_ptr + query_at, mask=is_query, other=0.0)
    if position_ptr is not None:
        positions = tl.load(position_ptr + text) + tl.zeros((BLOCK_Q,), dtype=tl.int64)
        end = n_keys
    else:
        positions = queries.to(tl.int64)
        end = min(n_keys, (tl.program_id(0) + 1) * BLOCK_Q)

    highest = tl.full((BLOCK_Q,), _HIDDEN, dtype=tl.float32)
    total = tl.zeros((BLOCK_Q,), dtype=tl.float32)
    result = tl.zeros((BLOCK_Q, HEAD_DIM), dtype=tl.float32)
    for start in range(0, end, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        is_key = keys < n_keys
        key_at = (text * n_keys + keys)[:, None] * key_stride + channels[None, :]
        key = tl.load(key_ptr + key_at, mask=is_key[:, None], other=0.0)
        scores = tl.dot(query, key.T, input_precision="ieee") * (scale * _LOG2_E)
        if bias_ptr is not None:
            scores += tl.load(bias_ptr + text * n_keys + keys, mask=is_key, other=0.0)[None, :]
        # The comparison also hides what lies over the edge.
        scores = tl.where(keys[None, :] <= positions[:, None], scores, _HIDDEN)
        raised = tl.maximum(highest, tl.max(scores, axis=1))
        weights = tl.exp2(scores - raised[:, None])
        shrink = tl.exp2(highest - raised)
        value = tl.load(value_ptr + key_at, mask=is_key[:, None], other=0.0)
        shrunk = result * shrink[:, None]
        result = tl.dot(weights.to(value.dtype), value, shrunk, input_precision="ieee")
        total = total * shrink + tl.sum(weights, axis=1)
        highest = raised
    result /= total[:, None]
    out_at = query_rows[:, None] * (HEADS * HEAD_DIM) + channels[None, :]
    tl.store(out_ptr + out_at, result.to(out_ptr.dtype.element_ty), mask=is_query)


def padding_bias(mask: Tensor) -> Tensor:
    """What hides padded keys, float32: 0 where the mask is 1, else -1e30."""
    return (mask == 0).float() * _HIDDEN.value


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, texts: int, heads: int, scale: float,
    bias: Tensor | None = None, positions: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal softmax attention, in the query's shape.

    query, key, value  float `[texts * length, width]`, also column slices of a wider matrix.
                       Heads split the width into a power of two, at least 16
    bias               float32 `[texts, length]`: `padding_bias` of a mask
    positions          int64 `[texts]`: `query` is then `[texts, width]`, one query of each text
    """
    width = query.shape[1]
    n_keys, n_queries = key.shape[0] // texts, query.shape[0] // texts
    out = torch.empty((query.shape[0], width), dtype=query.dtype, device=query.device)
    block_q = min(64, max(16, triton.next_power_of_2(n_queries)))
    grid = (triton.cdiv(n_queries, block_q), texts * heads)
    # Shorter steps need fewer registers: pays once programs queue.
    crowded = grid[0] * grid[1] > 1024
    block_k = min(32 if crowded else 64, max(16, triton.next_power_of_2(n_keys)))
    _attention_kernel[grid](
        query, key, value, bias, positions, out, n_queries, n_keys,
        query.stride(0), key.stride(0), scale, HEADS=heads, HEAD_DIM=width // heads,
        BLOCK_Q=block_q, BLOCK_K=block_k, num_warps=4, num_stages=3 if crowded else 2,
        **hopper_options(query.device),
    )  # fmt: skip
    return out
