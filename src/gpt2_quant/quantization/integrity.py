"""A quantized folder's checksum: a flipped code would load as a plausible one.

It is a sha256 over codes and scales, not over float parts, which may be saved in another dtype.
"""

import hashlib
from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError

SCALE_NAMES = ("_scale", "scale_absmax", "scale_offset")
REMAKE = "copy it again, or run python src/2_quantization_scratch.py --overwrite"


def checksum(state: dict[str, Tensor]) -> str:
    """sha256 over the names, shapes and bytes of codes and scales."""
    digest = hashlib.sha256()
    quantized = {_bare(name): x for name, x in state.items() if _is_quantized(name, x)}
    for name, tensor in sorted(quantized.items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_files(model: nn.Module, files: Iterable[str], sha256: str | None) -> None:
    """Raise UserError unless the safetensors files hold every tensor of the skeleton `model` in its
    shape, codes and scales also in their dtype and with this checksum.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        try:
            found |= {_bare(name): tensor for name, tensor in load_file(file).items()}
        except (SafetensorError, OSError) as fault:
            raise UserError(f"{file} is damaged or cut short ({fault}): {REMAKE}") from fault
    for name, expected in model.state_dict().items():
        tensor = found.get(_bare(name))
        if tensor is None:
            raise UserError(f"the quantized folder has no tensor {name}: {REMAKE}")
        kept = not _is_quantized(name, expected) or tensor.dtype == expected.dtype
        if tensor.shape != expected.shape or not kept:
            found_as, needed = (f"{x.dtype} {list(x.shape)}" for x in (tensor, expected))
            raise UserError(f"{name} is {found_as} where {needed} is needed: {REMAKE}")
    if sha256 is not None and checksum(found) != sha256:
        raise UserError(f"codes or scales are not those quantized (sha256 differs): {REMAKE}")


def _is_quantized(name: str, tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or name.endswith(SCALE_NAMES)


def _bare(name: str) -> str:
    """A tensor's name with or without a head on top of GPT-2."""
    return name.removeprefix("transformer.")
