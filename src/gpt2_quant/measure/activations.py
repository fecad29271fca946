"""What flows through the linear layers: outlier channels, and what rounding activations to int8
costs.

Transformers grow a few channels whose magnitude dwarfs the others' (LLM.int8(), arXiv 2208.07339,
counts |x| >= 6). One scale a tensor must then stretch to them and leaves the rest few codes; one
scale a token shares the damage among the channels of that token only. `smooth` moves part of an
outlier into the weights, where a scale an output channel absorbs it (SmoothQuant, arXiv 2211.10438,
eq. 4): divide channel j of the input by s_j, multiply row j of the weight by it,

    s_j = max|x_j|^alpha / max|w_j|^(1 - alpha).

The division costs nothing where a LayerNorm makes the input: its weight and bias take it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..quantization import affine

OUTLIER = 6.0
NORMS = {
    "attn.c_attn": "ln_1",
    "mlp.c_fc": "ln_2",
}  # a layer whose input a LayerNorm makes -> that LayerNorm


@dataclass
class InputStatistics:
    """Running statistics of one layer's input over real tokens; channel_absmax is float32 `[in]`."""

    channel_absmax: Tensor | None = None
    tokens: int = 0
    energy: float = 0.0
    error: dict[str, float] = field(default_factory=lambda: {"token": 0.0, "tensor": 0.0})

    def update(self, x: Tensor) -> None:
        """Take in the inputs float `[tokens, in]` of one batch."""
        x = x.float()
        absmax = x.abs().amax(0)
        self.channel_absmax = (
            absmax if self.channel_absmax is None else torch.maximum(self.channel_absmax, absmax)
        )
        self.tokens += len(x)
        self.energy += x.double().square().sum().item()
        codes, scale = affine.quantize_rows(x)
        self.error["token"] += (affine.dequantize(codes, scale) - x).double().square().sum().item()
        whole = affine.quantize_tensor(x, per="tensor", name="activations").dequantize()
        self.error["tensor"] += (whole - x).double().square().sum().item()

    def row(self) -> dict:
        """One line of the outlier table."""
        median = self.channel_absmax.median().item()
        top = self.channel_absmax.max().item()
        return {
            "channels": self.channel_absmax.numel(),
            "tokens": self.tokens,
            "absmax": top,
            "median_channel_absmax": median,
            "outlier_ratio": top / max(median, 1e-12),
            "top_channel": int(self.channel_absmax.argmax()),
            "channels_beyond_6": int((self.channel_absmax >= OUTLIER).sum()),
            "sqnr_per_token_db": decibels(self.energy, self.error["token"]),
            "sqnr_per_tensor_db": decibels(self.energy, self.error["tensor"]),
        }


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two energies; infinite where there is no noise."""
    return (
        float("inf")
        if noise == 0
        else float(10 * torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
    )


@torch.no_grad()
def input_statistics(model: nn.Module, batches: Iterable[dict]) -> dict[str, InputStatistics]:
    """Path of each Conv1D -> statistics of its input, over the tokens of `batches` that are not
    padding.
    """
    statistics = {
        path: InputStatistics()
        for path, module in model.named_modules()
        if isinstance(module, Conv1D)
    }
    real: list[Tensor] = []

    def watch(path: str):
        def hook(module, inputs):
            statistics[path].update(inputs[0][real[0]])

        return hook

    handles = [
        model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in statistics
    ]
    try:
        for batch in batches:
            ids, mask = (
                batch["input_ids"].to(model.device),
                batch["attention_mask"].to(model.device),
            )
            real[:] = [mask.bool()]
            model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return statistics


@torch.no_grad()
def smooth(model: nn.Module, channel_absmax: dict[str, Tensor], alpha: float) -> nn.Module:
    """Fold SmoothQuant's factors into LayerNorms and the weights behind them, in place; the
    function stays the same.

    channel_absmax: path of Conv1D -> largest |input| a channel, float32 `[in]`, as
    `input_statistics` finds it.
    """
    for path, absmax in channel_absmax.items():
        block = path.rpartition(".attn." if ".attn." in path else ".mlp.")[0]
        norm = NORMS.get(path.removeprefix(f"{block}."))
        if norm is None:
            continue
        layer, norm = model.get_submodule(path), model.get_submodule(f"{block}.{norm}")
        row_absmax = layer.weight.abs().amax(1).clamp_min(1e-5)  # Conv1D: [in, out]
        factor = (absmax.clamp_min(1e-5) ** alpha / row_absmax ** (1 - alpha)).clamp_min(1e-5)
        norm.weight.div_(factor)
        norm.bias.div_(factor)
        layer.weight.mul_(factor.unsqueeze(1))
    return model
