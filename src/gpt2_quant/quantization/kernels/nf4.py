"""Linear layers on 4-bit weights: a tile is unpacked on its way to the tensor cores, never the
model.

Reading a weight back takes three look-ups: its code's level, its block's scale code in the dynamic
map, and the absmax that 256 blocks share (see `quantization/nf4.py`),

    w = levels[code] * (dynamic_map[scale_code] * scale_absmax + scale_offset).

In `nf4_linear` every tile of the product unpacks the weights it needs: they cross the memory bus at
4.1 bits each, which counts while the batch is small. From a few hundred rows on it is better to
unpack once: `nf4_dequantize` fills a buffer that dies right after an ordinary product.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..nf4 import BLOCK, SCALES_PER_BLOCK, dynamic_map, levels
from .launch import await_predecessor, hopper_options

_BLOCK = tl.constexpr(BLOCK)
_SCALES_PER_BLOCK = tl.constexpr(SCALES_PER_BLOCK)
_ROWS_FOR_TILEWISE = 128
_BYTES = 1024


@triton.jit
def _read_scales(blocks, inside, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr):
    codes = tl.load(scale_codes_ptr + blocks, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(scale_absmax_ptr + blocks // _SCALES_PER_BLOCK, mask=inside, other=0.0)
    return tl.load(map_ptr + codes) * absmax + tl.load(scale_offset_ptr)


@triton.jit
def _read_bytes(
    byte, inside, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr,
    level_ptr, BYTES: tl.constexpr,
):  # fmt: skip
    """The weights float32 `[2 * BYTES]` that stand in these bytes."""
    packed = tl.load(packed_ptr + byte, mask=inside, other=0).to(tl.int32)
    blocks = (2 * byte) // _BLOCK
    scale = _read_scales(
        blocks, inside, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr
    )
    first = tl.load(level_ptr + (packed >> 4)) * scale
    second = tl.load(level_ptr + (packed & 15)) * scale
    return tl.join(first, second).reshape(2 * BYTES)


@triton.jit
def _dequantize_kernel(
    packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr, out_ptr, n,
    BYTES: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    program = tl.program_id(0).to(tl.int64)
    byte = program * BYTES + tl.arange(0, BYTES)
    values = _read_bytes(byte, byte < tl.cdiv(n, 2), packed_ptr, scale_codes_ptr, scale_absmax_ptr,
                         scale_offset_ptr, map_ptr, level_ptr, BYTES)  # fmt: skip
    at = program * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + at, values.to(out_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def _embedding_kernel(
    ids_ptr, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr,
    out_ptr, n_columns, BYTES: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    byte = tl.arange(0, BYTES)
    first = tl.load(ids_ptr + row).to(tl.int64) * n_columns // 2
    values = _read_bytes(first + byte, 2 * byte < n_columns, packed_ptr, scale_codes_ptr,
                         scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr, BYTES)  # fmt: skip
    columns = tl.arange(0, 2 * BYTES)
    values = values.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * n_columns + columns, values, mask=columns < n_columns)


@triton.jit
def _gemm_kernel(
    x_ptr, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr,
    bias_ptr, out_ptr, M, N, K,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    # One step of the loop is one NF4 block: each row of the weight tile then has a single scale.
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = columns < N
    k = tl.arange(0, _BLOCK)
    byte = tl.arange(0, _BLOCK // 2)
    weight_rows = (columns % N).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, _BLOCK):
        x = tl.load(x_ptr + (rows % M)[:, None].to(tl.int64) * K + start + k[None, :])
        first = weight_rows * K + start
        packed = tl.load(packed_ptr + (first // 2)[:, None] + byte[None, :]).to(tl.int32)
        levels = tl.join(tl.load(level_ptr + (packed >> 4)), tl.load(level_ptr + (packed & 15)))
        scale = _read_scales(
            first // _BLOCK, is_column, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr
        )
        weight = (levels.reshape(BLOCK_N, _BLOCK) * scale[:, None]).to(x.dtype)
        total = tl.dot(x, weight.T, total, input_precision="ieee")
    if bias_ptr is not None:
        total += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[None, :]
    out_at = rows[:, None].to(tl.int64) * N + columns[None, :]
    inside = (rows < M)[:, None] & is_column[None, :]
    tl.store(out_ptr + out_at, total.to(out_ptr.dtype.element_ty), mask=inside)


def nf4_dequantize(stored, dtype: torch.dtype) -> Tensor:
    """The matrix of an `NF4Linear` or `NF4Embedding`, `[rows, columns]` in `dtype`."""
    out = torch.empty((stored.rows, stored.columns), dtype=dtype, device=stored.weight.device)
    if out.numel():
        programs = triton.cdiv(stored.weight.numel(), _BYTES)
        _dequantize_kernel[(programs,)](
            *_fields(stored), out, out.numel(), BYTES=_BYTES, **hopper_options(out.device)
        )
    return out


def nf4_embedding(ids: Tensor, table) -> Tensor:
    """Rows of an `NF4Embedding`: integers `[...]` -> `[..., columns]` in its compute dtype."""
    out = torch.empty((*ids.shape, table.columns), dtype=table.compute_dtype, device=ids.device)
    if out.numel():
        row_bytes = triton.next_power_of_2(table.columns // 2)
        _embedding_kernel[(ids.numel(),)](
            ids.contiguous(), *_fields(table), out, table.columns,
            BYTES=row_bytes, **hopper_options(out.device),
        )  # fmt: skip
    return out


def nf4_linear(x: Tensor, layer, bias: Tensor | None) -> Tensor:
    """`x W^T + bias` with W an `NF4Linear`'s codes, rounded to x's dtype as they are unpacked.

    x: float `[..., k]`. Returns `[..., n]` in x's dtype, summed in float32. More than 128 rows, or
    k no multiple of 64 (then a block spans two rows), go through a buffer of one layer.
    """
    n, k = layer.rows, layer.columns
    rows = x.reshape(-1, k)
    m = len(rows)
    if m > _ROWS_FOR_TILEWISE or k % BLOCK:
        return torch.nn.functional.linear(x, nf4_dequantize(layer, x.dtype), bias)
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if out.numel():
        block_m = max(16, triton.next_power_of_2(min(m, 64)))
        _gemm_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, 32))](
            rows, *_fields(layer), bias, out, m, n, k, BLOCK_M=block_m, BLOCK_N=32,
            num_warps=4, num_stages=3, **hopper_options(out.device),
        )  # fmt: skip
    return out.view(*x.shape[:-1], n)


def _fields(stored) -> tuple[Tensor, ...]:
    """The kernels' arguments that describe the weights."""
    device = stored.weight.device
    state = (stored.weight, stored.scale_codes, stored.scale_absmax, stored.scale_offset)
    return (*state, dynamic_map(device), levels(device))
