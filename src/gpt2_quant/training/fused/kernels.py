"""Triton kernels of the fused training step between its matrix products.

Residual stream, norms, softmax, loss and sums are FP32; operands and results of products are in the
compute dtype (bf16), as under autocast. The backward pass recomputes what it needs. Every sum has a
fixed order (no atomics): results are deterministic.

*Dropout*: whether element i of site s is kept in update u is a hash of (seed, u, s, i): backward
pass, replay and resumed run draw the same masks with nothing stored.
"""

import triton
import triton.language as tl


@triton.jit
def _mix(word):
    """C. Wellons' lowbias32: each input bit flips each output bit with probability near 1/2."""
    word = word ^ (word >> 16)
    word = word * 0x7FEB352D
    word = word ^ (word >> 15)
    word = word * 0x846CA68B
    return word ^ (word >> 16)


@triton.jit
def random_word(seed, update, site, index):
    key = _mix(_mix(seed.to(tl.uint32) + 0x9E3779B9) ^ (update * 64 + site).to(tl.uint32))
    return _mix(_mix(index.to(tl.uint32) ^ key) + key)


@triton.jit
def _dropped(value, random, site, index):
    """`value` / (1 - p) where the random word reaches p 2**32, else 0.

    random, int32 [4]: update, seed, bits of p 2**32 as uint32, bits of 1 / (1 - p) as float32.
    """
    word = random_word(tl.load(random + 1), tl.load(random), site, index)
    scale = tl.load(random + 3).to(tl.float32, bitcast=True)
    return tl.where(word >= tl.load(random + 2).to(tl.uint32), value * scale, 0.0)


@triton.jit
def read(pointers, inside):
    """FP32 values, zero outside."""
    return tl.load(pointers, inside, 0.0).to(tl.float32)


@triton.jit
def own_row(width, BLOCK: tl.constexpr):
    """This program's row; its columns, their mask and offsets."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    return row, column, column < width, row * width + column


@triton.jit(do_not_specialize=["length", "site"])
def add_norm(
    x_in, y, ids, norm_weight, norm_bias, x_out, h_out, mean_out, rstd_out, random, site, length,
    eps, width, EMBED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_out = x_in + dropout(y), h = norm(x_out). With EMBED, x_in and y are the token and position
    tables, and x_out = dropout(sum of the two embeddings).
    """
    row, column, inside, at = own_row(width, BLOCK)
    if EMBED:
        token = tl.load(ids + row).to(tl.int64)
        x = read(x_in + token * width + column, inside)
        x += read(y + (row % length) * width + column, inside)
        x = _dropped(x, random, site, at)
    else:
        branch = _dropped(read(y + at, inside), random, site, at)
        x = tl.where(inside, read(x_in + at, inside) + branch, 0.0)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    h = centred * rstd * read(norm_weight + column, inside) + read(norm_bias + column, inside)
    tl.store(x_out + at, x, inside)
    tl.store(h_out + at, h, inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit(do_not_specialize=["site"])
def norm_backward(
    dh, x, mean_in, rstd_in, norm_weight, dx, dy, random, site, width, BLOCK: tl.constexpr
):
    """dx += d norm(dh), dy = dropout mask of dx. With u = (x - mean) rstd and g = dh w:

    d norm = rstd (g - mean(g) - u mean(g u)).
    """
    row, column, inside, at = own_row(width, BLOCK)
    rstd = tl.load(rstd_in + row)
    unit = tl.where(inside, (read(x + at, inside) - tl.load(mean_in + row)) * rstd, 0.0)
    g = read(dh + at, inside) * read(norm_weight + column, inside)
    total = rstd * (g - tl.sum(g, 0) / width - unit * (tl.sum(g * unit, 0) / width))
    total += read(dx + at, inside)
    tl.store(dx + at, total, inside)
    tl.store(dy + at, _dropped(total, random, site, at), inside)


@triton.jit
def _sigmoid(u):
    """sigmoid(z) with z = sqrt(8 / pi) (u + 0.044715 u³): GPT-2's GELU is u sigmoid(z)."""
    return tl.sigmoid(1.5957691216057308 * (u + 0.044715 * u * u * u))


@triton.jit
def gelu(u, a, n, BLOCK: tl.constexpr):
    """a = u sigmoid(z) = 0.5 u (1 + tanh(z / 2))."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = read(u + at, at < n)
    tl.store(a + at, value * _sigmoid(value), at < n)


@triton.jit
def gelu_backward(u, da, du, n, BLOCK: tl.constexpr):
    """du = da (s + u s (1 - s) dz/du) with s = sigmoid(z)."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = read(u + at, at < n)
    s = _sigmoid(value)
    slope = 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * value * value)
    result = read(da + at, at < n) * s * (1.0 + value * (1.0 - s) * slope)
    tl.store(du + at, result, at < n)


@triton.jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _attention(
    qkv, random, site, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head of one text: offsets in qkv and o, mask of real rows; causal weights softmax(q kᵀ /
    sqrt(d)), scaled dropout mask; q, k, v.
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
    score = _dot(q, tl.trans(k)) * softmax_scale
    score = tl.where((column <= row) & (column < length), score, -1e30)
    weight = tl.exp(score - tl.max(score, 1)[:, None])
    weight = weight / tl.sum(weight, 1)[:, None]
    at = (program * length + row) * length + column
    mask = _dropped(1.0, random, site, at)
    return in_qkv, in_o, inside, weight, mask, q, k, v


@triton.jit(do_not_specialize=["length", "site"])
def attention(
    qkv, o, random, site, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Causal self-attention, one program per head and text: qkv [B L, 3 width], o [B L, width]. No
    padding mask: no real token attends to padding on the right.
    """
    _, in_o, inside, weight, mask, _, _, v = _attention(
        qkv, random, site, softmax_scale, length, width, HEADS, HEAD, BLOCK
    )
    out = _dot((weight * mask).to(v.dtype), v)
    tl.store(o + in_o, out, inside)


@triton.jit(do_not_specialize=["length", "site"])
def attention_backward(
    qkv, do, dqkv, random, site, softmax_scale, length, width,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Backward of `attention`, weights recomputed. With P the weights, M the scaled mask:

    dV = (P M)ᵀ dO,  dP = (dO Vᵀ) M,  dS = P (dP - rowsum(dP P)) / sqrt(d),  dQ = dS K,  dK = dSᵀ Q.
    """
    in_qkv, in_o, inside, weight, mask, q, k, v = _attention(
        qkv, random, site, softmax_scale, length, width, HEADS, HEAD, BLOCK
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


@triton.jit
def head(
    h, weight, labels, count, dlogits, text_loss, dh, width,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One text's logits, cross-entropy and backward: dlogits = (softmax - onehot) / count."""
    text, column, inside, at = own_row(width, BLOCK)
    classes = tl.arange(0, CLASSES)
    label = tl.load(labels + text)
    table = read(weight + classes[:, None] * width + column[None, :], inside[None, :])
    row = read(h + at, inside)
    logit = tl.sum(table * row[None, :], 1)
    top = tl.max(logit, 0)
    log_sum = top + tl.log(tl.sum(tl.exp(logit - top), 0))
    real = (label >= 0).to(tl.float32) / tl.load(count).to(tl.float32)
    onehot = classes == label
    tl.store(text_loss + text, (log_sum - tl.sum(tl.where(onehot, logit, 0.0), 0)) * real)
    gradient = (tl.exp(logit - log_sum) - onehot.to(tl.float32)) * real
    tl.store(dlogits + text * CLASSES + classes, gradient)
    down = tl.sum(table * gradient[:, None], 0)
    tl.store(dh + at, down, inside)


@triton.jit
def head_gradient(
    h, dlogits, text_loss, losses, update, gradient, texts, width,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradient of the head's weight, one program per class; the first also sums the loss."""
    label, column, inside, at = own_row(width, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    loss = 0.0
    for text in range(texts):
        row = read(h + text * width + column, inside)
        total += tl.load(dlogits + text * CLASSES + label) * row
        loss += tl.load(text_loss + text)
    tl.store(gradient + at, total, inside)
    if label == 0:
        tl.store(losses + tl.load(update), loss)
