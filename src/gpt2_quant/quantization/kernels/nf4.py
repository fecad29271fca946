"""Linear layers on 4-bit weights: a tile is unpacked on its way to the tensor cores, never the
model.

Reading a weight back takes three look-ups: its code's level, its block's scale code in the dynamic
map, and the absmax that 256 blocks share,

    w = levels[code] * (dynamic_map[scale_code] * scale_absmax + scale_offset)           (see `quantization/nf4.py`).

Two ways to the same product:

`nf4_linear`      every tile of the product unpacks the weights it needs. Weights cross the memory bus at 4.1 bits each,
                  which is what counts while the batch is small; every tile of rows repeats the
                  unpacking.
`nf4_dequantize`  one layer into a float16 buffer that dies right after its use; the product is then an ordinary one.
                  Unpacked once, so better from a few hundred rows on; one layer (4.5 MiB at most)
                  is float at a time.
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


@triton.jit
def _read_scales(blocks, inside, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr):
    codes = tl.load(scale_codes_ptr + blocks, mask=inside, other=0).to(tl.int32)
    absmax = tl.load(scale_absmax_ptr + blocks // _SCALES_PER_BLOCK, mask=inside, other=0.0)
    return tl.load(map_ptr + codes) * absmax + tl.load(scale_offset_ptr)


@triton.jit
def _dequantize_kernel(
    packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr, out_ptr, n,
    BYTES: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    at = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    inside = at < tl.cdiv(n, 2)
    packed = tl.load(packed_ptr + at, mask=inside, other=0).to(tl.int32)
    scale = _read_scales(
        (2 * at) // _BLOCK, inside, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr
    )
    first = tl.load(level_ptr + (packed >> 4)) * scale
    second = tl.load(level_ptr + (packed & 15)) * scale
    pair = tl.join(first, second).reshape(2 * BYTES)
    where = tl.program_id(0).to(tl.int64) * (2 * BYTES) + tl.arange(0, 2 * BYTES)
    tl.store(out_ptr + where, pair.to(out_ptr.dtype.element_ty), mask=where < n)


@triton.jit
def _nf4_embedding_kernel(
    ids_ptr, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr, out_ptr, n_columns,
    BLOCK_BYTES: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(ids_ptr + row).to(tl.int64) * n_columns
    byte = tl.arange(0, BLOCK_BYTES)
    inside = 2 * byte < n_columns
    packed = tl.load(packed_ptr + first // 2 + byte, mask=inside, other=0).to(tl.int32)
    blocks = (first + 2 * byte) // _BLOCK
    scale = _read_scales(
        blocks, inside, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr
    )
    pair = tl.join(
        tl.load(level_ptr + (packed >> 4)) * scale, tl.load(level_ptr + (packed & 15)) * scale
    )
    columns = tl.arange(0, 2 * BLOCK_BYTES)
    values = pair.reshape(2 * BLOCK_BYTES).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * n_columns + columns, values, mask=columns < n_columns)


@triton.jit
def _nf4_gemm_kernel(
    x_ptr, packed_ptr, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr, level_ptr, bias_ptr, out_ptr, M, N, K,
    HAS_BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, HOPPER: tl.constexpr,
):  # fmt: skip
    await_predecessor(HOPPER)
    # One step of the loop is one NF4 block: each row of the weight tile then has a single scale.
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, _BLOCK)
    byte = tl.arange(0, _BLOCK // 2)
    weight_rows = (columns % N).to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, K, _BLOCK):
        x = tl.load(x_ptr + (rows % M)[:, None].to(tl.int64) * K + start + k[None, :])
        packed = tl.load(packed_ptr + ((weight_rows * K + start) // 2)[:, None] + byte[None, :]).to(
            tl.int32
        )
        levels = tl.join(tl.load(level_ptr + (packed >> 4)), tl.load(level_ptr + (packed & 15)))
        blocks = (weight_rows * K + start) // _BLOCK
        scale = _read_scales(
            blocks, columns < N, scale_codes_ptr, scale_absmax_ptr, scale_offset_ptr, map_ptr
        )
        weight = (levels.reshape(BLOCK_N, _BLOCK) * scale[:, None]).to(x.dtype)
        total = tl.dot(x, weight.T, total, input_precision="ieee")
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + rows[:, None].to(tl.int64) * N + columns[None, :],
        total.to(out_ptr.dtype.element_ty),
        mask=inside,
    )


def nf4_dequantize(stored, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The tensor of `shape` that NF4 codes stand for, in `dtype`.

    stored: an `NF4Layer`, or anything else with `weight`, `scale_codes`, `scale_absmax` and
    `scale_offset` as it has them.
    """
    out = torch.empty(shape, dtype=dtype, device=stored.weight.device)
    if out.numel():
        _dequantize_kernel[(triton.cdiv(stored.weight.numel(), 1024),)](
            *_fields(stored), out, out.numel(), BYTES=1024, **hopper_options(out.device)
        )
    return out


def nf4_embedding(ids: Tensor, table) -> Tensor:
    """The rows of an `NF4Embedding` that are asked for: integers `[...]` -> `[..., columns]` in its
    compute dtype.
    """
    out = torch.empty((*ids.shape, table.columns), dtype=table.compute_dtype, device=ids.device)
    if out.numel():
        block_bytes = triton.next_power_of_2(table.columns // 2)
        _nf4_embedding_kernel[(ids.numel(),)](
            ids.contiguous(),
            *_fields(table),
            out,
            table.columns,
            BLOCK_BYTES=block_bytes,
            **hopper_options(out.device),
        )
    return out


def nf4_linear(x: Tensor, layer) -> Tensor:
    """`x W^T + b` with W an `NF4Linear`'s codes, rounded to x's dtype as they are unpacked; sums in
    float32.

    x: float `[..., k]`. Returns `[..., out_features]` in x's dtype. Few rows are multiplied tile by
    tile; more than 128, or k no multiple of 64 (then a block spans two rows), go through a buffer
    of one layer.
    """
    k, n = x.shape[-1], layer.out_features
    rows = x.reshape(-1, k)
    m = len(rows)
    if m > _ROWS_FOR_TILEWISE or k % BLOCK:
        return torch.nn.functional.linear(
            x, nf4_dequantize(layer, torch.Size((n, k)), x.dtype), layer.bias
        )
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    if out.numel():
        block_m = max(16, triton.next_power_of_2(min(m, 64)))
        _nf4_gemm_kernel[(triton.cdiv(m, block_m), triton.cdiv(n, 32))](
            rows, *_fields(layer), layer.bias, out, m, n, k,
            HAS_BIAS=layer.bias is not None, BLOCK_M=block_m, BLOCK_N=32, num_warps=4, num_stages=3, **hopper_options(out.device),
        )  # fmt: skip
    return out.view(*x.shape[:-1], n)


def _fields(stored) -> tuple[Tensor, ...]:
    """The kernels' arguments that describe the weights."""
    device = stored.weight.device
    state = (stored.weight, stored.scale_codes, stored.scale_absmax, stored.scale_offset)
    return (*state, dynamic_map(device), levels(device))
