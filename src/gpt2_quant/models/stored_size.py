"""The size of a checkpoint as it lies on the disk, tensor by tensor, without loading it.

A safetensors file is 8 bytes (the header's length, little-endian), a JSON header with each tensor's
dtype, shape and place, and then the tensors' bytes with no gaps. So

    file bytes = 8 + header bytes + sum over tensors

holds exactly, and a size in a table can be reconciled with `ls -l`. What is *stored* is one measure
for all variants; what is *resident* is another (`checkpoints.size_in_parts`): the published INT8 is
dequantized at load and then takes four times its file, and on the CPU the float16 rest of a
bitsandbytes file is widened to float32.
"""

import json
import struct
from pathlib import Path

from ..cli import UserError
from .loading import weights_file


def stored_size(folder: Path) -> dict:
    """{parts, tensor_bytes, header_bytes} of `folder`'s safetensors file, in bytes; the parts sum
    to tensor_bytes.

    Parts are those of `checkpoints.size_in_parts`. Raises UserError where the tensors do not fill
    the file.
    """
    path = weights_file(folder)
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    parts = dict.fromkeys(("linear", "embeddings", "norms_biases", "head", "quantization_state"), 0)
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = tensor["data_offsets"]
            parts[_part(name)] += end - begin
    tensor_bytes = sum(parts.values())
    if 8 + length + tensor_bytes != path.stat().st_size:
        raise UserError(f"{path} is not as long as its header says: make the checkpoint again")
    return {"parts": parts, "tensor_bytes": tensor_bytes, "header_bytes": 8 + length}


def _part(name: str) -> str:
    """The part a stored tensor belongs to; all that is no weight or bias is state (`weight_scale`,
    `weight.absmax`, `SCB`).
    """
    module, _, leaf = name.rpartition(".")
    owner = module.rpartition(".")[2]
    if leaf not in ("weight", "bias"):
        return "quantization_state"
    if owner in ("score", "lm_head"):
        return "head"
    if leaf == "bias" or owner.startswith("ln_"):
        return "norms_biases"
    return "embeddings" if owner in ("wte", "wpe") else "linear"
