"""Layers that keep their weights as integers and compute from them.

W8A8. The weight is int8 `[out, in]` with one scale per output channel; each token's activations get
a scale of their own on the fly. Then x[t, i] ~ a[t, i] * s[t] and w[o, i] ~ b[o, i] * r[o], so that

    y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o]

where the sum is exact: 127 * 127 * 3072 = 4.95e7 fits int32 43 times over. Both scales stand
outside it, which is why these two granularities and no others cost nothing (LLM.int8(), arXiv
2208.07339, section 3.1). On CUDA it runs in `kernels/`, elsewhere in `product.py`.

NF4. 4.127 bits per weight, multiplied as floats: on CUDA each tile is read back inside the kernel,
elsewhere one layer at a time, so no float copy of the model ever exists.

Embeddings read back only the rows that are looked up. A tied language-model head multiplies by the
very same codes: a row of the table is an output channel of the head.
"""

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import affine, nf4
from .product import int8_linear

HEAD_TILE_ROWS = 4096


class QuantizedLayer(nn.Module):
    """A frozen matrix of codes. Scales stay float32 whatever `.to(dtype)` asks for; the output has
    the `compute_dtype`.
    """

    SCALES: tuple[str, ...] = ()
    # What a kind of codes provides:
    _allocate: Callable  # (device) makes the buffers
    _fill: Callable  # (weight float `[rows, columns]`, name) quantizes into them
    _read_rows: Callable  # (ids int64 `[...]`) -> those rows `[..., columns]`, in the compute dtype
    _multiply: Callable  # (x `[..., columns]`, bias or None) -> x W^T + bias `[..., rows]`

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, device=None):
        super().__init__()
        self.rows, self.columns, self.compute_dtype = rows, columns, dtype
        self._allocate(device)

    def _apply(self, fn, recurse=True):
        """Move to a device or dtype as any module does, but leave the scales' precision alone."""
        scales = {name: getattr(self, name) for name in self.SCALES}
        super()._apply(fn, recurse)
        for name, scale in scales.items():
            moved = getattr(self, name)
            if moved.dtype != scale.dtype:
                setattr(self, name, scale.to(moved.device))
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.rows} x {self.columns}"


class Linear(QuantizedLayer):
    """`y = x @ W.T + bias`, W `[out, in]`, bias in the compute dtype or None."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device=None
    ):
        super().__init__(out_features, in_features, dtype, device)
        empty = torch.empty(out_features, dtype=dtype, device=device)
        self.bias = nn.Parameter(empty, requires_grad=False) if bias else None

    @torch.no_grad()
    def quantize_(self, weight: Tensor, bias: Tensor | None, name: str) -> Self:
        """Fill from a float weight. Raises UserError, with `name`, for NaN or infinity."""
        self._fill(weight, name)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., in]` -> `[..., out]` in the dtype of x."""
        return self._multiply(x, self.bias)


class Embedding(QuantizedLayer):
    """A lookup table `[n, d]` that reads back the rows that are looked up."""

    @torch.no_grad()
    def quantize_(self, weight: Tensor, name: str) -> Self:
        """Fill from a float table. Raises UserError, with `name`, for NaN or infinity."""
        self._fill(weight, name)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """ids (int64, any shape) -> `[..., d]` in the compute dtype."""
        return self._read_rows(ids)

    def head(self, x: Tensor) -> Tensor:
        """x `[..., d]` -> `[..., n]`: the table as the weight of a linear layer."""
        return self._multiply(x, None)


class Int8Weight(QuantizedLayer):
    """weight int8 `[rows, columns]`, weight_scale float32 `[rows]`."""

    SCALES = ("weight_scale",)

    def _allocate(self, device) -> None:
        shape = self.rows, self.columns
        self.weight = nn.Buffer(torch.empty(shape, dtype=torch.int8, device=device))
        self.weight_scale = nn.Buffer(torch.empty(self.rows, dtype=torch.float32, device=device))

    def _fill(self, weight: Tensor, name: str) -> None:
        quantized = affine.quantize_tensor(weight, per="channel", name=name)
        self.weight.copy_(quantized.codes)
        self.weight_scale.copy_(quantized.scale)

    def _read_rows(self, ids: Tensor) -> Tensor:
        kernels = kernels_for(ids.device)
        if kernels is not None:
            return kernels.int8_embedding(ids, self.weight, self.weight_scale, self.compute_dtype)
        values = affine.dequantize(self.weight[ids], self.weight_scale[ids].unsqueeze(-1))
        return values.to(self.compute_dtype)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        kernels = kernels_for(x.device)
        if kernels is not None:
            return kernels.int8_linear(x.contiguous(), self.weight, self.weight_scale, bias)
        codes, scale = affine.quantize_rows(x.reshape(-1, self.columns))
        y = int8_linear(codes, scale, self.weight, self.weight_scale, bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)


class NF4Weight(QuantizedLayer):
    """The fields of an `nf4.NF4`, of which `weight` is `packed`: codes flattened row by row."""

    SCALES = ("scale_absmax", "scale_offset")

    def _allocate(self, device) -> None:
        if self.columns % 2:
            raise ValueError(f"{self.columns} codes end within a byte: NF4 needs an even width")
        n = self.rows * self.columns
        blocks = -(-n // nf4.BLOCK)
        groups = -(-blocks // nf4.SCALES_PER_BLOCK)
        self.weight = nn.Buffer(torch.empty(n // 2, dtype=torch.uint8, device=device))
        self.scale_codes = nn.Buffer(torch.empty(blocks, dtype=torch.uint8, device=device))
        self.scale_absmax = nn.Buffer(torch.empty(groups, dtype=torch.float32, device=device))
        self.scale_offset = nn.Buffer(torch.empty((), dtype=torch.float32, device=device))

    def _fill(self, weight: Tensor, name: str) -> None:
        quantized = nf4.quantize(weight, fit="mse", name=name)
        self.weight.copy_(quantized.packed)
        for field in ("scale_codes", "scale_absmax", "scale_offset"):
            getattr(self, field).copy_(getattr(quantized, field))

    def dequantize(self) -> Tensor:
        """The whole matrix as floats, `[rows, columns]` in the compute dtype."""
        scales = self.scale_codes, self.scale_absmax, self.scale_offset
        stored = nf4.NF4(self.weight, *scales, torch.Size((self.rows, self.columns)))
        return stored.dequantize(self.compute_dtype)

    def _read_rows(self, ids: Tensor) -> Tensor:
        kernels = kernels_for(ids.device)
        if kernels is not None:
            return kernels.nf4_embedding(ids, self)
        packed = self.weight.view(self.rows, self.columns // 2)[ids]
        values = nf4.byte_table(ids.device)[packed.int()].flatten(-2)
        element = ids.unsqueeze(-1) * self.columns + torch.arange(self.columns, device=ids.device)
        scales = nf4.read_scales(
            self.scale_codes, self.scale_absmax, self.scale_offset, element // nf4.BLOCK
        )
        return (values * scales).to(self.compute_dtype)

    def _multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        kernels = kernels_for(x.device)
        if kernels is not None:
            return kernels.nf4_linear(x, self, bias)
        return nn.functional.linear(x, self.dequantize().to(x.dtype), bias)


class Int8Linear(Linear, Int8Weight):
    """A linear layer, weights int8 per output channel, activations int8 per token."""


class Int8Embedding(Embedding, Int8Weight):
    """A table with one scale per row."""


class NF4Linear(Linear, NF4Weight):
    """A linear layer with weights in NF4."""


class NF4Embedding(Embedding, NF4Weight):
    """A table in NF4."""

    def head(self, x: Tensor) -> Tensor:
        """As `Embedding.head`, read back tile by tile: the table is a quarter of the model."""
        tiles = torch.arange(self.rows, device=x.device).split(HEAD_TILE_ROWS)
        products = [nn.functional.linear(x, self(rows).to(x.dtype)) for rows in tiles]
        return torch.cat(products, dim=-1)


class TiedHead(nn.Module):
    """A language-model head that multiplies by the token embedding's own codes."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        # In a tuple, so that it is not registered (and saved) a second time.
        self._embedding = (embedding,)

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states `[..., d]` -> logits `[..., n]`."""
        return self._embedding[0].head(x)


def kernels_for(device: torch.device):
    """The Triton kernels where `device` is a GPU that can run them, else None: torch then computes
    the same integers.

    Warns without Triton and on GPUs before Ampere. Raises UserError for GPUs before Turing (7.5).
    """
    return _kernels_on(device) if device.type == "cuda" else None


@cache  # beneath a plain function, because torch.compile looks through caches and says so
def _kernels_on(device: torch.device):
    capability = torch.cuda.get_device_capability(device)
    if capability < (7, 5):
        raise UserError(
            "this GPU (compute capability {}.{}) has no int8 matrix product, which needs 7.5 or "
            "newer: use --device cpu".format(*capability)
        )
    if missing := missing_for_kernels(device):
        slower = "quantized layers run through torch, with the same results but slower"
        warnings.warn(f"{missing}: {slower}", stacklevel=2)
        return None
    from . import kernels

    return kernels


def missing_for_kernels(device: torch.device) -> str | None:
    """What the Triton kernels need and a machine with this GPU lacks, or None."""
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "this GPU is older than Ampere, which the Triton kernels need"
    return None if find_spec("triton") else "Triton is not installed (pip install triton)"
