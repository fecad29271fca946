"""int8 x int8 -> int32 on the tensor cores, with everything that follows the product in its epilogue.

`y = x W^T + b` under quantization: x is codes `xq` with a scale for each row m, W codes `wq` `[out, in]` with a scale for
each output channel n. Both scales are constant along the summation, so they leave the sum,

    y[m, n] = x_scale[m] * w_scale[n] * sum_k xq[m, k] wq[n, k] + b[n],

and the sum is exact in int32: |sum| <= 127^2 * K < 2^31 for K up to 133,000 (GPT-2's largest is 3,072). Both operands have k
as their fastest axis, which is the only order in which Hopper's integer wgmma reads shared memory; that is why weights
are stored `[out, in]` and not as GPT-2's Conv1D has them.

A result leaves the kernel once, as float: bias, GELU and the residual stream are added while the tile is in registers.

Tile sizes. A GPU runs tiles in waves of one tile a multiprocessor slot, and GPT-2's products are small (2,048 x 768
outputs are 96 tiles of 128 x 128 for 132 multiprocessors), so the best tile depends on the shape. `TILES` was found by
timing candidates on an H200; no search runs when the program starts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import _gelu, quantize_rows


@triton.jit
def _int8_gemm_kernel(
    x_ptr, weight_ptr, out_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr, M, N, K,
    SCALED: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr, HAS_RESIDUAL: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs take GROUP_M tiles of one column of tiles, so that what they share is still in the L2 cache.
    program = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = program // (GROUP_M * tiles_n)
    group_m = min(tiles_m - group * GROUP_M, GROUP_M)
    tile_m = group * GROUP_M + (program % (GROUP_M * tiles_n)) % group_m
    tile_n = (program % (GROUP_M * tiles_n)) // group_m

    # A tile's corner is addressed with 64 bits, what lies inside the tile with 32: fewer registers. Rows beyond the edge
    # read the last one again: their products are never stored, and the loads need no mask.
    first_row, first_column = tile_m * BLOCK_M, tile_n * BLOCK_N
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    x_ptrs = x_ptr + first_row.to(tl.int64) * K + tl.minimum(row, M - 1 - first_row)[:, None] * K + k[None, :]
    weight_ptrs = weight_ptr + first_column.to(tl.int64) * K + tl.minimum(column, N - 1 - first_column)[:, None] * K + k[None, :]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, K, BLOCK_K):
        if EVEN_K:
            x = tl.load(x_ptrs)
            weight = tl.load(weight_ptrs)
        else:
            x = tl.load(x_ptrs, mask=k[None, :] < K - start, other=0)
            weight = tl.load(weight_ptrs, mask=k[None, :] < K - start, other=0)
        total = tl.dot(x, weight.T, total, out_dtype=tl.int32)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K

    rows, columns = first_row + row, first_column + column
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    corner = first_row.to(tl.int64) * N + first_column
    where = row[:, None] * N + column[None, :]
    if SCALED:
        x_scale = tl.load(x_scale_ptr + rows, mask=rows < M, other=0.0)
        weight_scale = tl.load(weight_scale_ptr + columns, mask=columns < N, other=0.0)
        result = total.to(tl.float32) * x_scale[:, None] * weight_scale[None, :]
        if HAS_BIAS:
            result += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if GELU:
            result = _gelu(result)
        if HAS_RESIDUAL:
            result += tl.load(residual_ptr + corner + where, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + corner + where, result.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(out_ptr + corner + where, total, mask=inside)


def tile_sizes(m: int, n: int, k: int) -> dict[str, int]:
    """Tile and launch sizes for an `[m, k] x [n, k]` product (see the module's docstring)."""
    block_m = 16 if m <= 16 else 32 if m <= 32 else 64 if m <= 1024 else 128
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": 128 if block_m > 32 else 32,
        "BLOCK_K": 128 if k >= 128 else 64,
        "GROUP_M": 8,
        "num_warps": 8 if block_m == 128 else 4,
        "num_stages": 3,
    }


def int8_gemm(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gelu: bool = False,
    dtype: torch.dtype = torch.float16,
    tiles: dict[str, int] | None = None,
) -> Tensor:
    """The product on codes: `[gelu](x_scale * weight_scale * (x weight^T) + bias) [+ residual]`.

    x, x_scale            int8 `[m, k]`, float32 `[m, 1]`, as the row kernels return them; contiguous
    weight, weight_scale  int8 `[n, k]`, float32 `[n]`; contiguous
    bias, residual        float `[n]`, float `[m, n]` contiguous
    tiles                 launch sizes, for measurements; `tile_sizes` chooses otherwise

    Returns `dtype` `[m, n]`. With both scales None the exact int32 product, without an epilogue.
    """
    (m, k), n = x.shape, weight.shape[0]
    if weight.shape[1] != k:
        raise ValueError(f"x has {k} columns and the weight [out, in] is {tuple(weight.shape)}")
    scaled = x_scale is not None
    out = torch.empty((m, n), dtype=dtype if scaled else torch.int32, device=x.device)
    if out.numel() == 0:
        return out
    sizes = tiles or tile_sizes(m, n, k)
    grid = (triton.cdiv(m, sizes["BLOCK_M"]) * triton.cdiv(n, sizes["BLOCK_N"]),)
    _int8_gemm_kernel[grid](
        x, weight, out, x_scale, weight_scale, bias, residual, m, n, k,
        SCALED=scaled, HAS_BIAS=bias is not None, GELU=gelu, HAS_RESIDUAL=residual is not None,
        EVEN_K=k % sizes["BLOCK_K"] == 0, **sizes,
    )  # fmt: skip
    return out


def int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on floats `[..., k]`: quantize each row, then `int8_gemm`. Returns `[..., n]` in x's dtype."""
    codes, scale = quantize_rows(x.reshape(-1, x.shape[-1]))
    return int8_gemm(codes, scale, weight, weight_scale, bias, dtype=x.dtype).view(*x.shape[:-1], weight.shape[0])
