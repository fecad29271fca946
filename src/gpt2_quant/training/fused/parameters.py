"""A GPT-2 classifier's parameters, AdamW's moments and gradients as flat arrays.

Order: the blocks' matrices | biases, norms and head | position table | token table. The first two
parts have a copy in the compute dtype, for the products; gradients of matrices are in that dtype
too. The model's parameters become views of the FP32 array.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

CHUNKS = 16  # partial sums of a vector's gradient
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VECTORS = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", *(f"{m}.bias" for m in MATRICES))
POSITIONS, TOKENS, HEAD = "transformer.wpe.weight", "transformer.wte.weight", "score.weight"


@dataclass(frozen=True)
class Affine:
    """A product's weight and bias (compute dtype) or a norm's (FP32), and their gradients.

    Gradients of vectors are partial sums; chunk c begins at offset c `n_vectors`.
    """

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


class FlatParameters:
    """`flat`: weights and both moments, each FP32 [all parameters]; `current`: updates applied to
    each row of the token table (optimizer.catch_up).
    """

    def __init__(self, model: PreTrainedModel, compute: torch.dtype):
        named, n_layer, device = dict(model.named_parameters()), model.config.n_layer, model.device
        self.device = device
        blocks = [f"transformer.h.{i}." for i in range(n_layer)]
        matrices = [f"{block}{name}.weight" for block in blocks for name in MATRICES]
        vectors = [block + name for block in blocks for name in VECTORS]
        vectors += ["transformer.ln_f.weight", "transformer.ln_f.bias", HEAD]
        self.names = [*matrices, *vectors, POSITIONS, TOKENS]
        assert set(self.names) == set(named), "a GPT-2 classifier with parameters unknown here"
        self.shape = {name: named[name].shape for name in self.names}
        sizes = [shape.numel() for shape in self.shape.values()]
        self.start = dict(zip(self.names, np.cumsum([0, *sizes]).tolist(), strict=False))
        self.n_matrices = self.start[vectors[0]]
        self.n_vectors = self.start[POSITIONS] - self.n_matrices
        parts = ("model", "exp_avg", "exp_avg_sq")
        self.flat = {part: torch.zeros(sum(sizes), device=device) for part in parts}
        for name in self.names:
            self.weight(name).copy_(named[name].data)
            named[name].data = self.weight(name)
        self.copy = self.flat["model"][: self.n_matrices + self.n_vectors].to(compute)
        self.matrix_gradients = torch.zeros_like(self.copy[: self.n_matrices])
        self.vector_partials = torch.zeros(CHUNKS, self.n_vectors, device=device)
        self.token_table = self.trained(self.start[TOKENS], sizes[-1])
        self.current = torch.full_like(self.weight(TOKENS)[:, 0], -1, dtype=torch.int32)

        norms = [block + name for block in blocks for name in ("ln_1", "ln_2")]
        self.norms = [self._norm(name) for name in (*norms, "transformer.ln_f")]
        self.products = [[self._product(block + name) for name in MATRICES] for block in blocks]
        self.block_gradients = self.matrix_gradients.chunk(n_layer)

    def _view(self, flat: Tensor, name: str) -> Tensor:
        start = self.start[name]
        return flat[start : start + self.shape[name].numel()].view(self.shape[name])

    def _norm(self, name: str) -> Affine:
        return self._affine(name, self.flat["model"], self.partials(f"{name}.weight"))

    def _product(self, name: str) -> Affine:
        return self._affine(name, self.copy, self._view(self.matrix_gradients, f"{name}.weight"))

    def _affine(self, name: str, values: Tensor, weight_gradient: Tensor) -> Affine:
        weight, bias = (self._view(values, f"{name}.{part}") for part in ("weight", "bias"))
        return Affine(weight, bias, weight_gradient, self.partials(f"{name}.bias"))

    def weight(self, name: str) -> Tensor:
        return self._view(self.flat["model"], name)

    def partials(self, name: str) -> Tensor:
        """Start of the partial sums of a vector's gradient."""
        return self.vector_partials.view(-1)[self.start[name] - self.n_matrices :]

    def trained(self, start: int, n: int) -> tuple[Tensor, ...]:
        """Weights and both moments of n consecutive parameters."""
        return tuple(flat[start : start + n] for flat in self.flat.values())

    def tensors(self) -> dict[str, Tensor]:
        """Views by checkpoint name."""
        flats = self.flat.items()
        return {f"{part}.{n}": self._view(flat, n) for part, flat in flats for n in self.names}

    def load(self, tensors: dict[str, Tensor], update: int) -> None:
        for name, view in self.tensors().items():
            view.copy_(tensors[name])
        self.copy.copy_(self.flat["model"][: len(self.copy)])
        touched = self._view(self.flat["exp_avg_sq"], TOKENS).any(dim=1)
        self.current.copy_(torch.where(touched, update, -1))
