"""Integers for reals: the arithmetic of affine and symmetric int8 quantization, as pure functions.

A real `x` is stored as the code `q = clamp(round(x / scale + zero_point), qmin, qmax)` and read
back as `(q - zero_point) * scale` (Jacob et al. 2018, arXiv 1712.05877, eq. 1). Rounding is half to
even. Where nothing saturates the error is at most half a scale, so the choice of the scale is all
there is:

symmetric   zero_point 0, codes in [-127, 127], scale = absmax / 127. A product of two such codes needs no correction
            term, which is why integer matrix multiplication wants it. -128 stays unused: with it,
            -x would not exist.
affine      codes in [-128, 127], scale = (max - min) / 255 over a range that is made to contain 0, so that 0 is exact.

One scale serves the whole tensor, one output channel (a row of `[out, in]`), or `group_size`
neighbours along the input axis. Error falls with each step, bytes for scales rise: 4, 4 * out, 4 *
out * in / group_size. GPT-2's linear layers are transformers' `Conv1D`, which keeps its weight as
`[in, out]`: `layout="conv1d"` says so, and scales always come back in terms of `out`.

The range may also be *clipped*: a narrower range saturates a few outliers and serves the rest with
a finer step. `percentile` cuts at a quantile of |x|, `mse` takes the shrinkage with the least
squared error.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError

SYMMETRIC_MAX = 127
AFFINE_MIN, AFFINE_MAX = -128, 127
# The smallest normal float32. Its reciprocal is still finite, so tensors of zeros or denormals need
# no special case: their codes come out as 0 and the error stays below half of this.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
SHRINKAGES = torch.linspace(1.0, 0.2, 33).tolist()


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor.

    codes       int8, the shape of the original
    scale       float32: `[]` per tensor, `[out]` per channel, `[out, groups]` per group
    zero_point  int32, the shape of `scale`; all 0 when symmetric
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    layout: str = "linear"
    group_size: int | None = None

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The reals that the codes stand for, in the original's shape."""
        scale, zero_point = (_spread(item, self) for item in (self.scale, self.zero_point))
        return dequantize(self.codes, scale, zero_point).to(dtype)

    @property
    def n_bytes(self) -> int:
        """What it takes to store: codes, scales, and zero points (one byte each) where there are
        any.
        """
        zero_points = self.zero_point.numel() if bool(self.zero_point.any()) else 0
        return self.codes.numel() + 4 * self.scale.numel() + zero_points


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Codes (int8) of `x` under a given scale (float32) and zero point, both broadcast against `x`.

    Bit for bit what `torch.quantize_per_tensor` and `torch.quantize_per_channel` do. Both multiply
    by the reciprocal; the former adds the zero point in the same step (a fused multiply-add, one
    rounding), the latter in a second one. That matters for ties only, and for those that float32
    makes: 126.49999994 is 126.5.
    """
    inverse = 1.0 / scale
    # float64 holds the product of two float32 exactly, so that the sum is rounded once, at the end.
    x = x.double() if scale.numel() == 1 else x.float()
    transformed = (x * inverse.to(x.dtype) + zero_point).float()
    return torch.round(transformed).clamp_(qmin, qmax).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """`(codes - zero_point) * scale` in float32; the difference is an integer of at most 9 bits,
    hence exact.
    """
    return (codes.float() - zero_point) * scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes of each row (a token's activations) with a scale of its own, computed on the
    fly.

    x: `[rows, n]`, any float dtype. Returns codes int8 `[rows, n]` and scale float32 `[rows, 1]`.
    """
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / SYMMETRIC_MAX).clamp_min(SMALLEST_SCALE)
    return torch.round(x * (1.0 / scale)).to(torch.int8), scale


def quantize_tensor(
    x: Tensor,
    *,
    symmetric: bool = True,
    per: str = "channel",
    layout: str = "linear",
    group_size: int = 128,
    clip: str = "absmax",
    percentile: float = 99.9,
    name: str = "tensor",
) -> Quantized:
    """Choose scales for `x` and quantize it.

    x           float tensor; `[out, in]` for layout "linear", `[in, out]` for "conv1d"; any shape for per="tensor"
    per         "tensor", "channel" (one scale an output channel) or "group" (`group_size` along the input axis; the
                last group of a row is shorter where the size does not divide it)
    clip        "absmax" (no clipping), "percentile" (of |x|, in percent) or "mse"

    Raises UserError, with `name`, when x holds NaN or infinity, and ValueError for an unknown
    choice or a channel asked of a tensor without two axes.
    """
    if per not in ("tensor", "channel", "group") or clip not in ("absmax", "percentile", "mse"):
        raise ValueError(f"unknown granularity {per!r} or clipping {clip!r}")
    if per != "tensor" and x.dim() != 2:
        raise ValueError(f"{name} has {x.dim()} axes; a scale per {per} needs [out, in]")
    require_finite(x, name)
    rows = _slices(x.detach().float(), per, layout, group_size)
    scale, zero_point = _choose(rows, symmetric, clip, percentile)
    qmin, qmax = (-SYMMETRIC_MAX, SYMMETRIC_MAX) if symmetric else (AFFINE_MIN, AFFINE_MAX)
    codes = quantize(rows, scale.unsqueeze(-1), zero_point.unsqueeze(-1), qmin, qmax)
    if per == "group":
        columns = x.shape[1] if layout == "linear" else x.shape[0]
        codes = codes.flatten(1)[:, :columns]
    if per != "tensor" and layout == "conv1d":
        codes = codes.t()
    codes = codes.reshape(x.shape).contiguous()
    return Quantized(codes, scale, zero_point, layout, group_size if per == "group" else None)


def require_finite(x: Tensor, name: str) -> None:
    """Raise UserError naming the tensor when it holds NaN or infinity: no scale can represent
    those.
    """
    if not bool(torch.isfinite(x).all()):
        raise UserError(
            f"{name} holds NaN or infinity and cannot be quantized: train or download the checkpoint again"
        )


def _slices(x: Tensor, per: str, layout: str, group_size: int) -> Tensor:
    """View `x` so that the last axis runs over the elements that share a scale. Rows are padded
    with 0 to full groups.
    """
    if per == "tensor":
        return x.reshape(-1)
    rows = x if layout == "linear" else x.t()
    if per == "channel":
        return rows
    groups = -(-rows.shape[1] // group_size)
    padded = torch.nn.functional.pad(rows, (0, groups * group_size - rows.shape[1]))
    return padded.reshape(rows.shape[0], groups, group_size)


def _spread(parameter: Tensor, quantized: Quantized) -> Tensor:
    """Expand a scale or zero point so that it broadcasts against the codes."""
    if parameter.dim() == 0:
        return parameter
    if parameter.dim() == 1:
        spread = parameter.unsqueeze(-1)
    else:
        columns = (
            quantized.codes.shape[1] if quantized.layout == "linear" else quantized.codes.shape[0]
        )
        spread = parameter.repeat_interleave(quantized.group_size, dim=1)[:, :columns]
    return spread if quantized.layout == "linear" else spread.t()


def _choose(rows: Tensor, symmetric: bool, clip: str, percentile: float) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) for each slice along the last axis of `rows`."""
    if rows.shape[-1] == 0:
        scale = torch.full(rows.shape[:-1], SMALLEST_SCALE, device=rows.device)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    low, high = rows.amin(-1).clamp(max=0), rows.amax(-1).clamp(min=0)
    if clip == "percentile":
        # The k-th smallest, not an interpolated quantile: it is a value of the tensor, and
        # torch.quantile stops at 16M.
        rank = max(1, round(percentile / 100 * rows.shape[-1]))
        bound = rows.abs().kthvalue(rank, dim=-1).values
        low, high = low.clamp(min=-bound), high.clamp(max=bound)
    if clip != "mse":
        return _parameters(low, high, symmetric)
    return _least_squares(rows, low, high, symmetric)


def _parameters(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point that cover [low, high]. In float64: high - low of two large float32 may
    overflow.
    """
    low, high = low.double(), high.double()
    if symmetric:
        scale = (torch.maximum(-low, high) / SYMMETRIC_MAX).float().clamp_min(SMALLEST_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (AFFINE_MAX - AFFINE_MIN)).float().clamp_min(SMALLEST_SCALE)
    zero_point = torch.round(AFFINE_MIN - low / scale).clamp(AFFINE_MIN, AFFINE_MAX).to(torch.int32)
    return scale, zero_point


def _least_squares(
    rows: Tensor, low: Tensor, high: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Try the full range and 32 narrower ones; keep, slice by slice, the one with the least squared
    error.
    """
    qmin, qmax = (-SYMMETRIC_MAX, SYMMETRIC_MAX) if symmetric else (AFFINE_MIN, AFFINE_MAX)
    best_error = torch.full(rows.shape[:-1], torch.inf, device=rows.device)
    best = _parameters(low, high, symmetric)
    for shrinkage in SHRINKAGES:
        scale, zero_point = _parameters(low * shrinkage, high * shrinkage, symmetric)
        wide_scale, wide_zero = scale.unsqueeze(-1), zero_point.unsqueeze(-1)
        read_back = dequantize(
            quantize(rows, wide_scale, wide_zero, qmin, qmax), wide_scale, wide_zero
        )
        error = (read_back - rows).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, scale, best[0]), torch.where(better, zero_point, best[1])
    return best
