"""Layers that keep their weights as integers and compute from them.

W8A8. Weights b are int8 `[out, in]` with a scale r per output channel, activations a int8 with a
scale s per token, chosen on the fly:

    y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o]

The sum is exact: 127 * 127 * 3072 fits int32 43 times. Only these two granularities leave both
scales outside it (arXiv 2208.07339, section 3.1). So a text's answer depends on its batch only as
FP32's does: padded to another width, attention sums in another order. But where that last bit
decides a rounding, a code moves by one, and the difference grows to the size of W8A8's own error.

NF4. Dequantized one layer at a time and multiplied as floats.

Embeddings dequantize the rows that are looked up; a tied head multiplies by the same codes, a row
of the table being an output channel.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import UserError
from . import affine, nf4
from .product import int8_linear

HEAD_TILE_ROWS = 4096
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]


class QuantizedLayer(nn.Module):
    """A frozen matrix of codes. Scales stay float32 whatever `.to(dtype)` asks for."""

    # What a kind of codes provides:
    _layout: Callable  # () -> {buffer: (shape, dtype)}; float32 are the scales
    _quantize: Callable  # (weight float `[rows, columns]`, name) -> the buffers' values, in order
    dequantize: Callable  # (dtype) -> the whole matrix `[rows, columns]`
    _read_rows: Callable  # (ids int64 `[...]`) -> `[..., columns]`, in the compute dtype
    _multiply: Callable  # (x `[..., columns]`, bias or None) -> x W^T + bias `[..., rows]`

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, device=None, bias=False):
        super().__init__()
        self.rows, self.columns, self.compute_dtype = rows, columns, dtype
        for field, (shape, kind) in self._layout().items():
            self.register_buffer(field, torch.empty(shape, dtype=kind, device=device))
        empty = torch.empty(rows, dtype=dtype, device=device)
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None

    @torch.no_grad()
    def quantize_(self, weight: Tensor, name: str, bias: Tensor | None = None) -> Self:
        """Fill from a float weight. Raises UserError for NaN or infinity."""
        for field, value in zip(self._layout(), self._quantize(weight, name), strict=True):
            getattr(self, field).copy_(value)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self

    def _product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _StraightThrough.apply(x, self, bias)
        return self._multiply(x, bias)

    def _apply(self, fn, recurse=True):
        scales = {name: x for name, x in self.named_buffers() if x.dtype == torch.float32}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            moved = getattr(self, name)
            if moved.dtype != scale.dtype:
                setattr(self, name, scale.to(moved.device))
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self


class _StraightThrough(torch.autograd.Function):
    """Backward as if rounding were the identity: through the dequantized weight (straight-through
    estimator, Bengio et al. 2013, arXiv 1308.3432).
    """

    @staticmethod
    def forward(ctx, x: Tensor, layer: QuantizedLayer, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return layer._multiply(x, bias)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantize(gradient.dtype), None, None


class Linear(QuantizedLayer):
    """`y = x @ W.T + bias`, W `[out, in]`, bias in the compute dtype or None."""

    in_features = property(lambda self: self.columns)  # nn.Linear's names, for peft
    out_features = property(lambda self: self.rows)

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., in]` -> `[..., out]` in the dtype of x."""
        return self._product(x, self.bias)


class Embedding(QuantizedLayer):
    """A lookup table `[n, d]`."""

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 `[...]` -> `[..., d]` in the compute dtype."""
        return self._read_rows(ids)

    def head(self, x: Tensor) -> Tensor:
        """x `[..., d]` -> `[..., n]`."""
        return self._product(x, None)


class Int8Weight(QuantizedLayer):
    weight: Tensor
    weight_scale: Tensor

    def _layout(self) -> Layout:
        codes = (self.rows, self.columns), torch.int8
        return {"weight": codes, "weight_scale": ((self.rows,), torch.float32)}

    def _quantize(self, weight: Tensor, name: str) -> tuple[Tensor, ...]:
        return affine.quantize_tensor(weight, name=name)[:2]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return affine.dequantize(self.weight, self.weight_scale.unsqueeze(-1)).to(dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        kernels = kernels_for(ids.device)
        if kernels is not None:
            return kernels.read_rows(ids, self.weight, self.weight_scale, self.compute_dtype)
        values = affine.dequantize(self.weight[ids], self.weight_scale[ids].unsqueeze(-1))
        return values.to(self.compute_dtype)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        kernels, rows = kernels_for(x.device), x.reshape(-1, self.columns).contiguous()
        if kernels is not None:
            weight = self.weight, self.weight_scale, bias
            y = kernels.scaled_gemm(*kernels.quantize_rows(rows), *weight, dtype=x.dtype)
        else:
            y = int8_linear(rows, self.weight, self.weight_scale, bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)


class NF4Weight(QuantizedLayer):
    """The fields of an `nf4.NF4`, `weight` being `packed`."""

    weight: Tensor
    scale_codes: Tensor
    scale_absmax: Tensor
    scale_offset: Tensor

    def _layout(self) -> Layout:
        if self.columns % 2:
            raise UserError(f"width {self.columns} ends within a byte: NF4 needs an even one")
        n = self.rows * self.columns
        blocks = -(-n // nf4.BLOCK)
        return {
            "weight": ((n // 2,), torch.uint8),
            "scale_codes": ((blocks,), torch.uint8),
            "scale_absmax": ((-(-blocks // nf4.SCALES_PER_BLOCK),), torch.float32),
            "scale_offset": ((), torch.float32),
        }

    def _quantize(self, weight: Tensor, name: str) -> tuple[Tensor, ...]:
        return nf4.quantize(weight, fit="mse", name=name)[:4]

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        kernels = kernels_for(self.weight.device)
        if kernels is not None:
            return kernels.nf4_dequantize(self, dtype)
        scales = nf4.read_scales(self.scale_codes, self.scale_absmax, self.scale_offset)
        n = self.rows * self.columns
        return nf4.dequantize(self.weight, scales, n).view(self.rows, -1).to(dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        kernels = kernels_for(ids.device)
        if kernels is not None:
            return kernels.nf4_embedding(ids, self)
        packed = self.weight.view(self.rows, self.columns // 2)[ids]
        values = nf4.byte_table(ids.device)[packed.long()].flatten(-2)
        element = ids.unsqueeze(-1) * self.columns + torch.arange(self.columns, device=ids.device)
        stored = self.scale_codes, self.scale_absmax, self.scale_offset
        scales = nf4.read_scales(*stored, element // nf4.BLOCK)
        return (values * scales).to(self.compute_dtype)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.dequantize(x.dtype), bias)


class Int8Linear(Linear, Int8Weight):
    """Weights int8 per output channel, activations int8 per token."""


class Int8Embedding(Embedding, Int8Weight):
    """A table with one scale per row."""


class NF4Linear(Linear, NF4Weight):
    """Weights in NF4, products in floats."""


class NF4Embedding(Embedding, NF4Weight):
    def head(self, x: Tensor) -> Tensor:
        tiles = torch.arange(self.rows, device=x.device).split(HEAD_TILE_ROWS)
        return torch.cat([linear(x, self(rows).to(x.dtype)) for rows in tiles], dim=-1)


class TiedHead(nn.Module):
    """A language-model head that multiplies by the token embedding's own codes."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        # In a tuple: not registered (and saved) twice.
        self._embedding = (embedding,)

    def forward(self, x: Tensor) -> Tensor:
        return self._embedding[0].head(x)


def kernels_for(device: torch.device):
    """The Triton kernels, or None where torch must compute the same integers. Raises UserError for
    GPUs before Turing (7.5).
    """
    return _kernels_on(device) if device.type == "cuda" else None


@cache  # torch.compile warns of caches
def _kernels_on(device: torch.device):
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        raise UserError(
            "this GPU has compute capability {}.{}, int8 products need 7.5 or newer: use "
            "--device cpu".format(*capability)
        )
    if missing := missing_for_kernels(device):
        slower = "quantized layers run through torch, with the same results but slower"
        warnings.warn(f"{missing}: {slower}", stacklevel=2)
        return None
    from . import kernels

    return kernels


def missing_for_kernels(device: torch.device) -> str | None:
    """What the machine of this GPU lacks for the Triton kernels, or None."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than Ampere, which the Triton kernels need"
    return None if find_spec("triton") else "Triton is not installed (pip install triton)"
