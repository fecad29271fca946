"""A scheme: what becomes of a GPT-2's weights, in memory and in the file.

transformers builds the float model without memory, lets the quantizer turn it into the *skeleton*
of the file, and fills that by name.
"""

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from . import layers
from .quantizer import quantize_model


class Scheme(ABC):
    """What the transformers plug-in asks of a scheme, the `Method` of a variant."""

    @abstractmethod
    def replace(self, model: Any, dtype: torch.dtype, fill: bool, *, version: int = 0) -> None:
        """Replace float parameters in place: filled from them, or empty, as the skeleton of a file
        of this layout version.
        """

    def finish(self, model: Any) -> None:  # noqa: B027  most schemes have nothing left to do
        """Last touch once the file's tensors are in place."""

    def state(self, model: Any, sha256: str | None) -> dict[str, Tensor] | None:
        """The tensors to save; None: the model's own."""
        return None

    @abstractmethod
    def dequantize(self, model: Any) -> None:
        """Make it a plain float GPT-2 again, in place, of the weights that the codes stand for."""

    def quantize(self, key: str, model: Any, folder: Path, dtype: torch.dtype) -> Any:
        return quantize_model(copy.deepcopy(model), key).to(dtype)

    def facts(self, model: Any) -> dict:
        config = model.config.quantization_config
        kinds = [type(m).__name__ for m in model.modules() if isinstance(m, layers.QuantizedLayer)]
        facts = {"method": config.quant_method}
        facts |= {name: getattr(config, name) for name in ("scheme", "format_version", "sha256")}
        return facts | {"layers": dict(Counter(kinds))}


@dataclass(frozen=True)
class LayerScheme(Scheme):
    linear: type[layers.Linear]
    embedding: type[layers.Embedding]
    positions: type[layers.Embedding]

    def replace(
        self, model: Any, dtype: torch.dtype, fill: bool,
        wanted: Callable[[str], bool] = lambda path: True, *, version: int = 0,
    ) -> None:  # fmt: skip
        """Replace Conv1D, embeddings and language-model head, or those that are `wanted`."""
        tied = hasattr(model, "lm_head") and bool(model.config.tie_word_embeddings)
        for path, module in list(model.named_modules()):
            if not wanted(path):
                continue
            if path == "lm_head" and tied:
                model.lm_head = layers.TiedHead(model.transformer.wte)
            elif path == "lm_head" or isinstance(module, (Conv1D, nn.Embedding)):
                model.set_submodule(path, self._layer(module, dtype, path, fill))
        if tied and wanted("lm_head"):
            model._tied_weights_keys = None
            model.all_tied_weights_keys = {}

    def _layer(self, module, dtype: torch.dtype, path: str, fill: bool) -> layers.QuantizedLayer:
        kind: type[layers.QuantizedLayer] = self.linear
        if isinstance(module, nn.Embedding):
            kind = self.positions if path.endswith("wpe") else self.embedding
        # Conv1D keeps its weight as [in, out].
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        bias, (rows, columns) = getattr(module, "bias", None), weight.shape
        layer = kind(rows, columns, dtype, weight.device, bias is not None)
        return layer.quantize_(weight, f"{path}.weight", bias) if fill else layer

    def dequantize(self, model: Any) -> None:
        tied = isinstance(getattr(model, "lm_head", None), layers.TiedHead)
        for path, module in list(model.named_modules()):
            if isinstance(module, layers.QuantizedLayer):
                model.set_submodule(path, _float_layer(module, path))
        if tied:
            rows, columns = model.transformer.wte.weight.shape
            model.lm_head = nn.Linear(columns, rows, bias=False, device="meta")
            del model._tied_weights_keys  # the class has its own
            model.all_tied_weights_keys = model.get_expanded_tied_weights_keys()
            model.tie_weights()


def _float_layer(layer: layers.QuantizedLayer, path: str) -> nn.Module:
    weight = layer.dequantize(layer.compute_dtype)
    if isinstance(layer, layers.Embedding):
        return nn.Embedding.from_pretrained(weight, freeze=False)
    new: Any
    if path == "lm_head":
        new, values = nn.Linear(layer.columns, layer.rows, bias=False, device="meta"), weight
    else:
        with torch.device("meta"):
            new, values = Conv1D(layer.rows, layer.columns), weight.t().contiguous()
    new.weight = nn.Parameter(values)
    if layer.bias is not None:
        new.bias = nn.Parameter(layer.bias.detach().clone())
    return new


W8A8 = LayerScheme(layers.Int8Linear, layers.Int8Embedding, positions=layers.Int8Embedding)
# Positions are 0.6% of GPT-2 and enter every token, so they keep 8 bits.
NF4 = LayerScheme(layers.NF4Linear, layers.NF4Embedding, positions=layers.Int8Embedding)
