"""Triton kernels of the fused training step: gradients of vectors and embeddings, clipping, AdamW.

AdamW is bound by memory: per parameter it reads and writes weight and two moments (24 bytes), reads
the gradient (2, in bf16, as the product wrote it) and writes the bf16 copy that the next products
read (2). GPT-2's 85 million parameters in matrices are 2.4 GB a step, 0.57 ms at an H200's 4.2
TB/s. Casts, zeroing and scaling of gradients as passes of their own would more than double that.

*The token table* is 31% of GPT-2's parameters, and a batch touches about 500 of its 50,257 rows. A
row without a gradient still moves under AdamW, by its decaying momentum. `catch_up` does that when
the row is next read, all missed updates at once in registers: the same updates with the same rates
in the same order, at 1% of the bytes. After CATCH_UP of them the first moment has shrunk by
0.9**256 = 2e-12 and no further update can change an FP32 weight; the rest is two powers.
"""

import triton
import triton.language as tl

CATCH_UP = 256


@triton.jit
def _adamw(
    p, m, v, g, step_size, second_scale, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr
):
    """One AdamW update without weight decay (Kingma & Ba, arXiv 1412.6980, algorithm 1).

    step_size = rate / (1 - beta1**t), second_scale = 1 / sqrt(1 - beta2**t).
    """
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g * g
    return p - step_size * m / (tl.sqrt(v) * second_scale + EPS), m, v


@triton.jit
def adamw(
    p, m, v, g, copy, coefficient, schedule, update, n,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, COPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW over flat arrays of n: p, m, v FP32; g times the clipping `coefficient`; `copy` gets p
    in its own type.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    row = schedule + 2 * tl.load(update)
    gradient = tl.load(g + at, inside, 0.0).to(tl.float32) * tl.load(coefficient)
    weight, m1, v1 = _adamw(
        tl.load(p + at, inside, 0.0), tl.load(m + at, inside, 0.0), tl.load(v + at, inside, 0.0), gradient,
        tl.load(row), tl.load(row + 1), BETA1, BETA2, EPS,
    )  # fmt: skip
    tl.store(p + at, weight, inside)
    tl.store(m + at, m1, inside)
    tl.store(v + at, v1, inside)
    if COPY:
        tl.store(copy + at, weight.to(copy.dtype.element_ty), inside)


@triton.jit
def adamw_rows(
    p, m, v, g, rows, n_rows, current, coefficient, schedule, update, width,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """AdamW on the rows of a table that a batch touched; g [n_rows, width] is compact. One program
    a row.
    """
    program = tl.program_id(0)
    if program < tl.load(n_rows):
        row = tl.load(rows + program).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < width
        at = row * width + column
        now = tl.load(update)
        gradient = tl.load(g + program * width + column, inside, 0.0) * tl.load(coefficient)
        weight, m1, v1 = _adamw(
            tl.load(p + at, inside, 0.0), tl.load(m + at, inside, 0.0), tl.load(v + at, inside, 0.0), gradient,
            tl.load(schedule + 2 * now), tl.load(schedule + 2 * now + 1), BETA1, BETA2, EPS,
        )  # fmt: skip
        tl.store(p + at, weight, inside)
        tl.store(m + at, m1, inside)
        tl.store(v + at, v1, inside)
        tl.store(current + row, now + 1)


@triton.jit
def catch_up(
    p, m, v, rows, n_rows, current, schedule, update, width,
    BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, LIMIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Give rows the updates that they missed. `current[row]` counts those they have had; -1 means
    no gradient yet, ever: both moments are zero and there is nothing to give.
    """
    program = tl.program_id(0)
    if program < tl.load(n_rows):
        row = tl.load(rows + program).to(tl.int64)
        had = tl.load(current + row)
        now = tl.load(update)
        if (had >= 0) & (had < now):
            column = tl.arange(0, BLOCK)
            inside = column < width
            at = row * width + column
            weight = tl.load(p + at, inside, 0.0)
            m1 = tl.load(m + at, inside, 0.0)
            v1 = tl.load(v + at, inside, 0.0)
            end = tl.minimum(now, had + LIMIT)
            for missed in range(had, end):
                weight, m1, v1 = _adamw(
                    weight,
                    m1,
                    v1,
                    0.0,
                    tl.load(schedule + 2 * missed),
                    tl.load(schedule + 2 * missed + 1),
                    BETA1,
                    BETA2,
                    EPS,
                )
            rest = (now - end).to(tl.float32)
            m1 *= tl.exp2(rest * tl.log2(tl.full((1,), BETA1, tl.float32)))
            v1 *= tl.exp2(rest * tl.log2(tl.full((1,), BETA2, tl.float32)))
            tl.store(p + at, weight, inside)
            tl.store(m + at, m1, inside)
            tl.store(v + at, v1, inside)
            tl.store(current + row, now)


@triton.jit
def column_sums(
    dy,
    partial,
    rows,
    columns,
    stride,
    CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums over rows of dy [rows, columns], in CHUNKS partial sums: the gradient of a bias. partial
    is [CHUNKS, stride].
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1)
    per_chunk = tl.cdiv(rows, CHUNKS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, per_chunk, ROWS):
        within = start + tl.arange(0, ROWS)
        row = chunk * per_chunk + within
        inside = ((within < per_chunk) & (row < rows))[:, None] & (column < columns)[None, :]
        total += tl.sum(
            tl.load(dy + row[:, None] * columns + column[None, :], inside, 0.0).to(tl.float32), 0
        )
    tl.store(partial + chunk * stride + column, total, column < columns)


@triton.jit
def norm_column_sums(
    dh, x, mean_in, rstd_in, partial_weight, partial_bias, rows, width, stride,
    CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a norm's weight, sum of dh (x - mean) rstd, and bias, sum of dh, in CHUNKS
    partial sums each.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    chunk = tl.program_id(1)
    per_chunk = tl.cdiv(rows, CHUNKS)
    weight = tl.zeros((COLUMNS,), tl.float32)
    bias = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, per_chunk, ROWS):
        within = start + tl.arange(0, ROWS)
        row = chunk * per_chunk + within
        real = (within < per_chunk) & (row < rows)
        inside = real[:, None] & (column < width)[None, :]
        at = row[:, None] * width + column[None, :]
        g = tl.load(dh + at, inside, 0.0).to(tl.float32)
        unit = (
            tl.load(x + at, inside, 0.0) - tl.load(mean_in + row, real, 0.0)[:, None]
        ) * tl.load(rstd_in + row, real, 0.0)[:, None]
        weight += tl.sum(g * unit, 0)
        bias += tl.sum(g, 0)
    tl.store(partial_weight + chunk * stride + column, weight, column < width)
    tl.store(partial_bias + chunk * stride + column, bias, column < width)


@triton.jit
def token_gradient(
    dx, starts, order, n_rows, gradient, width, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    """Gradient of each touched row of the token table: the sum of dx over its occurrences,
    `order[starts[i]:starts[i+1]]`.

    Rows from n_rows on are filled with zeros, so that the whole compact array may be summed.
    """
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), tl.float32)
    if program < tl.load(n_rows):
        end = tl.load(starts + program + 1)
        for start in range(tl.load(starts + program), end, ROWS):
            place = start + tl.arange(0, ROWS)
            source = tl.load(order + place, place < end, 0)
            total += tl.sum(
                tl.load(
                    dx + source[:, None] * width + column[None, :],
                    (place < end)[:, None] & inside[None, :],
                    0.0,
                ),
                0,
            )
    tl.store(gradient + program * width + column, total, inside)


@triton.jit(do_not_specialize=["length"])
def position_gradient(dx, gradient, texts, length, width, BLOCK: tl.constexpr):
    """Gradient of one row of the position table: the sum of dx over texts; zero beyond the batch's
    length.
    """
    position = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), tl.float32)
    if position < length:
        for text in range(texts):
            total += tl.load(dx + (text * length + position) * width + column, inside, 0.0)
    tl.store(gradient + position * width + column, total, inside)


@triton.jit
def reduce_partials(partial, gradient, n, CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """gradient[i] = sum over chunks of partial[chunk, i]."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for chunk in range(CHUNKS):
        total += tl.load(partial + chunk * n + at, at < n, 0.0)
    tl.store(gradient + at, total, at < n)


@triton.jit
def square_sums(g, out, n, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of squares of g [n], one a program, each over every PROGRAMS-th block."""
    program = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(program * BLOCK, n, PROGRAMS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        value = tl.load(g + at, at < n, 0.0).to(tl.float32)
        total += value * value
    tl.store(out + program, tl.sum(total, 0))


@triton.jit
def clip_coefficient(squares, coefficient, n, limit, BLOCK: tl.constexpr):
    """min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it."""
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(squares + at, at < n, 0.0)
    tl.store(coefficient, tl.minimum(1.0, limit / (tl.sqrt(tl.sum(total, 0)) + 1e-6)))
