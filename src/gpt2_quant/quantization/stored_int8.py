"""The published scheme: each parameter as int8 codes with one scale and one zero-point.

The file shrinks by four; loading dequantizes it. Scales and zero-points stay as buffers, so that
saving finds the same codes. On disk a parameter `p` is `p` (int8, flat: a loader that takes codes
for floats stops at the shape), `p_scale` (float32) and `p_zero_point` (int8).
"""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import affine, integrity
from .schemes import Scheme


class StoredInt8(Scheme):
    def replace(self, model: Any, dtype: torch.dtype, fill: bool, *, version: int = 0) -> None:
        if not fill and hasattr(model, "lm_head") and model.config.tie_word_embeddings:
            # A head that is the token embedding once more is not in the file.
            model.set_aside = model.lm_head, model.all_tied_weights_keys
            model.lm_head, model.all_tied_weights_keys = nn.Identity(), {}
        names = [name for name, _ in model.named_parameters()]  # a shared tensor appears once
        shapes: dict[str, torch.Size] = {}
        for name in names:
            module, leaf = _locate(model, name)
            x = getattr(module, leaf)
            if fill:
                codes = affine.quantize_tensor(x, symmetric=False, per="tensor", name=name)
                x.data.copy_(codes.dequantize())
                scale, zero_point = codes.scale, codes.zero_point.to(torch.int8)
            else:  # the skeleton
                module._parameters.pop(leaf)
                empty = torch.empty_like(x, dtype=torch.int8)
                module.register_buffer(leaf, empty if version == 1 else empty.flatten())
                shapes[name] = x.shape
                scale = torch.empty((), dtype=torch.float32, device=x.device)
                zero_point = torch.empty((), dtype=torch.int8, device=x.device)
            module.register_buffer(f"{leaf}_scale", scale)
            module.register_buffer(f"{leaf}_zero_point", zero_point)
        model.int8_names, model.int8_shapes, model.int8_dtype = names, shapes, dtype

    def finish(self, model: Any) -> None:
        for name in model.int8_names:
            module, leaf = _locate(model, name)
            codes, scale = module._buffers.pop(leaf), module._buffers[f"{leaf}_scale"]
            values = affine.dequantize(codes, scale, module._buffers[f"{leaf}_zero_point"])
            values = values.view(model.int8_shapes[name]).to(model.int8_dtype)
            module.register_parameter(leaf, nn.Parameter(values))
        if set_aside := model.__dict__.pop("set_aside", None):
            model.lm_head, model.all_tied_weights_keys = set_aside
            model.lm_head.weight = model.transformer.wte.weight

    def state(self, model: Any, sha256: str | None) -> dict[str, Tensor]:
        """Raises UserError where the codes are no longer those that were quantized: after training,
        or in bfloat16, whose 8 bits cannot tell 255 steps apart.
        """
        state: dict[str, Tensor] = {}
        for name in model.int8_names:
            module, leaf = _locate(model, name)
            scale, zero_point = (module._buffers[f"{leaf}_{s}"] for s in ("scale", "zero_point"))
            ends = affine.AFFINE_MIN, affine.AFFINE_MAX
            codes = affine.quantize(getattr(module, leaf).data, scale, zero_point, *ends)
            state |= {f"{name}_scale": scale, f"{name}_zero_point": zero_point}
            state[name] = codes.flatten()
        if sha256 and integrity.checksum(state) != sha256:
            raise UserError(
                "the weights of this model are no longer those that were quantized: quantize them "
                "again, or load the folder in float32"
            )
        return state


def _locate(model: nn.Module, name: str) -> tuple[Any, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


SCHEME = StoredInt8()
