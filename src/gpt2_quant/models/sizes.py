"""Sizes of a model in bytes: sums over its tensors, part by part.

Quantization state is what a layer needs beside its codes. A safetensors file is 8 bytes (the
header's length), a JSON header and the tensors' bytes. The published INT8 takes four times its file
once loaded: *stored* and *resident* differ.
"""

import json
from pathlib import Path

from ..errors import UserError
from .checkpoints import weights_files

PARTS = ("linear", "embeddings", "norms_biases", "head", "quantization_state")


def stored_size(folder: Path) -> dict:
    """{parts, tensor_bytes, header_bytes} of the safetensors files. Raises UserError where the
    tensors do not fill them.
    """
    parts, header_bytes = dict.fromkeys(PARTS, 0), 0
    for path in weights_files(folder):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        ends = [tensor["data_offsets"] for tensor in header.values()]
        for name, (begin, end) in zip(header, ends, strict=True):
            parts[part_of(name)] += end - begin
        if 8 + length + sum(end - begin for begin, end in ends) != path.stat().st_size:
            raise UserError(f"{path} is not as long as its header says: make the checkpoint again")
        header_bytes += 8 + length
    return {"parts": parts, "tensor_bytes": sum(parts.values()), "header_bytes": header_bytes}


def size_in_parts(model) -> dict[str, int]:
    """Bytes by part, buffers included; a shared tensor counts once."""
    parts = dict.fromkeys(PARTS, 0)
    seen = set()
    for module_name, module in model.named_modules():
        for name, tensor in _own_tensors(module):
            if tensor.data_ptr() in seen and tensor.numel():
                continue
            seen.add(tensor.data_ptr())
            parts[part_of(f"{module_name}.{name}")] += tensor.nbytes
    return parts


def _own_tensors(module):
    """Names and tensors of this module alone, those in bitsandbytes' wrappers included."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, tensor in own:
        yield name, tensor.data
        state = getattr(tensor, "quant_state", None)  # NF4: block maxima, doubly quantized
        for holder in (state, getattr(state, "state2", None)):
            for field in ("absmax", "code", "offset"):
                inner = getattr(holder, field, None)
                if hasattr(inner, "element_size"):
                    yield f"quant_state.{field}", inner
    for pair in getattr(module, "int8_scales", {}).values():  # of parameters that are floats again
        yield from zip(("quant_state.scale", "quant_state.zero_point"), pair, strict=True)
    # LLM.int8() keeps its row scales beside the parameter until the first forward, then in `state`.
    for holder in (getattr(module, "weight", None), getattr(module, "state", None)):
        scales = getattr(holder, "SCB", None)
        if scales is not None:
            yield "quant_state.SCB", scales
            return


def part_of(name: str) -> str:
    """Of a tensor, by its name in the model."""
    module, _, leaf = name.rpartition(".")
    owner = module.rpartition(".")[2]
    if leaf not in ("weight", "bias"):
        return "quantization_state"
    if owner in ("score", "lm_head"):
        return "head"
    if leaf == "bias" or owner.startswith("ln_"):
        return "norms_biases"
    return "embeddings" if owner in ("wte", "wpe") else "linear"


def resident_bytes(model) -> int:
    return sum(size_in_parts(model).values())


def file_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in weights_files(folder))
