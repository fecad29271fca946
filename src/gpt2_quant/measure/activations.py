"""Inputs of the linear layers: outlier channels, and the error of rounding activations.

Transformers grow a few channels of far larger magnitude (LLM.int8(), arXiv 2208.07339, counts |x|
>= 6). One scale per tensor stretches to them and leaves the rest few codes; one scale per token
confines the damage to that token, and a float code (FP8) errs by a fraction of each value.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..quantization import affine, fp8

OUTLIER = 6.0


class InputStatistics:
    """Running statistics of one layer's input over tokens."""

    def __init__(self, channels: int, device: torch.device):
        self.channel_absmax = torch.zeros(channels, device=device)
        self.tokens, self.signal = 0, 0.0
        self.noise = {"per_token": 0.0, "per_tensor": 0.0, "fp8_per_token": 0.0}

    def update(self, x: Tensor) -> None:
        """Take in x float `[tokens, in]`."""
        x = x.float()
        self.channel_absmax = torch.maximum(self.channel_absmax, x.abs().amax(0))
        self.tokens += len(x)
        self.signal += energy(x)
        codes, scale = fp8.quantize_rows(x)
        per_tensor = affine.quantize_tensor(x, per="tensor", name="activations")
        self.noise["per_token"] += energy(affine.dequantize(*affine.quantize_rows(x)) - x)
        self.noise["per_tensor"] += energy(per_tensor.dequantize() - x)
        self.noise["fp8_per_token"] += energy(codes.float() * scale - x)

    def row(self) -> dict:
        absmax = self.channel_absmax
        median, top = absmax.median().item(), absmax.max().item()
        return {
            "channels": absmax.numel(), "tokens": self.tokens,
            "absmax": top, "median_channel_absmax": median,
            "outlier_ratio": top / max(median, 1e-12), "top_channel": int(absmax.argmax()),
            "channels_beyond_6": int((absmax >= OUTLIER).sum()),
            **{f"sqnr_{name}_db": decibels(self.signal, e) for name, e in self.noise.items()},
        }  # fmt: skip


def energy(x: Tensor) -> float:
    return x.double().square().sum().item()


def decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise else math.inf


@torch.no_grad()
def input_statistics(model: nn.Module, batches: Iterable[dict]) -> dict[str, InputStatistics]:
    """Path of each Conv1D -> statistics of its input over `batches`, padding aside."""
    device = next(model.parameters()).device
    layers = {path: m for path, m in model.named_modules() if isinstance(m, Conv1D)}
    found = {path: InputStatistics(len(m.weight), device) for path, m in layers.items()}
    mask = torch.empty(0)

    def watch(path: str):
        return lambda module, inputs: found[path].update(inputs[0][mask.bool()])

    handles = [layer.register_forward_pre_hook(watch(path)) for path, layer in layers.items()]
    try:
        for batch in batches:
            mask = batch["attention_mask"].to(device)
            model(input_ids=batch["input_ids"].to(device), attention_mask=mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found
