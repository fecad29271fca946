"""Triton kernels of the fused training step: gradients of vectors and embeddings, clipping, AdamW.

AdamW is memory-bound, so it is one pass, 28 bytes per parameter: weight and two moments read and
written, bf16 gradient read, bf16 copy written.

*The token table* is 31% of GPT-2's parameters; a batch touches 1% of its rows. A row without a
gradient still moves, by its decaying momentum: `catch_up` applies all missed updates when the row
is next read. After CATCH_UP of them the first moment has shrunk by 0.9**256 = 2e-12 and no longer
changes an FP32 weight; both moments then decay by a power.
"""

import numpy as np
import torch
import triton
import triton.language as tl

from ...quantization.kernels.launch import read
from .. import loop
from .kernels import own_row

CATCH_UP = tl.constexpr(256)
BETA1, BETA2, EPS = (tl.constexpr(value) for value in (*loop.BETAS, loop.EPS))


def schedule(rates: np.ndarray) -> torch.Tensor:
    """Per update t = 1, 2, …: rate / (1 - beta1**t), 1 / sqrt(1 - beta2**t); FP32 [n, 2]."""
    t = np.arange(1, len(rates) + 1)
    corrected = rates.astype(np.float64) / (1 - loop.BETAS[0] ** t)
    scale = 1 / np.sqrt(1 - loop.BETAS[1] ** t)
    return torch.tensor(np.stack([corrected, scale], axis=1), dtype=torch.float32)


@triton.jit
def _updated(p, m, v, g, schedule, update):
    """AdamW without weight decay (Kingma & Ba, arXiv 1412.6980, alg. 1)."""
    step_size, second_scale = tl.load(schedule + 2 * update), tl.load(schedule + 2 * update + 1)
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    return p - step_size * m / (tl.sqrt(v) * second_scale + EPS), m, v


@triton.jit
def _load(p, m, v, at, inside):
    return read(p + at, inside), read(m + at, inside), read(v + at, inside)


@triton.jit
def _store(p, m, v, at, inside, p1, m1, v1):
    tl.store(p + at, p1, inside)
    tl.store(m + at, m1, inside)
    tl.store(v + at, v1, inside)


@triton.jit
def _step(p, m, v, at, inside, g, schedule, update):
    p1, m1, v1 = _load(p, m, v, at, inside)
    p1, m1, v1 = _updated(p1, m1, v1, g, schedule, update)
    _store(p, m, v, at, inside, p1, m1, v1)
    return p1


@triton.jit
def adamw(p, m, v, g, copy, coefficient, schedule, update, n, BLOCK: tl.constexpr):
    """AdamW over flat arrays of n: p, m, v FP32; g times the clipping `coefficient`; `copy`, if
    any, gets p in its own dtype.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    gradient = read(g + at, inside) * tl.load(coefficient)
    weight = _step(p, m, v, at, inside, gradient, schedule, tl.load(update))
    if copy is not None:
        tl.store(copy + at, weight, inside)


@triton.jit
def adamw_rows(
    p, m, v, g, rows, n_rows, current, coefficient, schedule, update, width, BLOCK: tl.constexpr
):
    """AdamW on the rows that a batch touched; g [n_rows, width]."""
    program, column, inside, source = own_row(width, BLOCK)
    if program < tl.load(n_rows):
        row = tl.load(rows + program).to(tl.int64)
        now = tl.load(update)
        gradient = read(g + source, inside) * tl.load(coefficient)
        _step(p, m, v, row * width + column, inside, gradient, schedule, now)
        tl.store(current + row, now + 1)


@triton.jit
def catch_up(p, m, v, rows, n_rows, current, schedule, update, width, BLOCK: tl.constexpr):
    """Apply the updates that rows missed. `current[row]`: updates applied; -1: never had a
    gradient.
    """
    program, column, inside, _ = own_row(width, BLOCK)
    if program < tl.load(n_rows):
        row = tl.load(rows + program).to(tl.int64)
        had = tl.load(current + row)
        now = tl.load(update)
        if (had >= 0) & (had < now):
            at = row * width + column
            weight, m1, v1 = _load(p, m, v, at, inside)
            end = tl.minimum(now, had + CATCH_UP)
            for missed in range(had, end):
                weight, m1, v1 = _updated(weight, m1, v1, 0.0, schedule, missed)
            rest = (now - end).to(tl.float32)
            m1 *= tl.exp2(rest * tl.log2(tl.full((1,), BETA1, tl.float32)))
            v1 *= tl.exp2(rest * tl.log2(tl.full((1,), BETA2, tl.float32)))
            _store(p, m, v, at, inside, weight, m1, v1)
            tl.store(current + row, now)


@triton.jit
def column_sums(
    dy, x, mean_in, rstd_in, partial_bias, partial_weight, rows, columns, stride,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Bias gradient: sums over rows of dy [rows, columns], in CHUNKS partial sums. Given x, also a
    norm's weight gradient: sums of dy (x - mean) rstd.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1)
    per_chunk = tl.cdiv(rows, CHUNKS)
    bias = tl.zeros((COLUMNS,), tl.float32)
    weight = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, per_chunk, ROWS):
        within = start + tl.arange(0, ROWS)
        row = chunk * per_chunk + within
        real = (within < per_chunk) & (row < rows)
        inside = real[:, None] & (column < columns)[None, :]
        at = row[:, None] * columns + column[None, :]
        g = read(dy + at, inside)
        bias += tl.sum(g, 0)
        if x is not None:
            mean = read(mean_in + row, real)[:, None]
            rstd = read(rstd_in + row, real)[:, None]
            weight += tl.sum(g * ((read(x + at, inside) - mean) * rstd), 0)
    tl.store(partial_bias + chunk * stride + column, bias, column < columns)
    if x is not None:
        tl.store(partial_weight + chunk * stride + column, weight, column < columns)


@triton.jit
def token_gradient(
    dx, starts, order, n_rows, gradient, width, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Gradient of touched rows of the token table: dx summed over occurrences,
    `order[starts[i]:starts[i + 1]]`; zero from n_rows on.
    """
    program, column, inside, out = own_row(width, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    if program < tl.load(n_rows):
        end = tl.load(starts + program + 1)
        for start in range(tl.load(starts + program), end, ROWS):
            index = start + tl.arange(0, ROWS)
            source = tl.load(order + index, index < end, 0)
            at = source[:, None] * width + column[None, :]
            total += tl.sum(read(dx + at, (index < end)[:, None] & inside[None, :]), 0)
    tl.store(gradient + out, total, inside)


@triton.jit(do_not_specialize=["length"])
def position_gradient(dx, gradient, texts, length, width, BLOCK: tl.constexpr):
    """dx summed over texts, per position; zero beyond the batch's length."""
    position, column, inside, out = own_row(width, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    if position < length:
        for text in range(texts):
            total += read(dx + (text * length + position) * width + column, inside)
    tl.store(gradient + out, total, inside)


@triton.jit
def reduce_partials(partial, gradient, n, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(CHUNKS):
        total += read(partial + chunk * n + at, at < n)
    tl.store(gradient + at, total, at < n)


@triton.jit
def square_sums(g, out, n, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of squares of g [n], one per program."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, n, PROGRAMS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = read(g + at, at < n)
        total += value * value
    tl.store(out + program, tl.sum(total, 0))


@triton.jit
def clip_coefficient(squares, coefficient, n, limit, BLOCK: tl.constexpr):
    """min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += read(squares + at, at < n)
    tl.store(coefficient, tl.minimum(1.0, limit / (tl.sqrt(tl.sum(total, 0)) + 1e-6)))
