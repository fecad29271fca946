"""NormalFloat, four bits: 16 levels at quantiles of N(0, 1) (QLoRA, arXiv 2305.14314, section 3).

64 neighbours in memory order, a *block*, share a scale, their absmax: an outlier spoils only its
block. Less their mean, 256 scales share one float32 absmax, and each is one byte, an index into the
8-bit *dynamic* map (arXiv 1511.04561): 4 + 8/64 + 32/(64 * 256) = 4.127 bits per weight (float32
scales: 4.5). `fit="mse"` costs nothing at run time: a block's scale is the one of least squared
error (clipping its largest weight a little serves the other 63), and codes are chosen against the
scale *as stored*.
"""

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .affine import require_finite

BLOCK = 64
ZERO_CODE = 7
SCALES_PER_BLOCK = 256
# Probability of the outermost quantile: half a step inside 1, the mean for 16 and 15 levels.
OUTERMOST = (1 - 1 / 32 + 1 - 1 / 30) / 2
ALTERNATIONS = 4


class NF4(NamedTuple):
    """A tensor in NF4."""

    packed: Tensor  # uint8 [ceil(n / 2)]: two codes per byte over the flattened tensor
    scale_codes: Tensor  # uint8 [blocks]: index of each block's scale in the dynamic map
    scale_absmax: Tensor  # float32 [ceil(blocks / 256)]: what the map's 1.0 stands for
    scale_offset: Tensor  # float32 []: the mean scale, taken off before
    shape: torch.Size

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        scales = read_scales(self.scale_codes, self.scale_absmax, self.scale_offset)
        return dequantize(self.packed, scales, self.shape.numel()).view(self.shape).to(dtype)

    @property
    def n_bytes(self) -> int:
        return sum(x.nbytes for x in self if isinstance(x, Tensor))


@cache
def levels(device: torch.device | str = "cpu") -> Tensor:
    """The 16 levels, float32, ascending, from -1 to 1 with an exact 0 at index 7."""
    # For an exact 0 the two sides are built apart: 8 levels above zero, 7 below.
    above = torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(OUTERMOST, 0.5, 8, dtype=torch.float64)[:-1])
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (values / values.abs().max()).float().to(device)


@cache
def dynamic_map(device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of the 8-bit dynamic type, float32, ascending: 0, 1, and plus and minus the
    centres of seven decades from 1e-6 to 1, decade `e` cut into 2^e equal parts.
    """
    values = [torch.zeros(1), torch.ones(1)]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        centres = (10 ** (exponent - 6)) * (edges[:-1] + edges[1:]) / 2
        values += [centres, -centres]
    return torch.cat(values).sort().values.to(device)


@cache
def byte_table(device: torch.device | str = "cpu") -> Tensor:
    """float32 `[256, 2]`: the two levels of each byte."""
    byte = torch.arange(256)
    return levels()[torch.stack([byte >> 4, byte & 15], dim=1)].to(device)


def quantize(x: Tensor, *, fit: Literal["absmax", "mse"] = "absmax", name: str = "tensor") -> NF4:
    """Quantize x; "absmax" is the published fit. Raises UserError for NaN or infinity."""
    require_finite(x, name)
    blocks = to_blocks(x)
    scales = blocks.abs().amax(-1)
    if fit == "mse":
        scales = _least_squares(blocks, scales)
    stored = quantize_scales(scales)
    codes = encode(blocks, read_scales(*stored) if fit == "mse" else scales)
    return NF4(pack(codes.flatten()[: x.numel()]), *stored, x.shape)


def to_blocks(x: Tensor) -> Tensor:
    """float32 `[blocks, 64]` in memory order, padded with 0."""
    return _in_rows(x.detach().float().reshape(-1), BLOCK)


def encode(blocks: Tensor, scales: Tensor) -> Tensor:
    """Codes (uint8) of the levels nearest to `x / scale`; blocks `[n, 64]`, scales `[n]`."""
    return _nearest(blocks, scales, levels(blocks.device))


def pack(codes: Tensor) -> Tensor:
    """Two 4-bit codes per byte, `[n]` -> `[ceil(n / 2)]`; 0's code follows an odd last one."""
    pairs = pad(codes, (0, codes.numel() % 2), value=ZERO_CODE).view(-1, 2)
    return (pairs[:, 0] << 4) | pairs[:, 1]


def dequantize(packed: Tensor, scales: Tensor, n: int) -> Tensor:
    """The first `n` values, float32 `[n]`."""
    values = byte_table(packed.device)[packed.long()].flatten()
    values = pad(values, (0, scales.numel() * BLOCK - values.numel())).view(-1, BLOCK)
    return (values * scales.unsqueeze(-1)).flatten()[:n]


def quantize_scales(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scales float32 `[blocks]` -> codes, absmax and offset as in `NF4`."""
    offset = scales.mean()
    centred = _in_rows(scales - offset, SCALES_PER_BLOCK)
    absmax = centred.abs().amax(-1)
    codes = _nearest(centred, absmax, dynamic_map(scales.device))
    return codes.flatten()[: scales.numel()], absmax, offset


def read_scales(
    codes: Tensor, absmax: Tensor, offset: Tensor, blocks: Tensor | None = None
) -> Tensor:
    """The stored scales, float32, of `blocks`, by default of all."""
    if blocks is None:
        blocks = torch.arange(codes.numel(), device=codes.device)
    spread = absmax[blocks // SCALES_PER_BLOCK]
    return dynamic_map(codes.device)[codes[blocks].long()] * spread + offset


def _in_rows(x: Tensor, width: int) -> Tensor:
    """`[n]` -> `[ceil(n / width), width]`, padded with 0."""
    return pad(x, (0, -x.numel() % width)).view(-1, width)


def _nearest(rows: Tensor, scales: Tensor, table: Tensor) -> Tensor:
    """Index (uint8) of the entry of an ascending table nearest to `row / scale`."""
    safe = torch.where(scales == 0, 1.0, scales)
    midpoints = (table[1:] + table[:-1]) / 2
    return torch.bucketize(rows / safe.unsqueeze(-1), midpoints, out_int32=True).to(torch.uint8)


def _least_squares(blocks: Tensor, absmax: Tensor) -> Tensor:
    """Alternate: given codes, the best scale is <x, level> / <level, level>; given a scale, the
    best codes are the nearest levels.
    """
    scales = absmax
    for _ in range(ALTERNATIONS):
        chosen = levels(blocks.device)[encode(blocks, scales).long()]
        energy = chosen.square().sum(-1)
        fitted = (blocks * chosen).sum(-1) / energy.clamp_min(1e-30)
        scales = torch.where(energy > 0, fitted, absmax)
    return scales


# Before torch.export can call them first, whose fake tensors would stay in the caches.
for _table in (levels, dynamic_map, byte_table):
    _table(torch.device("cpu"))
