"""The fastest way to run each variant.

              CUDA                                      CPU
W8A8          fused int8 kernels (fused.py), as graphs  compiled blocks (cpu.py)
FP8           the same chain on e4m3 codes              torch.compile, emulated
NF4 by hand   the same chain, weights unpacked          torch.compile
float         the same chain on float weights           torch.compile
bitsandbytes  as it is                                  as it is

Logits are the model's own within rounding; the first call of a shape compiles or captures. Without
Triton, an Ampere GPU or a C++ compiler the model runs as it is, with a warning.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..models.tf32 import as_computed_in
from ..quantization.layers import missing_for_kernels
from ..quantization.native import compiler
from .gpt2 import can_fuse, is_w8a8

Run = Callable[[Tensor, Tensor | None], Tensor]


def best_mode(model, device: str | torch.device) -> Run:
    """`model`, in eval mode on `device`, as a function of int64 ids `[B, L]` and a mask `[B, L]`,
    or None without padding on the left -> logits float32 `[B, classes]`.
    """
    if getattr(model, "quantization_method", None) == "bitsandbytes":
        return _logits_of(model)
    device = torch.device(device)
    missing = None
    if device.type == "cuda":
        missing = missing_for_kernels(device)
    elif not compiler():
        missing = "no C++ compiler was found, which torch.compile needs"
    if missing:
        warnings.warn(f"{missing}: same results, but slower", stacklevel=2)
        return _logits_of(model)
    if device.type == "cuda" and can_fuse(model) and model.config.pad_token_id is not None:
        from .fused import FusedClassifier
        from .graphs import GraphedClassifier

        pad, longest = model.config.pad_token_id, model.config.n_positions
        return GraphedClassifier(
            as_computed_in(model, FusedClassifier(model)), pad, longest, device
        )
    if device.type == "cpu" and can_fuse(model) and is_w8a8(model):
        from .cpu import CompiledClassifier

        return CompiledClassifier(model)
    # With symbolic shapes: compiled once, or twice when a batch of one occurs.
    return _logits_of(torch.compile(model, dynamic=True))


def _logits_of(model) -> Run:
    """Without a cache of keys and values: a classifier has no next token."""

    @torch.inference_mode()
    def run(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()

    return run
