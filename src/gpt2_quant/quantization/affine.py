"""Integers for reals: the arithmetic of affine and symmetric int8 quantization, as pure functions.

A real `x` is stored as the code `q = clamp(round(x / scale + zero_point), qmin, qmax)` and read
back as `(q - zero_point) * scale` (Jacob et al. 2018, arXiv 1712.05877, eq. 1). Where nothing
saturates the error is at most half a scale, so the choice of the scale is all there is:

symmetric  zero_point 0, scale = absmax / 127: products of codes need no correction term. -128 stays
           unused, as it has no negative.
affine     scale = (max - min) / 255 over a range that is made to contain 0, so that 0 is exact.

One scale serves the whole tensor, one output channel, or `group_size` neighbours along the input
axis: error falls with each, bytes for scales rise. A narrower range (`clip="mse"`: the shrinkage of
least squared error) saturates a few outliers and serves the rest with finer steps.

GPT-2's linear layers keep their weight as `[in, out]` (transformers' `Conv1D`): `layout="conv1d"`
says so, and scales always come back in terms of `out`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError

SYMMETRIC_MAX = 127
AFFINE_MIN, AFFINE_MAX = -128, 127
# The smallest normal float32, whose reciprocal is still finite: zeros and denormals become code 0.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny
SHRINKAGES = torch.linspace(1.0, 0.2, 33).tolist()
Layout = Literal["linear", "conv1d"]


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
    layout: Layout = "linear"
    group_size: int = 0

    def dequantize(self) -> Tensor:
        """The reals that the codes stand for, float32, in the original's shape."""
        codes = self.codes.t() if self.layout == "conv1d" else self.codes
        values = dequantize(codes, self.per_code(self.scale), self.per_code(self.zero_point))
        return values.t() if self.layout == "conv1d" else values

    def per_code(self, parameter: Tensor) -> Tensor:
        """A scale or zero-point in a shape that broadcasts against the codes `[out, in]`."""
        if parameter.dim() < 2:
            return parameter if parameter.dim() == 0 else parameter.unsqueeze(-1)
        columns = self.codes.shape[0 if self.layout == "conv1d" else 1]
        return parameter.repeat_interleave(self.group_size, dim=1)[:, :columns]

    @property
    def n_bytes(self) -> int:
        """Bytes of codes, scales, and zero-points (one byte each) where there are any."""
        zero_points = self.zero_point.numel() if bool(self.zero_point.any()) else 0
        return self.codes.numel() + 4 * self.scale.numel() + zero_points


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Codes (int8) of `x` under a given scale (float32) and zero-point, both broadcast against `x`.

    Bit for bit what `torch.quantize_per_tensor` and `torch.quantize_per_channel` do: both multiply
    by the reciprocal, but the former adds the zero-point in the same step (a fused multiply-add).
    """
    inverse = 1.0 / scale
    # float64 holds the product of two float32 exactly: the sum is rounded once, which matters where
    # float32 makes a tie (126.49999994 is 126.5).
    x = x.double() if scale.numel() == 1 else x.float()
    transformed = (x * inverse.to(x.dtype) + zero_point).float()
    return torch.round(transformed).clamp_(qmin, qmax).to(torch.int8)  # half to even


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """`(codes - zero_point) * scale` in float32; the difference has at most 9 bits: it is exact."""
    return (codes.float() - zero_point) * scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes of each row (a token's activations) with a scale of its own.

    x: `[rows, n]`, any float dtype. Returns codes int8 `[rows, n]` and scale float32 `[rows, 1]`.
    """
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / SYMMETRIC_MAX).clamp_min(SMALLEST_SCALE)
    return torch.round(x * (1.0 / scale)).to(torch.int8), scale


def quantize_tensor(
    x: Tensor,
    *,
    symmetric: bool = True,
    per: Literal["tensor", "channel", "group"] = "channel",
    layout: Layout = "linear",
    group_size: int = 128,
    clip: Literal["absmax", "mse"] = "absmax",
    name: str = "tensor",
) -> Quantized:
    """Choose scales for `x` and quantize it.

    x     float, two axes in `layout`; any shape for per="tensor"
    per   what a scale serves; the last group of a row may be shorter than `group_size`
    clip  "absmax" (no clipping) or "mse"

    Raises UserError, with `name`, for NaN or infinity, ValueError for a `per` that x cannot have.
    """
    if per not in ("tensor", "channel", "group"):
        raise ValueError(f"unknown granularity {per!r}")
    if per != "tensor" and x.dim() != 2:
        raise ValueError(f"{name} has {x.dim()} axes; a scale per {per} needs [out, in]")
    require_finite(x, name)
    matrix = x.detach().float()
    if layout == "conv1d":
        matrix = matrix.t()
    slices = matrix  # the last axis of `slices` runs over the elements that share a scale
    if per == "tensor":
        slices = matrix.reshape(-1)
    elif per == "group":
        groups = -(-matrix.shape[1] // group_size)
        slices = pad(matrix, (0, groups * group_size - matrix.shape[1]))
        slices = slices.reshape(len(matrix), groups, group_size)
    scale, zero_point = _choose(slices, symmetric, clip)
    codes = _encode(slices, scale, zero_point, symmetric)
    if per == "group":
        codes = codes.flatten(1)[:, : matrix.shape[1]]
    codes = codes.reshape(matrix.shape)
    codes = (codes.t() if layout == "conv1d" else codes).contiguous()
    return Quantized(codes, scale, zero_point, layout, group_size)


def require_finite(x: Tensor, name: str) -> None:
    """Raise UserError with `name` where x holds NaN or infinity: no scale represents those."""
    if not bool(torch.isfinite(x).all()):
        raise UserError(
            f"{name} holds NaN or infinity and cannot be quantized: "
            "train or download the checkpoint again"
        )


def _encode(slices: Tensor, scale: Tensor, zero_point: Tensor, symmetric: bool) -> Tensor:
    qmin, qmax = (-SYMMETRIC_MAX, SYMMETRIC_MAX) if symmetric else (AFFINE_MIN, AFFINE_MAX)
    return quantize(slices, scale.unsqueeze(-1), zero_point.unsqueeze(-1), qmin, qmax)


def _choose(slices: Tensor, symmetric: bool, clip: str) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero-point (int32) for each slice along the last axis."""
    if slices.shape[-1] == 0:
        scale = torch.full(slices.shape[:-1], SMALLEST_SCALE, device=slices.device)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    low, high = slices.amin(-1).clamp(max=0), slices.amax(-1).clamp(min=0)
    scale, zero_point = _cover(low, high, symmetric)
    if clip == "absmax":
        return scale, zero_point
    least_error = torch.full_like(scale, torch.inf)
    for shrinkage in SHRINKAGES:
        tried, tried_zero = _cover(low * shrinkage, high * shrinkage, symmetric)
        codes = _encode(slices, tried, tried_zero, symmetric)
        read_back = dequantize(codes, tried.unsqueeze(-1), tried_zero.unsqueeze(-1))
        error = (read_back - slices).square().sum(-1)
        better = error < least_error
        least_error = torch.where(better, error, least_error)
        scale = torch.where(better, tried, scale)
        zero_point = torch.where(better, tried_zero, zero_point)
    return scale, zero_point


def _cover(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero-point whose codes cover [low, high]."""
    low, high = low.double(), high.double()  # high - low of two large float32 may overflow
    if symmetric:
        scale = (torch.maximum(-low, high) / SYMMETRIC_MAX).float().clamp_min(SMALLEST_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (AFFINE_MAX - AFFINE_MIN)).float().clamp_min(SMALLEST_SCALE)
    zero_point = torch.round(AFFINE_MIN - low / scale).clamp(AFFINE_MIN, AFFINE_MAX).to(torch.int32)
    return scale, zero_point
