"""Affine and symmetric int8 quantization, as pure functions.

A real `x` has the code `q = clamp(round(x / scale + zero_point), qmin, qmax)`, read back as `(q -
zero_point) * scale` (arXiv 1712.05877, eq. 1); unsaturated, the error is at most half a scale.

symmetric  scale = absmax / 127, zero_point 0: products of codes need no correction term. -128 has
           no negative and stays unused.
affine     scale = (max - min) / 255 over a range that is made to contain 0, so that 0 is exact.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import UserError

SYMMETRIC_MAX = 127
AFFINE_MIN, AFFINE_MAX = -128, 127
# The smallest normal float32, whose reciprocal is still finite: zeros and denormals become code 0.
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


class Quantized(NamedTuple):
    """Codes int8 in the tensor's shape; scale (float32) and zero_point (int32) `[]` per tensor or
    `[out]` per channel.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        return dequantize(self.codes, self.scale.unsqueeze(-1), self.zero_point.unsqueeze(-1))


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Codes (int8) under a scale (float32) and zero-point that broadcast against `x`: bit for bit
    those of `torch.quantize_per_tensor`, whose multiply-add is fused, and
    `torch.quantize_per_channel`.
    """
    inverse = 1.0 / scale
    # float64 holds the product of two float32 exactly: the sum is rounded once, which matters where
    # float32 makes a tie (126.49999994 is 126.5).
    x = x.double() if scale.numel() == 1 else x.float()
    transformed = (x * inverse.to(x.dtype) + zero_point).float()
    return torch.round(transformed).clamp_(qmin, qmax).to(torch.int8)  # half to even


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | int = 0) -> Tensor:
    """`(codes - zero_point) * scale` in float32; the difference, of at most 9 bits, is exact.

    ONNX has a node for it: in an export scale is `[]` or `[..., 1]`.
    """
    if not torch.onnx.is_in_onnx_export():
        return (codes.float() - zero_point) * scale
    rows, scale = (codes.flatten(0, -2), scale.flatten()) if scale.dim() else (codes, scale)
    inputs = [rows, scale, *([zero_point] if isinstance(zero_point, Tensor) else [])]
    made: Any = {"attrs": {"axis": 0}, "dtype": torch.float32, "shape": rows.shape}
    return torch.onnx.ops.symbolic("DequantizeLinear", inputs, **made).view(codes.shape)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric codes of each row (token): float `[rows, n]` -> int8 `[rows, n]` and scale float32
    `[rows, 1]`.
    """
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / SYMMETRIC_MAX).clamp_min(SMALLEST_SCALE)
    return torch.round(x * (1.0 / scale)).to(torch.int8), scale


def quantize_tensor(
    x: Tensor,
    *,
    symmetric: bool = True,
    per: Literal["tensor", "channel"] = "channel",
    name: str = "tensor",
) -> Quantized:
    """Quantize `x` (float, `[out, in]`, or any shape for per="tensor").

    Raises UserError for NaN or infinity, ValueError where x has no channels.
    """
    if per == "channel" and x.dim() != 2:
        raise ValueError(f"{name} has {x.dim()} axes; a scale per channel needs [out, in]")
    require_finite(x, name)
    slices = x.detach().float()
    if per == "tensor":
        slices = slices.reshape(-1)
    low, high = pad(slices, (0, 1)).aminmax(dim=-1)  # the range contains 0
    scale, zero_point = cover(low, high, symmetric)
    qmin, qmax = (-SYMMETRIC_MAX, SYMMETRIC_MAX) if symmetric else (AFFINE_MIN, AFFINE_MAX)
    codes = quantize(slices, scale.unsqueeze(-1), zero_point.unsqueeze(-1), qmin, qmax)
    return Quantized(codes.reshape(x.shape).contiguous(), scale, zero_point)


def require_finite(x: Tensor, name: str) -> None:
    """Raise UserError for NaN or infinity, which no scale represents."""
    if not bool(torch.isfinite(x).all()):
        raise UserError(f"{name} holds NaN or infinity: train or download the checkpoint again")


def cover(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero-point (int32) of each range [low, high]."""
    low, high = low.double(), high.double()  # high - low of two large float32 may overflow
    if symmetric:
        scale = (torch.maximum(-low, high) / SYMMETRIC_MAX).float().clamp_min(SMALLEST_SCALE)
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    scale = ((high - low) / (AFFINE_MAX - AFFINE_MIN)).float().clamp_min(SMALLEST_SCALE)
    zero_point = torch.round(AFFINE_MIN - low / scale).clamp(AFFINE_MIN, AFFINE_MAX).to(torch.int32)
    return scale, zero_point
