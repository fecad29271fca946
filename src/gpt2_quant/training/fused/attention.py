"""Triton kernels of causal self-attention with dropout, forward and backward.

With S = Q Kᵀ / sqrt(d), P = softmax(S), M the scaled dropout mask:

    O = (P M) V,  dV = (P M)ᵀ dO,  dP = (dO Vᵀ) M,
    dS = P (dP - rowsum(dP P)) / sqrt(d),  dQ = dS K,  dK = dSᵀ Q.

* Up to WHOLE tokens: one program per text and head, all of P in registers.
* Longer: in tiles with a running maximum (Dao, arXiv 2307.08691). `log_sum`, a row's
  log(sum(exp(S))), lets the backward pass recompute any tile of P; rowsum(dP P) = rowsum(dO O).

qkv, dqkv [B L, 3 width], o, do [B L, width], log_sum FP32 [B, heads, L]. No padding mask: no real
token attends to padding on the right.
"""

import triton
import triton.language as tl

from .kernels import dropped

WHOLE = 128
TILE = 64


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _rows(program, row, length, width, HEADS: tl.constexpr, HEAD: tl.constexpr):
    """Offsets of a text's rows, of one head, in qkv and in o; mask of real rows."""
    at = (program // HEADS * length + row)[:, None]
    column = program % HEADS * HEAD + tl.arange(0, HEAD)[None, :]
    return at * 3 * width + column, at * width + column, (row < length)[:, None]


@triton.jit
def _keys(qkv, at, inside, width):
    """K, V."""
    return tl.load(qkv + width + at, inside, 0.0), tl.load(qkv + 2 * width + at, inside, 0.0)


@triton.jit
def _scores(q, k, row, column, dropout, softmax_scale, length):
    """S and M of queries `row` and keys `column`; `dropout`: random, site and the head's number in
    the whole batch.
    """
    random, site, head = dropout
    row, column = row[:, None], column[None, :]
    score = _dot(q, tl.trans(k)) * softmax_scale
    score = tl.where((column <= row) & (column < length), score, -1e30)
    at = (head * length + row) * length + column
    return score, dropped(1.0, random, site, at)


@triton.jit
def _whole(
    qkv, random, site, first_head, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets in qkv and o, mask of real rows; P, M; Q, K, V."""
    program, row = tl.program_id(0), tl.arange(0, BLOCK)
    in_qkv, in_o, inside = _rows(program, row, length, width, HEADS, HEAD)
    q = tl.load(qkv + in_qkv, inside, 0.0)
    k, v = _keys(qkv, in_qkv, inside, width)
    dropout = random, site, first_head + program
    score, mask = _scores(q, k, row, row, dropout, softmax_scale, length)
    weight = tl.exp(score - tl.max(score, 1)[:, None])
    weight = weight / tl.sum(weight, 1)[:, None]
    return in_qkv, in_o, inside, weight, mask, q, k, v


@triton.jit(do_not_specialize=["length", "site", "first_head"])
def whole(
    qkv, o, random, site, first_head, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    _, in_o, inside, weight, mask, _, _, v = _whole(
        qkv, random, site, first_head, softmax_scale, length, width, HEADS, HEAD, BLOCK
    )
    out = _dot((weight * mask).to(v.dtype), v)
    tl.store(o + in_o, out, inside)


@triton.jit(do_not_specialize=["length", "site", "first_head"])
def whole_backward(
    qkv, do, dqkv, random, site, first_head, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    in_qkv, in_o, inside, weight, mask, q, k, v = _whole(
        qkv, random, site, first_head, softmax_scale, length, width, HEADS, HEAD, BLOCK
    )
    dout = tl.load(do + in_o, inside, 0.0)
    dv = _dot(tl.trans((weight * mask).to(v.dtype)), dout)
    dweight = _dot(dout, tl.trans(v)) * mask
    dscore = weight * (dweight - tl.sum(dweight * weight, 1)[:, None]) * softmax_scale
    dscore = dscore.to(q.dtype)
    dq = _dot(dscore, k)
    dk = _dot(tl.trans(dscore), q)
    tl.store(dqkv + in_qkv, dq, inside)
    tl.store(dqkv + width + in_qkv, dk, inside)
    tl.store(dqkv + 2 * width + in_qkv, dv, inside)


@triton.jit(do_not_specialize=["length", "site", "first_head"])
def tiled(
    qkv, o, log_sum, random, site, first_head, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per text and head, and per tile of queries."""
    program, start = tl.program_id(0), tl.program_id(1) * BLOCK
    row = start + tl.arange(0, BLOCK)
    in_qkv, in_o, inside = _rows(program, row, length, width, HEADS, HEAD)
    q = tl.load(qkv + in_qkv, inside, 0.0)
    dropout = random, site, first_head + program
    top = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    out = tl.zeros((BLOCK, HEAD), tl.float32)
    for first in range(0, start + BLOCK, BLOCK):
        column = first + tl.arange(0, BLOCK)
        at, _, real = _rows(program, column, length, width, HEADS, HEAD)
        k, v = _keys(qkv, at, real, width)
        score, mask = _scores(q, k, row, column, dropout, softmax_scale, length)
        peak = tl.maximum(top, tl.max(score, 1))
        weight, shrink = tl.exp(score - peak[:, None]), tl.exp(top - peak)
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None] + _dot((weight * mask).to(v.dtype), v)
        top = peak
    tl.store(o + in_o, out / total[:, None], inside)
    tl.store(log_sum + program * length + row, top + tl.log(total), row < length)


@triton.jit
def _queries(
    qkv, o, log_sum, do, program, row, length, width, HEADS: tl.constexpr, HEAD: tl.constexpr
):
    """Q, log_sum, dO, rowsum(dO O)."""
    in_qkv, in_o, inside = _rows(program, row, length, width, HEADS, HEAD)
    dout = tl.load(do + in_o, inside, 0.0)
    out = tl.load(o + in_o, inside, 0.0).to(tl.float32)
    total = tl.sum(dout.to(tl.float32) * out, 1)
    q = tl.load(qkv + in_qkv, inside, 0.0)
    return q, tl.load(log_sum + program * length + row, row < length, 0.0), dout, total


@triton.jit
def _tile_backward(queries, k, v, row, column, dropout, softmax_scale, length):
    """P M and dS of one tile."""
    q, sums, dout, total = queries
    score, mask = _scores(q, k, row, column, dropout, softmax_scale, length)
    weight = tl.exp(score - sums[:, None])
    dweight = _dot(dout, tl.trans(v)) * mask
    dscore = weight * (dweight - total[:, None]) * softmax_scale
    return (weight * mask).to(v.dtype), dscore.to(q.dtype)


@triton.jit(do_not_specialize=["length", "site", "first_head"])
def tiled_backward(
    qkv, o, log_sum, do, dqkv, random, site, first_head, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program per text and head, and per tile of tokens: their dQ over the keys before, then
    their dK and dV over the queries behind; the same work for each tile.
    """
    program, start = tl.program_id(0), tl.program_id(1) * BLOCK
    own = start + tl.arange(0, BLOCK)
    in_qkv, _, inside = _rows(program, own, length, width, HEADS, HEAD)
    dropout = random, site, first_head + program
    queries = _queries(qkv, o, log_sum, do, program, own, length, width, HEADS, HEAD)
    dq = tl.zeros((BLOCK, HEAD), tl.float32)
    for first in range(0, start + BLOCK, BLOCK):
        column = first + tl.arange(0, BLOCK)
        at, _, real = _rows(program, column, length, width, HEADS, HEAD)
        k, v = _keys(qkv, at, real, width)
        kept, dscore = _tile_backward(queries, k, v, own, column, dropout, softmax_scale, length)
        dq += _dot(dscore, k)
    tl.store(dqkv + in_qkv, dq, inside)

    k, v = _keys(qkv, in_qkv, inside, width)
    dk = tl.zeros((BLOCK, HEAD), tl.float32)
    dv = tl.zeros((BLOCK, HEAD), tl.float32)
    for first in range(start, length, BLOCK):
        row = first + tl.arange(0, BLOCK)
        queries = _queries(qkv, o, log_sum, do, program, row, length, width, HEADS, HEAD)
        kept, dscore = _tile_backward(queries, k, v, row, own, dropout, softmax_scale, length)
        q, sums, dout, total = queries
        dv += _dot(tl.trans(kept), dout)
        dk += _dot(tl.trans(dscore), q)
    tl.store(dqkv + width + in_qkv, dk, inside)
    tl.store(dqkv + 2 * width + in_qkv, dv, inside)
