"""Triton kernels of the fused training step: what lies between its matrix products.

A GPT-2 step at 16 x 64 tokens is some 140 small matrix products. As separate operations the rest
(dropout, residual sums, norms, activations, softmax, casts) is ten times as many launches, each
reading what the last one wrote. Here each gap between two products is one kernel, and what the
backward pass needs again it recomputes.

Residual stream, norms, softmax, loss and every sum are FP32; what enters and leaves a matrix
product is the compute dtype (bf16), exactly as under autocast. Every sum is taken in a fixed order
(no atomics): the same inputs give the same bits.

*Dropout* takes no generator state: whether element i of site s is kept in update u is bit-mixed
from (seed, u, s, i) by `random_word`, so the backward pass, a replayed graph and a resumed run draw
the same masks with nothing stored.
"""

import triton
import triton.language as tl


@triton.jit
def _mix(word):
    """A 32-bit finalizer of two multiplications (C. Wellons' lowbias32): each input bit flips each
    output bit with a probability near one half.
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
    """`value` / (1 - p) where a random word reaches threshold = p 2**32, else 0."""
    word = random_word(tl.load(seed_ptr), tl.load(update_ptr), site, index)
    return tl.where(word >= threshold.to(tl.uint32), value * scale, 0.0)


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def add_norm(
    x_in, y, ids, norm_weight, norm_bias, x_out, h_out, mean_out, rstd_out,
    update, seed, site, threshold, scale, length, width, eps,
    EMBED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_out = x_in + dropout(y), h = norm(x_out); one program per row. With EMBED, x_in and y are
    the token and position tables, and x_out = dropout(sum of the row's two embeddings).
    """
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    if EMBED:
        token = tl.load(ids + row).to(tl.int64)
        x = tl.load(x_in + token * width + column, inside, 0.0)
        x += tl.load(y + (row % length) * width + column, inside, 0.0)
        x = _dropped(x, update, seed, site, at, threshold, scale)
    else:
        branch = tl.load(y + at, inside, 0.0).to(tl.float32)
        branch = _dropped(branch, update, seed, site, at, threshold, scale)
        x = tl.where(inside, tl.load(x_in + at, inside, 0.0) + branch, 0.0)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    weight = tl.load(norm_weight + column, inside, 0.0)
    bias = tl.load(norm_bias + column, inside, 0.0)
    h = centred * rstd * weight + bias
    tl.store(x_out + at, x, inside)
    tl.store(h_out + at, h.to(h_out.dtype.element_ty), inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit(do_not_specialize=["site", "threshold"])
def norm_backward(
    dh, x, mean_in, rstd_in, norm_weight, dx, dy,
    update, seed, site, threshold, scale, width, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of x = x' + dropout(y), h = norm(x): dx += d norm(dh), dy = dropout mask of dx.

    With u = (x - mean) rstd and g = dh w:  d norm = rstd (g - mean(g) - u mean(g u)).
    """
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    rstd = tl.load(rstd_in + row)
    unit = tl.where(inside, (tl.load(x + at, inside, 0.0) - tl.load(mean_in + row)) * rstd, 0.0)
    g = tl.load(dh + at, inside, 0.0).to(tl.float32) * tl.load(norm_weight + column, inside, 0.0)
    total = rstd * (g - tl.sum(g, 0) / width - unit * (tl.sum(g * unit, 0) / width))
    total += tl.load(dx + at, inside, 0.0)
    tl.store(dx + at, total, inside)
    branch = _dropped(total, update, seed, site, at, threshold, scale)
    tl.store(dy + at, branch.to(dy.dtype.element_ty), inside)


@triton.jit
def _sigmoid(u):
    """sigmoid(z) with z = sqrt(8 / pi) (u + 0.044715 u³): GPT-2's GELU is u sigmoid(z)."""
    return tl.sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))


@triton.jit
def gelu(u, a, n, BLOCK: tl.constexpr):
    """a = u sigmoid(z), which is 0.5 u (1 + tanh(z / 2))."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(u + at, at < n, 0.0).to(tl.float32)
    tl.store(a + at, (value * _sigmoid(value)).to(a.dtype.element_ty), at < n)


@triton.jit
def gelu_backward(u, da, du, n, BLOCK: tl.constexpr):
    """du = da (s + u s (1 - s) dz/du) with s = sigmoid(z)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(u + at, at < n, 0.0).to(tl.float32)
    s = _sigmoid(value)
    slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * value * value)
    upstream = tl.load(da + at, at < n, 0.0).to(tl.float32)
    result = upstream * s * (1.0 + value * (1.0 - s) * slope)
    tl.store(du + at, result.to(du.dtype.element_ty), at < n)


@triton.jit
def _attention(
    qkv, update, seed, site, threshold, scale, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one text: where its rows begin in qkv and in o; the causal weights
    softmax(q kᵀ / sqrt(d)), their dropout mask times its scale; q, k, v.
    """
    program = tl.program_id(0)
    text, head = program // HEADS, program % HEADS
    row = tl.arange(0, BLOCK)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    dim = tl.arange(0, HEAD)[None, :]
    inside = row < length
    in_qkv = text * length * 3 * width + head * HEAD + row * (3 * width) + dim
    in_o = (text * length + row) * width + head * HEAD + dim
    q = tl.load(qkv + in_qkv, inside, 0.0)
    k = tl.load(qkv + width + in_qkv, inside, 0.0)
    v = tl.load(qkv + 2 * width + in_qkv, inside, 0.0)
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * softmax_scale
    score = tl.where((column <= row) & (column < length), score, -1e30)
    weight = tl.exp(score - tl.max(score, 1)[:, None])
    weight = weight / tl.sum(weight, 1)[:, None]
    one = tl.full((BLOCK, BLOCK), 1.0, tl.float32)
    at = (program * length + row) * length + column
    mask = _dropped(one, update, seed, site, at, threshold, scale)
    return in_qkv, in_o, inside, weight, mask, q, k, v


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def attention(
    qkv, o, update, seed, site, threshold, scale, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Causal self-attention, one program per head and text, since texts are short.

    qkv [B L, 3 width] as the product left it, o [B L, width]. No padding mask: padding is on the
    right, and no real token looks to its right.
    """
    _, in_o, inside, weight, mask, _, _, v = _attention(
        qkv, update, seed, site, threshold, scale, softmax_scale, length, width, HEADS, HEAD, BLOCK
    )
    out = tl.dot((weight * mask).to(v.dtype), v, input_precision="ieee")
    tl.store(o + in_o, out.to(o.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["length", "site", "threshold"])
def attention_backward(
    qkv, do, dqkv, update, seed, site, threshold, scale, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of `attention`, its weights recomputed. With P the weights, M the scaled mask:

    dV = (P M)ᵀ dO,  dP = (dO Vᵀ) M,  dS = P (dP - rowsum(dP P)) / sqrt(d),  dQ = dS K,  dK = dSᵀ Q.
    """
    in_qkv, in_o, inside, weight, mask, q, k, v = _attention(
        qkv, update, seed, site, threshold, scale, softmax_scale, length, width, HEADS, HEAD, BLOCK
    )
    dout = tl.load(do + in_o, inside, 0.0)
    dv = tl.dot(tl.trans((weight * mask).to(v.dtype)), dout, input_precision="ieee")
    dweight = tl.dot(dout, tl.trans(v), input_precision="ieee") * mask
    dscore = weight * (dweight - tl.sum(dweight * weight, 1)[:, None]) * softmax_scale
    dscore = dscore.to(q.dtype)
    dq = tl.dot(dscore, k, input_precision="ieee")
    dk = tl.dot(tl.trans(dscore), q, input_precision="ieee")
    tl.store(dqkv + in_qkv, dq.to(dqkv.dtype.element_ty), inside)
    tl.store(dqkv + width + in_qkv, dk.to(dqkv.dtype.element_ty), inside)
    tl.store(dqkv + 2 * width + in_qkv, dv.to(dqkv.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["length"])
def gather_last(x, o, last, x_out, o_out, length, width, BLOCK: tl.constexpr):
    """Rows of x and o at each text's last token: after the last attention nothing else is read."""
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
    h, weight, labels, count, dlogits, text_loss, dh, width,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Logits, cross-entropy and their backward for one text: dlogits = (softmax - onehot) / count;
    absent texts have label -1.
    """
    text = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    classes = tl.arange(0, CLASSES)
    label = tl.load(labels + text)
    table = tl.load(weight + classes[:, None] * width + column[None, :], inside[None, :], 0.0)
    row = tl.load(h + text * width + column, inside, 0.0).to(tl.float32)
    logit = tl.sum(table * row[None, :], 1)
    top = tl.max(logit, 0)
    log_sum = top + tl.log(tl.sum(tl.exp(logit - top), 0))
    real = (label >= 0).to(tl.float32) / tl.load(count).to(tl.float32)
    onehot = classes == label
    tl.store(text_loss + text, (log_sum - tl.sum(tl.where(onehot, logit, 0.0), 0)) * real)
    gradient = (tl.exp(logit - log_sum) - onehot.to(tl.float32)) * real
    tl.store(dlogits + text * CLASSES + classes, gradient)
    down = tl.sum(table * gradient[:, None], 0)
    tl.store(dh + text * width + column, down.to(dh.dtype.element_ty), inside)


@triton.jit
def head_gradient(
    h, dlogits, text_loss, losses, update, gradient, texts, width,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the head's weight, one program per class; the first also adds up the loss."""
    label = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros((BLOCK,), tl.float32)
    loss = 0.0
    for text in range(texts):
        row = tl.load(h + text * width + column, inside, 0.0).to(tl.float32)
        total += tl.load(dlogits + text * CLASSES + label) * row
        loss += tl.load(text_loss + text)
    tl.store(gradient + label * width + column, total, inside)
    if label == 0:
        tl.store(losses + tl.load(update), loss)
