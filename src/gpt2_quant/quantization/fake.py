"""Fake quantization of weights: quantize a matrix, read it back, compute in floats.

This isolates the error of rounding weights. A scale per *group* of neighbours along the input axis
exists here alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from . import affine, fp8, nf4


class ReadBack(NamedTuple):
    values: Tensor
    bits_per_weight: float  # scales and zero-points included
    saturated_share: float


def _integer(weight: Tensor, name: str, symmetric=True, per="channel", group_size=0) -> ReadBack:
    slices = weight
    if group_size:  # the last group of a row may be shorter
        slices = pad(weight, (0, -weight.shape[1] % group_size)).reshape(-1, group_size)
    quantized = affine.quantize_tensor(slices, per=per, name=name, symmetric=symmetric)
    whole = (x.reshape(len(weight), -1) for x in (quantized.codes, quantized.dequantize()))
    codes, values = (x[:, : weight.shape[1]] for x in whole)
    lowest = -affine.SYMMETRIC_MAX if symmetric else affine.AFFINE_MIN
    at_ends = (codes == lowest) | (codes == affine.AFFINE_MAX)
    scale_bits = quantized.scale.numel() * (32 + 8 * bool(quantized.zero_point.any()))
    return ReadBack(values, 8 + scale_bits / weight.numel(), at_ends.float().mean().item())


def _normal_float(weight: Tensor, name: str, fit) -> ReadBack:
    quantized = nf4.quantize(weight, fit=fit, name=name)
    codes = torch.stack([quantized.packed >> 4, quantized.packed & 15])
    at_ends = ((codes == 0) | (codes == 15)).float().mean().item()
    return ReadBack(quantized.dequantize(), 8 * quantized.n_bytes / weight.numel(), at_ends)


def _eight_bit_float(weight: Tensor, name: str) -> ReadBack:
    affine.require_finite(weight, name)
    codes, scale = fp8.quantize_rows(weight)
    values = codes.float()
    at_ends = (values.abs() == fp8.CODE_MAX).float().mean().item()
    return ReadBack(values * scale, 8 + 32 / weight.shape[1], at_ends)


# Name -> function of a weight [out, in] and its name (for errors).
WEIGHT_SCHEMES: dict[str, Callable[[Tensor, str], ReadBack]] = {
    "int8 per tensor": partial(_integer, per="tensor"),
    "int8 affine per tensor": partial(_integer, per="tensor", symmetric=False),
    "int8 per channel": _integer,
    "int8 per group of 128": partial(_integer, group_size=128),
    "int8 per group of 64": partial(_integer, group_size=64),
    "fp8 per channel": _eight_bit_float,
    "nf4": partial(_normal_float, fit="absmax"),
    "nf4 least squares": partial(_normal_float, fit="mse"),
}


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Path -> weight, a view `[out, in]`, of each linear layer and embedding but the head."""
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, (Conv1D, nn.Embedding)):  # Conv1D keeps its weight as [in, out]
            found[path] = module.weight.t() if isinstance(module, Conv1D) else module.weight
    return found


@torch.no_grad()
def fake_quantize_weights(
    model: nn.Module, scheme: str, wanted: Callable[[str], bool] = lambda path: True
) -> nn.Module:
    """Round the `wanted` weights of a float GPT-2 in place; a tied head follows its embedding.
    Raises UserError for no scheme of WEIGHT_SCHEMES.
    """
    if scheme not in WEIGHT_SCHEMES:
        known = ", ".join(WEIGHT_SCHEMES)
        raise UserError(f"unknown weight scheme {scheme!r}: the schemes are {known}")
    for path, weight in matrices(model).items():
        if wanted(path):
            weight.copy_(WEIGHT_SCHEMES[scheme](weight, f"{path}.weight").values)
    return model
