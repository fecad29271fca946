"""Weight schemes side by side: quantize a matrix, read it back, and let the float model compute
with what came out.

Such *fake* quantization changes no speed and no size; it isolates what rounding the weights does.
Bits per weight count scales and zero-points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from . import affine, nf4
from .affine import Layout


@dataclass(frozen=True)
class ReadBack:
    """A matrix after quantization; saturated_share is that of codes at an end of their range."""

    values: Tensor
    bits_per_weight: float
    saturated_share: float


def _integer(x: Tensor, layout: Layout, name: str, symmetric: bool = True, **choices) -> ReadBack:
    quantized = affine.quantize_tensor(x, layout=layout, name=name, symmetric=symmetric, **choices)
    lowest = -affine.SYMMETRIC_MAX if symmetric else affine.AFFINE_MIN
    at_ends = (quantized.codes == lowest) | (quantized.codes == affine.AFFINE_MAX)
    bits = 8 * quantized.n_bytes / x.numel()
    return ReadBack(quantized.dequantize(), bits, at_ends.float().mean().item())


def _normal_float(x: Tensor, layout: Layout, name: str, fit) -> ReadBack:
    quantized = nf4.quantize(x.t() if layout == "conv1d" else x, fit=fit, name=name)
    values = quantized.dequantize()
    codes = torch.stack([quantized.packed >> 4, quantized.packed & 15])
    at_ends = ((codes == 0) | (codes == 15)).float().mean().item()
    bits = 8 * quantized.n_bytes / x.numel()
    return ReadBack(values.t() if layout == "conv1d" else values, bits, at_ends)


# Name -> function of a weight, its layout and its name (for errors).
WEIGHT_SCHEMES: dict[str, Callable[[Tensor, Layout, str], ReadBack]] = {
    "int8 per tensor": partial(_integer, per="tensor"),
    "int8 affine per tensor": partial(_integer, per="tensor", symmetric=False),
    "int8 per channel": partial(_integer, per="channel"),
    "int8 per group of 128": partial(_integer, per="group", group_size=128),
    "int8 per group of 64": partial(_integer, per="group", group_size=64),
    "nf4": partial(_normal_float, fit="absmax"),
    "nf4 least squares": partial(_normal_float, fit="mse"),
}


def matrices(model: nn.Module) -> dict[str, tuple[Tensor, Layout]]:
    """Path -> (weight, layout) of each linear layer and embedding; a head is not among them."""
    found: dict[str, tuple[Tensor, Layout]] = {}
    for path, module in model.named_modules():
        if isinstance(module, (Conv1D, nn.Embedding)):
            found[path] = module.weight, "conv1d" if isinstance(module, Conv1D) else "linear"
    return found


@torch.no_grad()
def fake_quantize_weights(
    model: nn.Module, scheme: str, wanted: Callable[[str], bool] = lambda path: True
) -> nn.Module:
    """Round the weights of a float GPT-2 to a scheme of WEIGHT_SCHEMES, in place; returns it.

    A tied head follows its embedding. `wanted(path)` picks matrices. Raises UserError for another
    scheme.
    """
    if scheme not in WEIGHT_SCHEMES:
        known = ", ".join(WEIGHT_SCHEMES)
        raise UserError(f"unknown weight scheme {scheme!r}: the schemes are {known}")
    for path, (weight, layout) in matrices(model).items():
        if wanted(path):
            weight.copy_(WEIGHT_SCHEMES[scheme](weight, layout, f"{path}.weight").values)
    return model
