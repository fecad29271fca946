"""Dequantizing NF4 (see `quantization/nf4.py`):

w = levels[code] * (dynamic_map[scale_code] * scale_absmax + scale_offset)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..nf4 import BLOCK, SCALES_PER_BLOCK, dynamic_map, levels
from .launch import await_predecessor, hopper_options

_BLOCK = tl.constexpr(BLOCK)
_SCALES_PER_BLOCK = tl.constexpr(SCALES_PER_BLOCK)
_BYTES = 1024


@triton.jit
def _read_bytes(
    byte, inside, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr,
    level_ptr, BYTES: tl.constexpr,
):  # fmt: skip
    """The weights of these bytes, float32 `[2 * BYTES]`."""
    packed = tl.load(packed_ptr + byte, mask=inside, other=0).to(tl.int32)
    blocks = (2 * byte) // _BLOCK
    codes = tl.load(scale_codes_ptr + blocks, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(scale_absmax_ptr + blocks // _SCALES_PER_BLOCK, mask=inside, other=0.0)
    scale = tl.load(map_ptr + codes) * absmax + tl.load(scale_offset_ptr)
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


def nf4_dequantize(stored, dtype: torch.dtype) -> Tensor:
    """An `NF4Weight` as floats `[rows, columns]`."""
    out = torch.empty((stored.rows, stored.columns), dtype=dtype, device=stored.weight.device)
    if out.numel():
        programs = triton.cdiv(stored.weight.numel(), _BYTES)
        _dequantize_kernel[(programs,)](
            *_fields(stored), out, out.numel(), BYTES=_BYTES, **hopper_options(out.device)
        )
    return out


def nf4_embedding(ids: Tensor, table) -> Tensor:
    """ids `[...]` -> rows of an `NF4Embedding`, `[..., columns]` in its compute dtype."""
    out = torch.empty((*ids.shape, table.columns), dtype=table.compute_dtype, device=ids.device)
    if out.numel():
        row_bytes = triton.next_power_of_2(table.columns // 2)
        _embedding_kernel[(ids.numel(),)](
            ids.contiguous(), *_fields(table), out, table.columns,
            BYTES=row_bytes, **hopper_options(out.device),
        )  # fmt: skip
    return out


def _fields(stored) -> tuple[Tensor, ...]:
    device = stored.weight.device
    state = (stored.weight, stored.scale_codes, stored.scale_absmax, stored.scale_offset)
    return (*state, dynamic_map(device), levels(device))
