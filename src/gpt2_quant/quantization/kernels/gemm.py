"""Products of 8-bit codes on the tensor cores, with a fused epilogue.

    y[m, n] = x_scale[m] * w_scale[n] * sum_k xq[m, k] wq[n, k] + b[n] [+ residual[m, n]]

Codes are int8, summed in int32, exact for K up to 133,000; or e4m3, summed in float32, of which
Hopper keeps 14 bits (arXiv 2412.19437, section 3.5.2): of 32 products and their sum so far each is
cut 2^-13 below the largest, so the error stays under 33 ceil(K / 32) 2^-13 of the largest. Cut
towards zero that is, computed for normal data at K = 3,072, 0.1% of the results' root mean square;
rounding to e4m3 costs 3.8%. So partial sums are not moved to full registers (a second tile of
them, `max_num_imprecise_acc`).

Weights are `[out, in]`, since Hopper's 8-bit wgmma requires k as both operands' fastest axis in
shared memory. Its copy engine (TMA) moves the tiles, without masks at the edge.

GPT-2's products are small: 2,048 x 768 outputs are 96 tiles of 128 x 128 for 132 multiprocessors.
Two to four smaller tiles on each overlap computing with loading and storing. A block's four
products with bias and residual, in microseconds on an H200 (torch 2.11, Triton 3.6):

    tokens x width    int8  e4m3  torch._scaled_mm (fast sums)  FP16 addmm
    2,048 x 768         46    43    69 (66)                       63
    8,192 x 768        135   128   173 (157)                     203
    2,048 x 1,600      141   134   164 (143)                     216
    8,192 x 1,600      541   514   580 (496)                     874

The library sums e4m3 as here only when asked for fast sums, and adds the residual in a second pass.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad
from triton.tools.tensor_descriptor import TensorDescriptor

from .launch import await_predecessor, hopper_options, multiprocessors

_TMA_BYTES = 16  # alignment of the copy engine's rows


@triton.jit
def _corner(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """First row and column of a program's tile: 8 of one column, then the next, share the L2."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    group, within = program // (8 * tiles_n), program % (8 * tiles_n)
    group_m = min(tiles_m - group * 8, 8)
    return (group * 8 + within % group_m) * BLOCK_M, within // group_m * BLOCK_N


@triton.jit
def _finish(
    total, first_row, first_column, out, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr,
    M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    is_row, is_column = row < M - first_row, column < N - first_column
    x_scale = tl.load(x_scale_ptr + first_row + row, mask=is_row, other=0.0)
    weight_scale = tl.load(weight_scale_ptr + first_column + column, mask=is_column, other=0.0)
    result = total.to(tl.float32) * x_scale[:, None] * weight_scale[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + first_column + column, mask=is_column, other=0.0)
        result += bias.to(tl.float32)[None, :]
    if residual_ptr is not None:
        # The corner with 64 bits, what lies inside the tile with 32: fewer registers.
        corner = residual_ptr + first_row.to(tl.int64) * N + first_column
        inside = is_row[:, None] & is_column[None, :]
        residual = tl.load(corner + row[:, None] * N + column[None, :], mask=inside, other=0.0)
        result += residual.to(tl.float32)
    out.store([first_row, first_column], result.to(out.dtype))


@triton.jit
def _prefetch_weight(weight_ptr, N, K, LINES: tl.constexpr):
    """Prefetch this program's part of the weight into the L2, in lines of 128 bytes."""
    lines = tl.cdiv(N * K, 128)
    part = tl.cdiv(lines, tl.num_programs(0))
    for start in range(0, part, LINES):
        line = tl.minimum(tl.program_id(0) * part + start + tl.arange(0, LINES), lines - 1)
        address = (weight_ptr + line.to(tl.int64) * 128).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [address],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _gemm_kernel(
    x, weight, weight_rest, out, out_rest, weight_ptr, x_scale_ptr, weight_scale_ptr, bias_ptr,
    residual_ptr, M, N, K, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, REST_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PERSISTENT: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    if HOPPER:
        # The weight does not depend on the predecessor.
        _prefetch_weight(weight_ptr, N, K, 128)
    await_predecessor(HOPPER)
    SUM: tl.constexpr = tl.int32 if x.dtype == tl.int8 else tl.float32
    if PERSISTENT:
        tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
        # Flattened: the pipeline runs on across tiles.
        for program in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            row, column = _corner(program, M, N, BLOCK_M, BLOCK_N)
            total = tl.zeros((BLOCK_M, BLOCK_N), dtype=SUM)
            for k in range(0, K, BLOCK_K):
                codes = x.load([row, k])
                total = tl.dot(codes, weight.load([column, k]).T, total, out_dtype=SUM)
            # In two halves: half the shared memory on the way out leaves room for a second program.
            HALF: tl.constexpr = BLOCK_N // 2
            left, right = total.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1).split()
            _finish(left, row, column, out, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr,
                    M, N, BLOCK_M, HALF)  # fmt: skip
            _finish(right, row, column + HALF, out, x_scale_ptr, weight_scale_ptr, bias_ptr,
                    residual_ptr, M, N, BLOCK_M, HALF)  # fmt: skip
    else:
        row, column = _corner(tl.program_id(0), M, N, BLOCK_M, BLOCK_N + REST_N)
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=SUM)
        rest = tl.zeros((BLOCK_M, REST_N or 1), dtype=SUM)
        for k in range(0, K, BLOCK_K):
            codes = x.load([row, k])
            total = tl.dot(codes, weight.load([column, k]).T, total, out_dtype=SUM)
            if REST_N:
                narrow = weight_rest.load([column + BLOCK_N, k]).T
                rest = tl.dot(codes, narrow, rest, out_dtype=SUM)
        _finish(total, row, column, out, x_scale_ptr, weight_scale_ptr, bias_ptr, residual_ptr,
                M, N, BLOCK_M, BLOCK_N)  # fmt: skip
        if REST_N:
            _finish(rest, row, column + BLOCK_N, out_rest, x_scale_ptr, weight_scale_ptr, bias_ptr,
                    residual_ptr, M, N, BLOCK_M, REST_N)  # fmt: skip


def tile_sizes(m: int, n: int, k: int, dtype: torch.dtype = torch.int8) -> dict[str, int]:
    """The tile for `[m, k] x [n, k]` of codes in `dtype`.

    Chosen from up to 14 candidates by their times on an H100, at the four products of all GPT-2
    widths and nine numbers of tokens, 1 to 16,384: int8 is on average 1% slower than the fastest,
    at the worst shape 11%. e4m3, on an H200 at five numbers of tokens from 1,024 on: 2% and 13%.

    PERSISTENT: so many programs a multiprocessor, each of which takes tile after tile and loads the
    next while it stores; 0: a program a tile. REST_N: a second, narrower sum makes tiles 192 wide,
    2.9 per multiprocessor for 2,048 x 2,304 outputs.
    """
    floats, few, tiles = dtype != torch.int8, m < 1024, triton.cdiv(m, 64) * triton.cdiv(n, 64)
    rest, persistent = 0, 0
    if m <= 16:
        sizes = (16, 32, 512, 3) if k > 768 else (16, 32, 256, 4)
    elif few and tiles <= (100 if k > n else 70):
        sizes = (64, 32, 256, 4)
    elif few and tiles <= 256:
        sizes = (64, 64, 256, 3)
    elif tiles <= (350 if floats and not few else 528):
        sizes = (64, 128, 128, 4)  # two a multiprocessor at most
    elif max(n, k) <= 768 or (tiles <= 720 and not floats):
        sizes = (64, 128, 128, 3)  # three
    elif 1088 < tiles <= 1188:
        sizes, rest = (64, 128, 128, 2), 64
    else:
        sizes, persistent = (128, 128, 128, 3), 2 if n > k else 0
    chosen = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_stages"), sizes, strict=True))
    return chosen | {"REST_N": rest, "PERSISTENT": persistent}


def scaled_gemm(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """`x_scale * weight_scale * (x weight^T) + bias [+ residual]`, `[m, n]`.

    All are contiguous: x `[m, k]` and weight `[n, k]` int8 or both e4m3, x_scale float32 `[m, 1]`,
    weight_scale float32 `[n]`, bias float `[n]`, residual float `[m, n]`.
    """
    (m, k), n = x.shape, weight.shape[0]
    if weight.shape[1] != k:
        raise ValueError(f"x has {k} columns and the weight [out, in] is {tuple(weight.shape)}")
    width = n + -n % (_TMA_BYTES // dtype.itemsize)  # the result is a slice of it
    out = torch.empty((m, width), dtype=dtype, device=x.device)
    if m == 0 or n == 0:
        return out[:, :n]
    if k % _TMA_BYTES:
        more = 0, -k % _TMA_BYTES  # of zero bytes, which are zeros in both dtypes
        x, weight = (pad(codes.view(torch.uint8), more).view(codes.dtype) for codes in (x, weight))
    sizes = tile_sizes(m, n, k, x.dtype)
    block_m, block_n, block_k = sizes["BLOCK_M"], sizes["BLOCK_N"], sizes["BLOCK_K"]
    rest_n, out_n = sizes["REST_N"], block_n // 2 if sizes["PERSISTENT"] else block_n
    programs = triton.cdiv(m, block_m) * triton.cdiv(n, block_n + rest_n)
    if sizes["PERSISTENT"]:
        programs = min(programs, sizes["PERSISTENT"] * multiprocessors(x.device))
    tile = TensorDescriptor.from_tensor
    _gemm_kernel[(programs,)](
        tile(x, [block_m, block_k]),
        tile(weight, [block_n, block_k]),
        tile(weight, [rest_n, block_k]) if rest_n else None,
        tile(out, [block_m, out_n]),
        tile(out, [block_m, rest_n]) if rest_n else None,
        weight, x_scale, weight_scale, bias, residual, m, n, x.shape[1],
        **sizes, num_warps=4, **hopper_options(x.device),
    )  # fmt: skip
    return out[:, :n]
