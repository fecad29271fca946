"""Kernels that hold whole rows, a token's activations, in registers.

A row's scale needs its absmax. So the kernel that computes the row (LayerNorm, GELU) also quantizes
it, to the codes of `affine.quantize_rows` or `fp8.quantize_rows`: the floats are never written to
memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..affine import SMALLEST_SCALE, SYMMETRIC_MAX
from .launch import await_predecessor, hopper_options, read

_INT8_MAX = tl.constexpr(float(SYMMETRIC_MAX))
_E4M3_MAX = tl.constexpr(448.0)
_SMALLEST_SCALE = tl.constexpr(SMALLEST_SCALE)
# float32 from 2**23 to 2**24 are the integers: adding 1.5 * 2**23 rounds to one, half to even. As a
# fused multiply-add it rounds x / scale once, not twice: a code within 2**-17 of a tie can differ.
_ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _gelu(x, HOPPER: tl.constexpr):
    """GELU's tanh form, 0.5 x (1 + tanh u) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    if HOPPER:
        # One instruction (relative error 2^-11, float16's own).
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [u], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 * x * (1.0 + tanh)
    return x * tl.sigmoid(2.0 * u)  # 1 + tanh u = 2 sigmoid(2 u)


@triton.jit
def _store_codes(values, at, inside, rows, is_row, codes_ptr, scale_ptr):
    """Quantize and store rows, float32 `[ROWS, BLOCK]`, 0 outside, in the dtype of the codes."""
    INTEGERS: tl.constexpr = codes_ptr.dtype.element_ty == tl.int8
    CODE_MAX: tl.constexpr = _INT8_MAX if INTEGERS else _E4M3_MAX
    absmax = tl.max(tl.abs(values), axis=1)
    scale = tl.maximum(tl.div_rn(absmax, CODE_MAX), _SMALLEST_SCALE)
    # One quotient per row: one per element takes three times as long as moving the data.
    codes = values * tl.div_rn(1.0, scale)[:, None]
    if INTEGERS:
        codes = (codes + _ROUNDER) - _ROUNDER
    tl.store(codes_ptr + at, codes.to(codes_ptr.dtype.element_ty), mask=inside)
    tl.store(scale_ptr + rows, scale, mask=is_row)


@triton.jit
def _quantize_kernel(
    x_ptr, weight_ptr, bias_ptr, codes_ptr, scale_ptr, n_rows, n_columns: tl.constexpr, epsilon,
    GELU: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    program = tl.program_id(0)
    if GELU:
        # The L2 holds a part. Last rows first: they were written last; the next product begins with
        # the first, whose codes then are newest. Each float is read once.
        program = tl.num_programs(0) - 1 - program
    rows = program.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    is_row, is_column = rows < n_rows, columns < n_columns
    inside = is_row[:, None] & is_column[None, :]
    at = rows[:, None] * n_columns + columns[None, :]
    values = tl.load(x_ptr + at, inside, 0.0, eviction_policy="evict_first" if GELU else "")
    values = values.to(tl.float32)
    if GELU:
        # The width is known while compiling: what lies outside is not computed.
        values = tl.where(is_column[None, :], _gelu(values, HOPPER), 0.0)
    if weight_ptr is not None:  # LayerNorm
        weight = read(weight_ptr + columns, is_column)
        bias = read(bias_ptr + columns, is_column)
        centred = tl.where(inside, values - (tl.sum(values, axis=1) / n_columns)[:, None], 0.0)
        variance = tl.sum(centred * centred, axis=1) / n_columns
        values = centred * tl.rsqrt(variance + epsilon)[:, None] * weight[None, :] + bias[None, :]
    _store_codes(values, at, inside, rows, is_row, codes_ptr, scale_ptr)


@triton.jit
def _embedding_kernel(
    ids_ptr, codes_ptr, scale_ptr, position_codes_ptr, position_scale_ptr, out_ptr,
    n_columns, length, BLOCK: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns
    token = tl.load(ids_ptr + row).to(tl.int64)
    values = read(codes_ptr + token * n_columns + columns, inside)
    values *= tl.load(scale_ptr + token)
    if position_codes_ptr is not None:
        position = row % length
        offset = read(position_codes_ptr + position * n_columns + columns, inside)
        values += offset * tl.load(position_scale_ptr + position)
    tl.store(out_ptr + row * n_columns + columns, values.to(out_ptr.dtype.element_ty), mask=inside)


def quantize_rows(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of affine.py (int8) or fp8.py (e4m3) of a contiguous x."""
    return _launch(dtype, x)


def gelu_quantize(x: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """`quantize_rows(gelu(x))` with GPT-2's tanh GELU ("gelu_new")."""
    return _launch(dtype, x, gelu=True)


def layer_norm_quantize(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype = torch.int8
) -> tuple[Tensor, Tensor]:
    """`quantize_rows(layer_norm(x))`, mean and variance in float32."""
    return _launch(dtype, x, weight, bias, epsilon)


def _launch(
    dtype: torch.dtype, x: Tensor, weight=None, bias=None, epsilon=0.0, gelu=False
) -> tuple[Tensor, Tensor]:
    n_rows, n_columns = x.shape
    codes = torch.empty((n_rows, n_columns), dtype=dtype, device=x.device)
    scale = torch.empty((n_rows, 1), dtype=torch.float32, device=x.device)
    if n_rows:
        block = triton.next_power_of_2(n_columns)
        # 64 values a thread; long rows are spread further while the GPU is not full.
        rows = 1 if block > 1024 else 2
        warps = max(1, rows * block // 2048) if rows == 2 or n_rows > 4096 else 4
        _quantize_kernel[(triton.cdiv(n_rows, rows),)](
            x, weight, bias, codes, scale, n_rows, n_columns, epsilon, GELU=gelu, ROWS=rows,
            BLOCK=block, num_warps=warps, **hopper_options(x.device),
        )  # fmt: skip
    return codes, scale


def read_rows(
    ids: Tensor, codes: Tensor, scale: Tensor, dtype: torch.dtype,
    position_codes: Tensor | None = None, position_scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """ids `[...]` -> rows `[..., n]` in `dtype`, optionally plus those of the positions, the last
    axis of ids. Codes are int8 or e4m3 `[rows, n]`, scales float32 `[rows]`.
    """
    n_columns = codes.shape[1]
    out = torch.empty((*ids.shape, n_columns), dtype=dtype, device=codes.device)
    if ids.numel():
        _embedding_kernel[(ids.numel(),)](
            ids.contiguous(), codes, scale, position_codes, position_scale, out, n_columns,
            ids.shape[-1], BLOCK=triton.next_power_of_2(n_columns), num_warps=4,
            **hopper_options(codes.device),
        )  # fmt: skip
    return out
