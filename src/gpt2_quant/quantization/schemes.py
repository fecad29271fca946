"""A scheme: what becomes of a GPT-2's weights, in memory and in the file.

transformers loads a quantized folder in three moves: it builds the float model without memory,
lets the quantizer turn it into the *skeleton* of the file, and fills that by name. So a scheme
replaces (with or without filling from the floats), finishes after loading, and names what to save.

`LayerScheme` puts a quantized layer in the place of each Conv1D and embedding; the model then runs
on it. `stored_int8.StoredInt8` keeps codes in the file only.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .layers import Int8Embedding, Int8Linear, NF4Embedding, NF4Linear, QuantizedLayer, TiedHead
from .quantizer import quantize_model


class Scheme:
    """What the transformers plug-in asks of a scheme. Instances are the `Method` of a variant."""

    def replace(self, model: Any, dtype: torch.dtype, fill: bool) -> None:
        """Turn float parameters into the scheme's own, filled from them or empty. In place."""
        raise NotImplementedError

    def finish(self, model: Any) -> None:
        """Last touch once the file's tensors are in place."""

    def state(self, model: Any, sha256: str | None) -> dict[str, Tensor] | None:
        """The tensors to save; None: the model's own."""
        return None

    def quantize(self, key: str, model: Any, folder: Path, dtype: torch.dtype) -> Any:
        """A copy of the FP32 `model` in the scheme named `key`, float parts in `dtype`."""
        return quantize_model(copy.deepcopy(model), key).to(dtype)

    def facts(self, model: Any) -> dict:
        """Scheme, layout version, checksum, and how many layers of which kind there are."""
        config = model.config.quantization_config
        kinds: dict[str, int] = {}
        for module in model.modules():
            if isinstance(module, QuantizedLayer):
                kinds[type(module).__name__] = kinds.get(type(module).__name__, 0) + 1
        return {
            "method": config.quant_method,
            "scheme": config.scheme,
            "format_version": config.format_version,
            "sha256": config.sha256,
            "layers": kinds,
        }


@dataclass(frozen=True)
class LayerScheme(Scheme):
    """The layer classes that take the place of linear layers, token and position embeddings."""

    linear: Callable[..., Any]
    embedding: Callable[..., Any]
    positions: Callable[..., Any]

    def replace(
        self,
        model: Any,
        dtype: torch.dtype,
        fill: bool,
        wanted: Callable[[str], bool] = lambda path: True,
    ) -> None:
        """Replace Conv1D, embeddings and language-model head, of which `wanted(path)` may pick
        some, to study one kind of matrix at a time. Biases, norms and a classifier's head stay.
        """
        tied = hasattr(model, "lm_head") and bool(model.config.tie_word_embeddings)
        for path, module in list(model.named_modules()):
            if not wanted(path):
                continue
            new: nn.Module
            if path == "lm_head" and tied:
                new = TiedHead(model.transformer.wte)
            elif path == "lm_head" or isinstance(module, Conv1D):
                new = self._linear(module, dtype, path, fill)
            elif isinstance(module, nn.Embedding):
                new = self._table(module, dtype, path, fill)
            else:
                continue
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, new)
        if tied and wanted("lm_head"):
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}

    def _linear(self, module, dtype: torch.dtype, path: str, fill: bool) -> QuantizedLayer:
        # Conv1D keeps its weight as [in, out].
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        outputs, inputs = weight.shape
        layer = self.linear(inputs, outputs, module.bias is not None, dtype, weight.device)
        return layer.quantize_(weight, module.bias, f"{path}.weight") if fill else layer

    def _table(self, module, dtype: torch.dtype, path: str, fill: bool) -> QuantizedLayer:
        kind = self.positions if path.endswith("wpe") else self.embedding
        layer = kind(*module.weight.shape, dtype, module.weight.device)
        return layer.quantize_(module.weight, f"{path}.weight") if fill else layer


W8A8 = LayerScheme(Int8Linear, Int8Embedding, positions=Int8Embedding)
# Positions are 0.6% of GPT-2 and enter every token, so they keep 8 bits.
NF4 = LayerScheme(NF4Linear, NF4Embedding, positions=Int8Embedding)
