"""The published scheme: each parameter as int8 codes with one scale and one zero-point.

The file shrinks by four; loading dequantizes it. Scales and zero-points are kept, so that saving
finds the same codes, but not as buffers, which `.to(dtype)` would cast. On disk a parameter `p` is
`p` (int8, flat: a loader that takes codes for floats stops at the shape), `p_scale` (float32) and
`p_zero_point` (int8).
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
        model.int8_scales, model.int8_dtype = {}, dtype  # parameter -> scale and zero-point
        model.int8_shapes = {}
        for name, x in list(model.named_parameters()):  # a shared tensor appears once
            if fill:
                codes = affine.quantize_tensor(x, symmetric=False, per="tensor", name=name)
                x.data.copy_(codes.dequantize())
                model.int8_scales[name] = codes.scale, codes.zero_point.to(torch.int8)
                continue
            module, leaf = _locate(model, name)  # the skeleton
            model.int8_shapes[name] = module._parameters.pop(leaf).shape
            empty = torch.empty_like(x, dtype=torch.int8)
            module.register_buffer(leaf, empty if version == 1 else empty.flatten())
            for field, kind in (("scale", torch.float32), ("zero_point", torch.int8)):
                single = torch.empty((), dtype=kind, device=x.device)
                module.register_buffer(f"{leaf}_{field}", single)

    def finish(self, model: Any) -> None:
        for name, shape in model.__dict__.pop("int8_shapes").items():
            module, leaf = _locate(model, name)
            fields = leaf, f"{leaf}_scale", f"{leaf}_zero_point"
            codes, scale, zero_point = (module._buffers.pop(field) for field in fields)
            values = affine.dequantize(codes, scale, zero_point).view(shape).to(model.int8_dtype)
            module.register_parameter(leaf, nn.Parameter(values))
            model.int8_scales[name] = scale, zero_point
        if set_aside := model.__dict__.pop("set_aside", None):
            model.lm_head, model.all_tied_weights_keys = set_aside
            model.lm_head.weight = model.transformer.wte.weight

    def state(self, model: Any, sha256: str | None) -> dict[str, Tensor]:
        """Raises UserError where the codes are no longer those that were quantized: after training,
        or in bfloat16, whose 8 bits cannot tell 255 steps apart.
        """
        state: dict[str, Tensor] = {}
        for name, fields in model.int8_scales.items():
            x = model.get_parameter(name).data
            scale, zero_point = (field.to(x.device) for field in fields)
            codes = affine.quantize(x, scale, zero_point, affine.AFFINE_MIN, affine.AFFINE_MAX)
            state |= {f"{name}_scale": scale, f"{name}_zero_point": zero_point}
            state[name] = codes.flatten()
        if sha256 and integrity.checksum(state) != sha256:
            raise UserError(
                "the weights of this model are no longer those that were quantized: quantize them "
                "again, or load the folder in float32"
            )
        return state

    def dequantize(self, model: Any) -> None:
        del model.int8_scales  # its weights are the floats already


def _locate(model: nn.Module, name: str) -> tuple[Any, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


SCHEME = StoredInt8()
