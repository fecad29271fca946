"""FP8: weights and activations as eight-bit floats (e4m3), with one scale per row.

e4m3 (Micikevicius et al. 2022, arXiv 2209.05433) has a sign, four bits of exponent and three of
mantissa; its largest value is 448. Rounding errs by at most 2^-4 of each *value* (below 2^-6, by
2^-10), int8 by 1/254 of the *largest* in the row: int8 is the finer grid for even rows, FP8 for
rows with outliers. Both take one byte. As in W8A8 the scales stand outside the sum,

    y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o]

which is a float's here, not exact. GPUs since compute capability 8.9 multiply the codes themselves,
by W8A8's kernel (`kernels/gemm.py`: its precision, and its times beside `torch._scaled_mm`).
Elsewhere the same codes are multiplied as float32: this shows what FP8 costs in accuracy, and its
time says nothing.
"""

from typing import Any

import torch
from torch import Tensor

from .affine import SMALLEST_SCALE, require_finite
from .layers import Embedding, Layout, Linear, QuantizedLayer, kernels_for
from .schemes import LayerScheme

E4M3 = torch.float8_e4m3fn
CODE_MAX = 448.0


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of each row (token): float `[rows, n]` -> e4m3 `[rows, n]` and scale float32
    `[rows, 1]`.
    """
    x = x.float()
    scale = (x.abs().amax(dim=-1, keepdim=True) / CODE_MAX).clamp_min(SMALLEST_SCALE)
    return (x * (1.0 / scale)).to(E4M3), scale


def is_native(device: torch.device) -> bool:
    """Whether the device multiplies FP8 codes."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


class FP8Weight(QuantizedLayer):
    weight: Tensor  # the codes' bytes: `.to(dtype)` would convert floats
    weight_scale: Tensor

    def _layout(self) -> Layout:
        codes = (self.rows, self.columns), torch.uint8
        return {"weight": codes, "weight_scale": ((self.rows,), torch.float32)}

    def _quantize(self, weight: Tensor, name: str) -> tuple[Tensor, ...]:
        require_finite(weight, name)
        codes, scale = quantize_rows(weight)
        return codes.view(torch.uint8), scale.squeeze(1)

    @property
    def codes(self) -> Tensor:
        """e4m3 `[rows, columns]`."""
        return self.weight.view(E4M3)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.codes.float() * self.weight_scale.unsqueeze(-1)).to(dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        values = self.weight[ids].view(E4M3).float() * self.weight_scale[ids].unsqueeze(-1)
        return values.to(self.compute_dtype)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(-1, self.columns).contiguous()
        kernels = kernels_for(x.device) if is_native(x.device) else None
        if kernels is not None:
            weight = self.codes, self.weight_scale, bias
            y = kernels.scaled_gemm(*kernels.quantize_rows(rows, E4M3), *weight, dtype=x.dtype)
        else:
            codes, scale = quantize_rows(rows)
            y = codes.float() @ self.codes.float().t() * scale * self.weight_scale
            y = (y if bias is None else y + bias).to(x.dtype)
        return y.view(*x.shape[:-1], self.rows)


class FP8Linear(Linear, FP8Weight):
    """Weights FP8 per output channel, activations FP8 per token."""


class FP8Embedding(Embedding, FP8Weight):
    """A table with one scale per row."""


class FP8Scheme(LayerScheme):
    def facts(self, model: Any) -> dict:
        return super().facts(model) | {"emulated": not is_native(model.device)}

    def untimed(self, device: str) -> str:
        """Why the variant is not timed on `device`; "" where it is."""
        if is_native(torch.device(device)):
            return ""
        return "latency: none, since FP8 is emulated through float32 on this device"


SCHEME = FP8Scheme(FP8Linear, FP8Embedding, positions=FP8Embedding)
