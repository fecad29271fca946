"""Is a quantized folder what its config.json says it is?

A flipped code is a plausible code: nothing downstream would notice it. So quantizing stores a
sha256 over all codes and scales, by name, and loading compares. Float parts (biases, LayerNorm,
head) are left out: they may be saved again in another dtype, while codes and scales are the same
bits for ever.
"""

import hashlib
from collections.abc import Iterable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import UserError

SCALE_NAMES = ("_scale", "scale_absmax", "scale_offset")
REMAKE = "copy the folder again, or run python src/2_quantization_scratch.py --overwrite"


def checksum(state: dict[str, Tensor]) -> str:
    """sha256 (hexadecimal) over the names, shapes and bytes of all codes and scales in `state`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(
        (_bare(name), tensor) for name, tensor in state.items() if _is_quantized(name, tensor)
    ):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_files(model: nn.Module, files: Iterable[str], sha256: str | None) -> None:
    """Compare the quantized tensors of safetensors files with the skeleton `model` that they are
    about to fill.

    Raises UserError for a tensor that is missing or of another shape or dtype, a damaged file, or
    another checksum.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                found |= {_bare(name): opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as fault:
            raise UserError(f"{file} is damaged or cut short ({fault}): {REMAKE}") from fault
    for name, expected in model.state_dict().items():
        if not _is_quantized(name, expected):
            continue
        tensor = found.get(_bare(name))
        if tensor is None:
            raise UserError(f"the quantized folder has no tensor {name}: {REMAKE}")
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise UserError(
                f"{name} is {tensor.dtype} {list(tensor.shape)} where {expected.dtype} {list(expected.shape)} is needed: {REMAKE}"
            )
    if sha256 is not None and checksum(found) != sha256:
        raise UserError(
            f"the codes or scales in the folder are not those that were quantized (sha256 differs): {REMAKE}"
        )


def _is_quantized(name: str, tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or name.endswith(SCALE_NAMES)


def _bare(name: str) -> str:
    """A tensor's name whether or not the GPT-2 in it has a head on top."""
    return name.removeprefix("transformer.")
