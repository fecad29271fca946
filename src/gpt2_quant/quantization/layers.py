"""Layers that keep their weights as integers and compute from them.

W8A8 (`Int8Linear`). The weight is int8 `[out, in]` with one scale an output channel; each token's
activations get a scale of their own on the fly. Then x[t, i] ~ a[t, i] * s[t] and w[o, i] ~ b[o, i]
* r[o], so that

    y[t, o] = (sum_i a[t, i] * b[o, i]) * s[t] * r[o] + bias[o]

where the sum is pure integer arithmetic: 127 * 127 * 3072 = 4.95e7 fits int32 43 times over. Both
scales stand outside the sum, which is why these two granularities and no others cost nothing.
(LLM.int8(), arXiv 2208.07339, section 3.1, calls it vector-wise quantization.) On CUDA the product
runs in `kernels.py`, on the CPU in `torch._int_mm` (VNNI).

Embeddings (`Int8Embedding`) keep one scale a row and read back only the rows that are looked up. A
tied language-model head multiplies by the very same codes: a row of the table is an output channel
of the head (`TiedHead`).

NF4 (`NF4Linear`, `NF4Embedding`). 4.127 bits a weight, multiplied as floats: on CUDA each tile is
read back inside the kernel, elsewhere one layer at a time, so no float copy of the model ever
exists.

Scales stay float32 whatever `.to(dtype)` asks for; `compute_dtype` is the dtype of a layer's
output.
"""

import warnings
from functools import cache

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import affine, nf4

HEAD_TILE_ROWS = 4096


class QuantizedLayer(nn.Module):
    """What all layers here share: frozen buffers, float32 scales, a compute dtype."""

    SCALES: tuple[str, ...] = ()

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.compute_dtype = dtype

    def _apply(self, fn, recurse=True):
        """Move to a device or dtype as any module does, but leave the scales' precision alone."""
        before = {name: self._buffers[name] for name in self.SCALES}
        super()._apply(fn, recurse)
        for name, scale in before.items():
            if self._buffers[name].dtype != scale.dtype:
                self._buffers[name] = scale.to(self._buffers[name].device)
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype)).dtype
        return self

    def quantization_state(self) -> dict[str, Tensor]:
        """The buffers, by name, that hold codes and scales (a bias is not among them)."""
        return dict(self.named_buffers(recurse=False))


class Int8Linear(QuantizedLayer):
    """`y = x @ W.T + bias` with W int8 per output channel and x int8 per token.

    weight        int8 `[out, in]`, contiguous
    weight_scale  float32 `[out]`
    bias          compute dtype `[out]`, or None
    """

    SCALES = ("weight_scale",)

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device=None
    ):
        super().__init__(dtype)
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer(
            "weight", torch.empty(out_features, in_features, dtype=torch.int8, device=device)
        )
        self.register_buffer(
            "weight_scale", torch.empty(out_features, dtype=torch.float32, device=device)
        )
        self.bias = _frozen(torch.empty(out_features, dtype=dtype, device=device)) if bias else None

    @torch.no_grad()
    def quantize_(self, weight: Tensor, bias: Tensor | None, name: str) -> "Int8Linear":
        """Fill from a float weight `[out, in]`. Raises UserError, with `name`, for NaN or infinity."""
        quantized = affine.quantize_tensor(weight, per="channel", name=name)
        self.weight.copy_(quantized.codes)
        self.weight_scale.copy_(quantized.scale)
        if self.bias is not None:
            self.bias.copy_(bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., in]` -> `[..., out]` in the dtype of x."""
        return int8_linear(x, self.weight, self.weight_scale, self.bias)

    def extra_repr(self) -> str:
        return f"in={self.in_features}, out={self.out_features}, bias={self.bias is not None}, int8"


class Int8Embedding(QuantizedLayer):
    """A lookup table with int8 rows: weight int8 `[n, d]`, weight_scale float32 `[n]`."""

    SCALES = ("weight_scale",)

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, device=None):
        super().__init__(dtype)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.register_buffer(
            "weight", torch.empty(num_embeddings, embedding_dim, dtype=torch.int8, device=device)
        )
        self.register_buffer(
            "weight_scale", torch.empty(num_embeddings, dtype=torch.float32, device=device)
        )

    @torch.no_grad()
    def quantize_(self, weight: Tensor, name: str) -> "Int8Embedding":
        """Fill from a float table `[n, d]`. Raises UserError, with `name`, for NaN or infinity."""
        quantized = affine.quantize_tensor(weight, per="channel", name=name)
        self.weight.copy_(quantized.codes)
        self.weight_scale.copy_(quantized.scale)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """ids (int64, any shape) -> `[..., d]` in the compute dtype."""
        kernels = kernels_for(ids.device)
        if kernels is not None:
            return kernels.int8_embedding(ids, self.weight, self.weight_scale, self.compute_dtype)
        return affine.dequantize(self.weight[ids], self.weight_scale[ids].unsqueeze(-1)).to(
            self.compute_dtype
        )

    def head(self, x: Tensor) -> Tensor:
        """x `[..., d]` -> `[..., n]`: the table as the weight of a linear layer."""
        return int8_linear(x, self.weight, self.weight_scale, None)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, int8"


class NF4Layer(QuantizedLayer):
    """A matrix `[rows, columns]` in NF4, its codes flattened row by row; the buffers are the fields
    of `nf4.NF4`.

    weight             uint8 `[rows * columns / 2]`, two codes a byte, the first in the high nibble
    scale_codes        uint8 `[blocks]`, blocks = ceil(rows * columns / 64)
    scale_absmax       float32 `[ceil(blocks / 256)]`
    scale_offset       float32 `[]`
    """

    SCALES = ("scale_absmax", "scale_offset")

    def __init__(self, rows: int, columns: int, dtype: torch.dtype, device=None):
        super().__init__(dtype)
        if columns % 2:
            raise ValueError(
                f"a row of {columns} codes ends within a byte: NF4 needs an even width"
            )
        self.rows, self.columns = rows, columns
        blocks = -(-rows * columns // nf4.BLOCK)
        groups = -(-blocks // nf4.SCALES_PER_BLOCK)
        self.register_buffer(
            "weight", torch.empty(rows * columns // 2, dtype=torch.uint8, device=device)
        )
        self.register_buffer("scale_codes", torch.empty(blocks, dtype=torch.uint8, device=device))
        self.register_buffer(
            "scale_absmax", torch.empty(groups, dtype=torch.float32, device=device)
        )
        self.register_buffer("scale_offset", torch.empty((), dtype=torch.float32, device=device))

    @torch.no_grad()
    def fill_(self, weight: Tensor, fit: str, name: str) -> None:
        """Quantize a float matrix `[rows, columns]` into the buffers."""
        quantized = nf4.quantize(weight, fit=fit, name=name)
        self.weight.copy_(quantized.packed)
        self.scale_codes.copy_(quantized.scale_codes)
        self.scale_absmax.copy_(quantized.scale_absmax)
        self.scale_offset.copy_(quantized.scale_offset)

    def block_scales(self) -> Tensor:
        """The scale of each block of 64, float32 `[blocks]`, read back from its byte."""
        return nf4.read_scales(self.scale_codes, self.scale_absmax, self.scale_offset)

    def dequantize(self) -> Tensor:
        """The whole matrix as floats, `[rows, columns]` in the compute dtype."""
        values = nf4.dequantize(self.weight, self.block_scales(), self.rows * self.columns)
        return values.view(self.rows, self.columns).to(self.compute_dtype)

    def read_rows(self, rows: Tensor) -> Tensor:
        """Only the rows asked for: int64 `[...]` -> `[..., columns]` in the compute dtype."""
        packed = self.weight.view(self.rows, self.columns // 2)[rows]
        element = rows.unsqueeze(-1) * self.columns + torch.arange(self.columns, device=rows.device)
        block = element // nf4.BLOCK
        absmax = self.scale_absmax[block // nf4.SCALES_PER_BLOCK]
        scales = (
            nf4.dynamic_map(rows.device)[self.scale_codes[block].int()] * absmax + self.scale_offset
        )
        values = nf4.byte_table(rows.device)[packed.int()].flatten(-2)
        return (values * scales).to(self.compute_dtype)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, nf4"


class NF4Linear(NF4Layer):
    """`y = x @ W.T + bias` with W `[out, in]` in NF4 and x in the compute dtype."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, device=None
    ):
        super().__init__(out_features, in_features, dtype, device)
        self.in_features, self.out_features = in_features, out_features
        self.bias = _frozen(torch.empty(out_features, dtype=dtype, device=device)) if bias else None

    @torch.no_grad()
    def quantize_(
        self, weight: Tensor, bias: Tensor | None, name: str, fit: str = "mse"
    ) -> "NF4Linear":
        """Fill from a float weight `[out, in]`. Raises UserError, with `name`, for NaN or infinity."""
        self.fill_(weight, fit, name)
        if self.bias is not None:
            self.bias.copy_(bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., in]` -> `[..., out]` in the dtype of x."""
        kernels = kernels_for(x.device)
        if kernels is None:
            return nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)
        return kernels.nf4_linear(x, self)


class NF4Embedding(NF4Layer):
    """A lookup table in NF4 that reads back the rows that are looked up."""

    @torch.no_grad()
    def quantize_(self, weight: Tensor, name: str, fit: str = "mse") -> "NF4Embedding":
        """Fill from a float table `[n, d]`. Raises UserError, with `name`, for NaN or infinity."""
        self.fill_(weight, fit, name)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        """ids (int64, any shape) -> `[..., d]` in the compute dtype."""
        kernels = kernels_for(ids.device)
        return self.read_rows(ids) if kernels is None else kernels.nf4_embedding(ids, self)

    def head(self, x: Tensor) -> Tensor:
        """x `[..., d]` -> `[..., n]`: the table as the weight of a linear layer, read back tile by
        tile.
        """
        tiles = torch.arange(self.rows, device=x.device).split(HEAD_TILE_ROWS)
        return torch.cat(
            [nn.functional.linear(x, self.read_rows(rows).to(x.dtype)) for rows in tiles], dim=-1
        )


class TiedHead(nn.Module):
    """A language-model head that multiplies by the token embedding's own codes and stores nothing
    itself.
    """

    def __init__(self, embedding: Int8Embedding | NF4Embedding):
        super().__init__()
        self._embedding = (
            embedding,
        )  # in a tuple, so that it is not registered (and saved) a second time

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states `[..., d]` -> logits `[..., n]`."""
        return self._embedding[0].head(x)


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Quantize the rows of `x`, multiply as integers, scale back, add the bias; shapes as in
    `Int8Linear`.
    """
    kernels = kernels_for(x.device)
    if kernels is not None:
        return kernels.int8_linear(x.contiguous(), weight, weight_scale, bias)
    codes, scale = affine.quantize_rows(x.reshape(-1, x.shape[-1]))
    y = int8_matmul(codes, weight).float() * scale * weight_scale
    y = (y if bias is None else y + bias).to(x.dtype)
    return y.view(*x.shape[:-1], weight.shape[0])


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The exact product int8 `[m, k]` x int8 `[n, k]` -> int32 `[m, n]`, by torch."""
    if not a.is_cuda:
        return torch._int_mm(a, b.t())
    # cuBLAS wants more than 16 rows and multiples of 8 elsewhere. Zeros change no sum.
    (m, k), n = a.shape, b.shape[0]
    a = nn.functional.pad(a, (0, -k % 8, 0, max(0, 17 - m)))
    b = nn.functional.pad(b, (0, -k % 8, 0, -n % 8))
    return torch._int_mm(a, b.t())[:m, :n]


def kernels_for(device: torch.device):
    """The Triton kernels where `device` is a GPU that can run them, else None: torch then computes
    the same integers.

    Falls back, with a warning, without Triton and on GPUs before Ampere. Raises UserError for GPUs
    before Turing (7.5), which have no int8 matrix product at all.
    """
    return _kernels_on(device) if device.type == "cuda" else None


@cache  # beneath a plain function, because torch.compile looks through caches and says so
def _kernels_on(device: torch.device):
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        raise UserError(
            f"this GPU (compute capability {major}.{minor}) has no int8 matrix product, which needs 7.5 or newer: use --device cpu"
        )
    reason = f"this GPU (compute capability {major}.{minor}) is older than the Triton kernels' 8.0"
    if major >= 8:
        try:
            from . import kernels

            return kernels
        except ImportError:
            reason = "Triton is not installed (pip install triton)"
    warnings.warn(
        f"{reason}: quantized layers run through torch, with the same results but slower",
        stacklevel=2,
    )
    return None


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
