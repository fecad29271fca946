"""The fastest way to run each variant, behind one call: `best_mode(model, device)(input_ids,
attention_mask) -> logits`.

variant                     CUDA                               CPU
W8A8                        fused int8 kernels (fused.py) in   compiled blocks on `torch._int_mm`
                            CUDA graphs                        (cpu.py)
NF4 by hand                 the same chain, weights unpacked   torch.compile
FP32, FP16, INT8 by hand    the same chain on float weights    torch.compile
bitsandbytes                as it is: LLM.int8() asks the      as it is
                            host in every layer, which cannot
                            be captured

On CUDA, FP16 in this chain is as fast as torch.compile in CUDA graphs and starts without compiling,
so the 16-bit rows are not handicapped (`benchmarks/bench_quantization.py` times both). FP32 gains
where the host is slower than the GPU (1.4 ms for 7.5, 1 x 32, on an H200) and at 64 x 128 (32.9 for
39.4), but loses at 16 x 128 (13.4 for 11.9).

Logits are the model's own within rounding. Any batch and length is served; the first call of a
shape compiles or captures. Where the fast way is missing (no Triton, a GPU before Ampere, no C++
compiler) the model runs as it is, with the same results, and one warning says so.
"""

import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from .gpt2 import can_fuse, is_w8a8

Run = Callable[[Tensor, Tensor | None], Tensor]
OLDEST_GPU = (8, 0)
COMPILERS = ("c++", "g++", "clang++")


def best_mode(model, device: str | torch.device) -> Run:
    """The fastest callable for `model`, which must be in eval mode on `device`.

    It takes int64 ids `[B, L]` and a mask of the same shape, or None when nothing is padded on the
    left, and returns logits float32 `[B, classes]`.
    """
    if getattr(model, "quantization_method", None) == "bitsandbytes":
        return _logits_of(model)
    device = torch.device(device)
    missing = _missing_on_cuda(device) if device.type == "cuda" else _missing_on_cpu()
    if missing:
        warnings.warn(f"{missing}: same results, but slower", stacklevel=2)
        return _logits_of(model)
    if device.type == "cuda" and can_fuse(model) and model.config.pad_token_id is not None:
        from .fused import FusedClassifier
        from .graphs import GraphedClassifier

        config = model.config
        return GraphedClassifier(
            FusedClassifier(model), config.pad_token_id, config.n_positions, device
        )
    if device.type == "cpu" and can_fuse(model) and is_w8a8(model):
        from .cpu import CompiledClassifier

        return CompiledClassifier(model)
    # With symbolic shapes: compiled once, or twice when a batch of one occurs.
    return _logits_of(torch.compile(model, dynamic=True))


def _missing_on_cuda(device: torch.device) -> str | None:
    """What the kernels need and this machine lacks, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if torch.cuda.get_device_capability(device) < OLDEST_GPU:
        gpu = torch.cuda.get_device_name(device)
        return f"{gpu} is older than Ampere, which the Triton kernels need"
    return None


def _missing_on_cpu() -> str | None:
    if any(shutil.which(compiler) for compiler in COMPILERS):
        return None
    return "no C++ compiler was found, which torch.compile needs"


def _logits_of(model) -> Run:
    """`model` without a cache of keys and values: a classifier has no next token."""

    @torch.inference_mode()
    def run(ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()

    return run
