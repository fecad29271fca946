"""A GPT-2 classifier's parameters, AdamW's moments and gradients as flat arrays.

Order: the blocks' matrices | biases, norms and head | position table | token table. The first two
parts have a copy in the compute dtype, which matrix products read. Matrix gradients are kept as the
products write them, in the compute dtype; gradients of vectors as CHUNKS partial FP32 sums. The
model's own parameters become views of the FP32 array.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

CHUNKS = 16  # partial sums in which the gradient of a vector is computed
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VECTORS = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", *(f"{m}.bias" for m in MATRICES))
POSITIONS, TOKENS, HEAD = "transformer.wpe.weight", "transformer.wte.weight", "score.weight"


@dataclass(frozen=True)
class Affine:
    """Weight and bias of a matrix product (compute dtype) or a norm (FP32), with their gradients.

    Gradients of vectors are partial sums, of which chunk c begins `n_vectors` c further on.
    """

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


class FlatParameters:
    """`flat` has weights and both moments, each FP32 [all parameters]; `current` says through which
    update each row of the token table has come (optimizer.catch_up), -1: never had a gradient.
    """

    def __init__(self, model: PreTrainedModel, compute: torch.dtype):
        named = dict(model.named_parameters())
        config, self.device = model.config, model.device
        blocks = [f"transformer.h.{i}" for i in range(config.n_layer)]
        matrices = [f"{block}.{name}.weight" for block in blocks for name in MATRICES]
        vectors = [f"{block}.{name}" for block in blocks for name in VECTORS]
        vectors += ["transformer.ln_f.weight", "transformer.ln_f.bias", HEAD]
        self.names = [*matrices, *vectors, POSITIONS, TOKENS]
        assert set(self.names) == set(named), "a GPT-2 classifier with parameters unknown here"
        *starts, size = np.cumsum([0, *(named[name].numel() for name in self.names)]).tolist()
        self.start = dict(zip(self.names, starts, strict=True))
        self.shape = {name: named[name].shape for name in self.names}
        self.n_matrices = self.start[vectors[0]]
        self.n_vectors = self.start[POSITIONS] - self.n_matrices
        self.weights = torch.empty(size, device=self.device)
        moments = {name: torch.zeros_like(self.weights) for name in ("exp_avg", "exp_avg_sq")}
        self.flat = {"model": self.weights, **moments}
        for name in self.names:
            self.weight(name).copy_(named[name].data)
            named[name].data = self.weight(name)
        self.copy = self.weights[: self.n_matrices + self.n_vectors].to(compute)
        self.matrix_gradients = torch.zeros_like(self.copy[: self.n_matrices])
        self.vector_partials = torch.zeros(CHUNKS, self.n_vectors, device=self.device)
        self.vector_gradients = torch.zeros(self.n_vectors, device=self.device)
        n_tokens = config.vocab_size
        self.current = torch.full((n_tokens,), -1, dtype=torch.int32, device=self.device)

        norms = [f"{block}.{name}" for block in blocks for name in ("ln_1", "ln_2")]
        self.norms = [self._norm(name) for name in (*norms, "transformer.ln_f")]
        # Per block, in the order of MATRICES.
        self.products = [[self._product(f"{block}.{m}") for m in MATRICES] for block in blocks]
        self.block_gradients = self.matrix_gradients.chunk(config.n_layer)

    def _view(self, flat: Tensor, name: str) -> Tensor:
        start = self.start[name]
        return flat[start : start + self.shape[name].numel()].view(self.shape[name])

    def _norm(self, name: str) -> Affine:
        weight, bias = f"{name}.weight", f"{name}.bias"
        gradients = self.partials(weight), self.partials(bias)
        return Affine(self.weight(weight), self.weight(bias), *gradients)

    def _product(self, name: str) -> Affine:
        weight, bias = f"{name}.weight", f"{name}.bias"
        gradients = self._view(self.matrix_gradients, weight), self.partials(bias)
        return Affine(self._view(self.copy, weight), self._view(self.copy, bias), *gradients)

    def weight(self, name: str) -> Tensor:
        """A parameter, FP32."""
        return self._view(self.weights, name)

    def partials(self, name: str) -> Tensor:
        """Where the partial sums of a vector's gradient begin."""
        return self.vector_partials.view(-1)[self.start[name] - self.n_matrices :]

    def trained(self, name: str) -> tuple[Tensor, ...]:
        """Weight and both moments of a parameter."""
        return tuple(self._view(flat, name) for flat in self.flat.values())

    def trained_from(self, start: int, n: int) -> tuple[Tensor, ...]:
        """Weights and both moments of n consecutive parameters."""
        return tuple(flat[start : start + n] for flat in self.flat.values())

    def tensors(self) -> dict[str, Tensor]:
        """`model.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>`: views, as in a checkpoint."""
        result: dict[str, Tensor] = {}
        for part, flat in self.flat.items():
            result |= {f"{part}.{name}": self._view(flat, name) for name in self.names}
        return result

    def load(self, tensors: dict[str, Tensor], update: int) -> None:
        for name, view in self.tensors().items():
            view.copy_(tensors[name])
        self.copy.copy_(self.weights[: len(self.copy)])
        touched = self._view(self.flat["exp_avg_sq"], TOKENS).any(dim=1)
        self.current.copy_(torch.where(touched, update, -1))
