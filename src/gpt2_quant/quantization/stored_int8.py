"""The published scheme, `int8_scratch`: each parameter an int8 tensor with one scale and one
zero-point.

It shrinks the file by four and nothing else: loading turns the codes back into floats, and every
forward pass runs in floating point on as many bytes as before. The model keeps the scales and
zero-points (as buffers beside the parameters) so that saving finds the very same codes: round(w /
scale) + zero_point recovers them exactly, because w is a whole multiple of scale up to float
rounding.

On disk a parameter `p` is `p` (int8), `p_scale` (float32) and `p_zero_point` (int8).
"""

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import affine, integrity
from .schemes import Scheme


def quantize_parameters(model: nn.Module) -> None:
    """Replace each parameter by its dequantized self and register its scale and zero-point. In
    place.
    """
    names = [name for name, _ in model.named_parameters()]  # a shared tensor appears once
    for name in names:
        module, leaf = _locate(model, name)
        parameter = getattr(module, leaf)
        quantized = affine.quantize_tensor(parameter, symmetric=False, per="tensor", name=name)
        module.register_buffer(f"{leaf}_scale", quantized.scale)
        module.register_buffer(f"{leaf}_zero_point", quantized.zero_point.to(torch.int8))
        parameter.data.copy_(quantized.dequantize())
    model.int8_scratch_names = names


def replace_parameters(model: nn.Module) -> None:
    """Turn a model without memory into the skeleton of the file: codes in the place of parameters.
    In place.

    A tied language-model head is set aside until the embedding is there.
    """
    model.set_aside = {}
    if hasattr(model, "lm_head") and model.config.tie_word_embeddings:
        model.set_aside = {"lm_head": model.lm_head, "tied": model.all_tied_weights_keys}
        model.lm_head, model.all_tied_weights_keys = nn.Identity(), {}
    names = [name for name, _ in model.named_parameters()]
    for name in names:
        module, leaf = _locate(model, name)
        parameter = module._parameters.pop(leaf)
        module.register_buffer(
            leaf, torch.empty(parameter.shape, dtype=torch.int8, device=parameter.device)
        )
        module.register_buffer(
            f"{leaf}_scale", torch.empty((), dtype=torch.float32, device=parameter.device)
        )
        module.register_buffer(
            f"{leaf}_zero_point", torch.empty((), dtype=torch.int8, device=parameter.device)
        )
    model.int8_scratch_names = names
    model.int8_scratch_dtype = torch.get_default_dtype()


def restore_parameters(model: nn.Module) -> None:
    """Dequantize the loaded codes into parameters, one tensor at a time. In place."""
    dtype = model.__dict__.pop("int8_scratch_dtype")
    for name in model.int8_scratch_names:
        module, leaf = _locate(model, name)
        codes = module._buffers.pop(leaf)
        scale, zero_point = module._buffers[f"{leaf}_scale"], module._buffers[f"{leaf}_zero_point"]
        module.register_parameter(
            leaf, nn.Parameter(affine.dequantize(codes, scale, zero_point).to(dtype))
        )
    set_aside = model.__dict__.pop("set_aside")
    if set_aside:
        model.lm_head, model.all_tied_weights_keys = set_aside["lm_head"], set_aside["tied"]
        model.lm_head.weight = model.transformer.wte.weight


def encode_state(model: nn.Module, expected_sha256: str | None) -> dict[str, Tensor]:
    """The tensors to save: codes, scales and zero-points.

    Raises UserError when they differ from what was quantized (`expected_sha256`): the weights were
    changed since, or were loaded in bfloat16, whose 8 bits cannot tell 255 steps apart.
    """
    state = {}
    for name in model.int8_scratch_names:
        module, leaf = _locate(model, name)
        scale, zero_point = (module._buffers[f"{leaf}_{part}"] for part in ("scale", "zero_point"))
        codes = affine.quantize(
            getattr(module, leaf).data, scale, zero_point, affine.AFFINE_MIN, affine.AFFINE_MAX
        )
        state |= {name: codes, f"{name}_scale": scale, f"{name}_zero_point": zero_point}
    if expected_sha256 and integrity.checksum(state) != expected_sha256:
        raise UserError(
            "the weights of this int8_scratch model are no longer those that were quantized: quantize them again "
            "with quantize_model, or load the folder in float32 before saving it"
        )
    return state


def _locate(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a tensor, and the tensor's name in it."""
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


class StoredInt8(Scheme):
    """Codes in the file, floats in memory."""

    def replace(self, model, dtype, fill: bool) -> None:
        quantize_parameters(model) if fill else replace_parameters(model)

    def finish(self, model) -> None:
        restore_parameters(model)

    def state(self, model, sha256: str | None) -> dict[str, Tensor]:
        return encode_state(model, sha256)


SCHEME = StoredInt8()
