"""Triton kernels of the fused training step: what lies between its matrix products.

A GPT-2 step at 16 x 64 tokens is some 140 small matrix products. Left to separate operations, the
rest (dropout, residual sums, norms, activations, softmax, casts) is ten times as many launches,
each reading and writing what the last one wrote. Here each gap between two products is one kernel,
and what it needs again in the backward pass it recomputes.

Residual stream, norms, softmax, loss and every sum are FP32; what enters and leaves a matrix
product is the compute type (bf16), exactly as under autocast.

*Dropout* takes no generator state: whether element i of site s is kept in update u is bit-mixed
from (seed, u, s, i) by `random_word`, so the backward pass, a replayed graph and a resumed run draw
the same masks with nothing stored.

Every sum is taken in a fixed order (no atomics): the same inputs give the same bits.
"""

import triton
import triton.language as tl


@triton.jit
def _mix(word):
    """A 32-bit finalizer of two multiplications (the parameters of C. Wellons' lowbias32): each
    input bit flips each output bit with a probability near one half.
    """
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def random_word(seed, update, site, index):
    """32 random bits for each element of `index`: a function of all four arguments."""
    key = _mix(_mix(seed.to(tl.uint32) + 0x9E3779B9) ^ (update * 64 + site).to(tl.uint32))
    return _mix(_mix(index.to(tl.uint32) ^ key) + key)


@triton.jit
def _dropped(value, update_ptr, seed_ptr, site, index, threshold, scale):
    """`value` where kept, times 1 / (1 - p); zero elsewhere. Kept means a random word at or above
    `threshold` = p 2**32.
    """
    word = random_word(tl.load(seed_ptr), tl.load(update_ptr), site, index)
    return tl.where(word >= threshold.to(tl.uint32), value * scale, 0.0)


@triton.jit
def _normalized(x, inside, width, eps):
    """Mean, 1 / standard deviation, and (x - mean) / standard deviation of one row."""
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    return mean, rstd, centred * rstd


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def embed_norm(
    ids, token_table, position_table, norm_weight, norm_bias, x_out, h_out, mean_out, rstd_out,
    update, seed, site, threshold, scale, length, width, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """x = dropout(token embedding + position embedding), h = norm(x); one program a token."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(ids + row).to(tl.int64)
    x = tl.load(token_table + token * width + column, inside, 0.0)
    x += tl.load(position_table + (row % length) * width + column, inside, 0.0)
    x = _dropped(x, update, seed, site, row * width + column, threshold, scale)
    mean, rstd, unit = _normalized(x, inside, width, eps)
    h = unit * tl.load(norm_weight + column, inside, 0.0) + tl.load(norm_bias + column, inside, 0.0)
    tl.store(x_out + row * width + column, x, inside)
    tl.store(h_out + row * width + column, h.to(h_out.dtype.element_ty), inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit(do_not_specialize=["site", "threshold"])
def add_norm(
    x_in, y, norm_weight, norm_bias, x_out, h_out, mean_out, rstd_out,
    update, seed, site, threshold, scale, width, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_out = x_in + dropout(y), h = norm(x_out); one program a row."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    branch = tl.load(y + at, inside, 0.0).to(tl.float32)
    x = tl.load(x_in + at, inside, 0.0) + _dropped(branch, update, seed, site, at, threshold, scale)
    x = tl.where(inside, x, 0.0)
    mean, rstd, unit = _normalized(x, inside, width, eps)
    h = unit * tl.load(norm_weight + column, inside, 0.0) + tl.load(norm_bias + column, inside, 0.0)
    tl.store(x_out + at, x, inside)
    tl.store(h_out + at, h.to(h_out.dtype.element_ty), inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit(do_not_specialize=["site", "threshold"])
def norm_backward(
    dh, x, mean_in, rstd_in, norm_weight, dx_in, dx_out, dy_out,
    update, seed, site, threshold, scale, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of x = x' + dropout(y), h = norm(x): dx_out = dx_in + d norm(dh), dy = dropout mask
    of dx_out.

    With u = (x - mean) rstd and g = dh w:  dx = rstd (g - mean(g) - u mean(g u)).
    """
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    rstd = tl.load(rstd_in + row)
    unit = tl.where(inside, (tl.load(x + at, inside, 0.0) - tl.load(mean_in + row)) * rstd, 0.0)
    g = tl.load(dh + at, inside, 0.0).to(tl.float32) * tl.load(norm_weight + column, inside, 0.0)
    dx = rstd * (g - tl.sum(g, 0) / width - unit * (tl.sum(g * unit, 0) / width))
    dx += tl.load(dx_in + at, inside, 0.0)
    tl.store(dx_out + at, dx, inside)
    dy = _dropped(dx, update, seed, site, at, threshold, scale)
    tl.store(dy_out + at, dy.to(dy_out.dtype.element_ty), inside)


@triton.jit
def gelu(u, a, n, BLOCK: tl.constexpr):
    """GPT-2's GELU, 0.5 u (1 + tanh(z / 2)) = u sigmoid(z), z = sqrt(8 / pi) (u + 0.044715 u³)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(u + at, at < n, 0.0).to(tl.float32)
    z = 1.5957691216057308 * (value + 0.044715 * value * value * value)
    tl.store(a + at, (value * tl.sigmoid(z)).to(a.dtype.element_ty), at < n)


@triton.jit
def gelu_backward(u, da, du, n, BLOCK: tl.constexpr):
    """du = da (s + u s (1 - s) dz/du) with s = sigmoid(z)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(u + at, at < n, 0.0).to(tl.float32)
    s = tl.sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))
    slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * value * value)
    upstream = tl.load(da + at, at < n, 0.0).to(tl.float32)
    tl.store(
        du + at, (upstream * s * (1.0 + value * (1.0 - s) * slope)).to(du.dtype.element_ty), at < n
    )


@triton.jit
def _attention_weights(
    qkv, base, row, column, dim, length, width, softmax_scale, inside_rows, inside_columns
):
    """softmax(q kᵀ / sqrt(d)) of one head, causal, before dropout; and q, k."""
    q = tl.load(qkv + base + row[:, None] * (3 * width) + dim[None, :], inside_rows[:, None], 0.0)
    k = tl.load(
        qkv + base + width + column[:, None] * (3 * width) + dim[None, :],
        inside_columns[:, None],
        0.0,
    )
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * softmax_scale
    score = tl.where((column[None, :] <= row[:, None]) & inside_columns[None, :], score, -1e30)
    weight = tl.exp(score - tl.max(score, 1)[:, None])
    return weight / tl.sum(weight, 1)[:, None], q, k


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def attention(
    qkv, o, update, seed, site, threshold, scale, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Causal self-attention of one head of one text; one program does all of its queries, since
    texts are short.

    qkv [B L, 3 width] as the product left it, o [B L, width]. No padding mask: padding is on the
    right, and no real token looks to its right.
    """
    program = tl.program_id(0)
    text, head = program // HEADS, program % HEADS
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    dim = tl.arange(0, HEAD)
    inside = row < length
    base = text * length * 3 * width + head * HEAD
    weight, _, _ = _attention_weights(
        qkv, base, row, column, dim, length, width, softmax_scale, inside, column < length
    )
    v = tl.load(
        qkv + base + 2 * width + column[:, None] * (3 * width) + dim[None, :], inside[:, None], 0.0
    )
    at = (program * length + row[:, None]) * length + column[None, :]
    weight = _dropped(weight, update, seed, site, at, threshold, scale)
    out = tl.dot(weight.to(v.dtype), v, input_precision="ieee")
    where = (text * length + row[:, None]) * width + head * HEAD + dim[None, :]
    tl.store(o + where, out.to(o.dtype.element_ty), inside[:, None])


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def attention_backward(
    qkv, do, dqkv, update, seed, site, threshold, scale, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of `attention`, its weights recomputed. With P the weights, M the scaled mask:

    dV = (P M)ᵀ dO,  dP = (dO Vᵀ) M,  dS = P (dP - rowsum(dP P)) / sqrt(d),  dQ = dS K,  dK = dSᵀ Q.
    """
    program = tl.program_id(0)
    text, head = program // HEADS, program % HEADS
    row = tl.arange(0, BLOCK)
    column = tl.arange(0, BLOCK)
    dim = tl.arange(0, HEAD)
    inside = row < length
    base = text * length * 3 * width + head * HEAD
    weight, q, k = _attention_weights(
        qkv, base, row, column, dim, length, width, softmax_scale, inside, column < length
    )
    v = tl.load(
        qkv + base + 2 * width + column[:, None] * (3 * width) + dim[None, :], inside[:, None], 0.0
    )
    where = (text * length + row[:, None]) * width + head * HEAD + dim[None, :]
    dout = tl.load(do + where, inside[:, None], 0.0)
    at = (program * length + row[:, None]) * length + column[None, :]
    mask = _dropped(
        tl.full((BLOCK, BLOCK), 1.0, tl.float32), update, seed, site, at, threshold, scale
    )
    dv = tl.dot(tl.trans((weight * mask).to(v.dtype)), dout, input_precision="ieee")
    dweight = tl.dot(dout, tl.trans(v), input_precision="ieee") * mask
    dscore = weight * (dweight - tl.sum(dweight * weight, 1)[:, None]) * softmax_scale
    dscore = dscore.to(q.dtype)
    dq = tl.dot(dscore, k, input_precision="ieee")
    dk = tl.dot(tl.trans(dscore), q, input_precision="ieee")
    kind = dqkv.dtype.element_ty
    out = dqkv + base + row[:, None] * (3 * width) + dim[None, :]
    tl.store(out, dq.to(kind), inside[:, None])
    tl.store(out + width, dk.to(kind), inside[:, None])
    tl.store(out + 2 * width, dv.to(kind), inside[:, None])


@triton.jit(do_not_specialize=["length"])
def gather_last(x, o, last, x_out, o_out, length, width, BLOCK: tl.constexpr):
    """Rows of x and o at each text's last token: from the last attention on, nothing else is ever
    read.
    """
    text = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    source = (text * length + tl.load(last + text)) * width + column
    tl.store(x_out + text * width + column, tl.load(x + source, inside, 0.0), inside)
    tl.store(o_out + text * width + column, tl.load(o + source, inside, 0.0), inside)


@triton.jit(do_not_specialize=["length"])
def scatter_last(dx, do, last, dx_out, do_out, length, width, BLOCK: tl.constexpr):
    """Backward of `gather_last`: zero but for the last tokens."""
    row = tl.program_id(0)
    text = row // length
    column = tl.arange(0, BLOCK)
    inside = column < width
    here = inside & (row % length == tl.load(last + text))
    tl.store(dx_out + row * width + column, tl.load(dx + text * width + column, here, 0.0), inside)
    tl.store(do_out + row * width + column, tl.load(do + text * width + column, here, 0.0), inside)


@triton.jit
def head(
    h,
    weight,
    labels,
    count,
    dlogits,
    row_loss,
    dh,
    width,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Logits, cross-entropy and their backward for one text: dlogits = (softmax - onehot) / count;
    absent rows have label -1.
    """
    text = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    label = tl.load(labels + text)
    classes = tl.arange(0, CLASSES)
    table = tl.load(weight + classes[:, None] * width + column[None, :], inside[None, :], 0.0)
    logit = tl.sum(
        table * tl.load(h + text * width + column, inside, 0.0).to(tl.float32)[None, :], 1
    )
    top = tl.max(logit, 0)
    log_sum = top + tl.log(tl.sum(tl.exp(logit - top), 0))
    real = (label >= 0).to(tl.float32) / tl.load(count).to(tl.float32)
    tl.store(row_loss + text, (log_sum - tl.sum(tl.where(classes == label, logit, 0.0), 0)) * real)
    gradient = (tl.exp(logit - log_sum) - (classes == label).to(tl.float32)) * real
    tl.store(dlogits + text * CLASSES + classes, gradient)
    tl.store(
        dh + text * width + column,
        tl.sum(table * gradient[:, None], 0).to(dh.dtype.element_ty),
        inside,
    )


@triton.jit
def head_gradient(
    h,
    dlogits,
    row_loss,
    losses,
    update,
    gradient,
    texts,
    width,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the head's weight, one program a class; the first one also adds up the loss."""
    label = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), tl.float32)
    loss = 0.0
    for text in range(texts):
        total += tl.load(dlogits + text * CLASSES + label) * tl.load(
            h + text * width + column, inside, 0.0
        ).to(tl.float32)
        loss += tl.load(row_loss + text)
    tl.store(gradient + label * width + column, total, inside)
    if label == 0:
        tl.store(losses + tl.load(update), loss)
