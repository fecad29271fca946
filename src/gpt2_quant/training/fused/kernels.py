"""Triton kernels of the fused training step between its matrix products.

Residual stream, norms, loss and sums are FP32; operands and results of products are in the
compute dtype (bf16), as under autocast. The backward pass recomputes what it needs. Every sum has a
fixed order (no atomics): results are deterministic.

*Dropout*: whether element i of site s is kept in update u is a hash of (seed, u, s, i): backward
pass, replay and resumed run draw the same masks with nothing stored.
"""

import triton
import triton.language as tl

from ...quantization.kernels.launch import read

CLASSES_PER_TILE = tl.constexpr(4)


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
    # Distinct for 4,096 sites and 2**20 updates.
    drawn = (site // 64 << 26) + update * 64 + site % 64
    key = _mix(_mix(seed.to(tl.uint32) + 0x9E3779B9) ^ drawn.to(tl.uint32))
    return _mix(_mix(index.to(tl.uint32) ^ key) + key)


@triton.jit
def dropped(value, random, site, index):
    """`value` / (1 - p) where the random word reaches p 2**32, else 0.

    random, int32 [4]: update, seed, bits of p 2**32 as uint32, bits of 1 / (1 - p) as float32.
    """
    word = random_word(tl.load(random + 1), tl.load(random), site, index)
    scale = tl.load(random + 3).to(tl.float32, bitcast=True)
    return tl.where(word >= tl.load(random + 2).to(tl.uint32), value * scale, 0.0)


@triton.jit
def own_row(width, BLOCK: tl.constexpr):
    """This program's row; its columns, their mask and offsets."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    return row, column, column < width, row * width + column


@triton.jit(do_not_specialize=["length", "site", "first"])
def add_norm(
    x_in, y, ids, norm_weight, norm_bias, x_out, h_out, mean_out, rstd_out, random, site, first,
    length, eps, width, EMBED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_out = x_in + dropout(y), h = norm(x_out). With EMBED, x_in and y are the token and position
    tables, and x_out = dropout(sum of the two embeddings). `first`: this process's first row in the
    whole batch, whose masks are drawn.
    """
    row, column, inside, at = own_row(width, BLOCK)
    if EMBED:
        token = tl.load(ids + row).to(tl.int64)
        x = read(x_in + token * width + column, inside)
        x += read(y + (row % length) * width + column, inside)
        x = dropped(x, random, site, first * width + at)
    else:
        branch = dropped(read(y + at, inside), random, site, first * width + at)
        x = tl.where(inside, read(x_in + at, inside) + branch, 0.0)
    mean = tl.sum(x, 0) / width
    centred = tl.where(inside, x - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps)
    h = centred * rstd * read(norm_weight + column, inside) + read(norm_bias + column, inside)
    tl.store(x_out + at, x, inside)
    tl.store(h_out + at, h, inside)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)


@triton.jit(do_not_specialize=["site", "first"])
def norm_backward(
    dh, x, mean_in, rstd_in, norm_weight, dx, dy, random, site, first, width, BLOCK: tl.constexpr
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
    tl.store(dy + at, dropped(total, random, site, first * width + at), inside)


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
def _logits(weight, row, first, column, inside, width, CLASSES: tl.constexpr):
    """CLASSES_PER_TILE classes from `first` on, their rows of the head and the text's logits."""
    classes = first + tl.arange(0, CLASSES_PER_TILE)
    real = classes < CLASSES
    at = classes[:, None] * width + column[None, :]
    table = read(weight + at, real[:, None] & inside[None, :])
    return classes, table, tl.where(real, tl.sum(table * row[None, :], 1), -float("inf"))


@triton.jit
def head(
    h, weight, labels, count, dlogits, text_loss, dh, width,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One text's logits, cross-entropy and backward: dlogits = (softmax - onehot) / count."""
    text, column, inside, at = own_row(width, BLOCK)
    label = tl.load(labels + text)
    row = read(h + at, inside)
    top, total, chosen = -float("inf"), 0.0, 0.0
    for first in range(0, CLASSES, CLASSES_PER_TILE):
        classes, _, logit = _logits(weight, row, first, column, inside, width, CLASSES)
        peak = tl.maximum(top, tl.max(logit, 0))
        total = total * tl.exp(top - peak) + tl.sum(tl.exp(logit - peak), 0)
        chosen += tl.sum(tl.where(classes == label, logit, 0.0), 0)
        top = peak
    log_sum = top + tl.log(total)
    real = (label >= 0).to(tl.float32) / tl.load(count).to(tl.float32)
    tl.store(text_loss + text, (log_sum - chosen) * real)
    down = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, CLASSES, CLASSES_PER_TILE):
        classes, table, logit = _logits(weight, row, first, column, inside, width, CLASSES)
        gradient = (tl.exp(logit - log_sum) - (classes == label).to(tl.float32)) * real
        tl.store(dlogits + text * CLASSES + classes, gradient, classes < CLASSES)
        down += tl.sum(table * gradient[:, None], 0)
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
