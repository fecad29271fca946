"""A GPT-2 classifier's parameters, AdamW's moments and gradients as flat arrays.

Order: the blocks' matrices | biases, norms and head | position table | token table. The first two
parts have a copy in the compute type, which is what matrix products read. Matrix gradients are kept
as the products write them, in the compute type; gradients of vectors as CHUNKS partial FP32 sums.
The model's own parameters become views of the FP32 array.
"""

import numpy as np
import torch

CHUNKS = 16  # partial sums in which the gradient of a vector is computed
MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
VECTORS = (
    "ln_1.weight",
    "ln_1.bias",
    "ln_2.weight",
    "ln_2.bias",
    *(f"{name}.bias" for name in MATRICES),
)
POSITIONS, TOKENS, HEAD = "transformer.wpe.weight", "transformer.wte.weight", "score.weight"


class FlatParameters:
    """See the module. `weights`, `exp_avg` and `exp_avg_sq` are FP32 [all parameters]; `current`
    says through which update each row of the token table has come (fused_optimizer.catch_up), -1
    for rows that never had a gradient.
    """

    def __init__(self, model: torch.nn.Module, compute: torch.dtype):
        named = dict(model.named_parameters())
        self.config, self.device = model.config, next(model.parameters()).device
        blocks = range(self.config.n_layer)
        matrices = [f"transformer.h.{i}.{name}.weight" for i in blocks for name in MATRICES]
        vectors = [f"transformer.h.{i}.{name}" for i in blocks for name in VECTORS]
        vectors += ["transformer.ln_f.weight", "transformer.ln_f.bias", HEAD]
        self.names = [*matrices, *vectors, POSITIONS, TOKENS]
        assert set(self.names) == set(named), (
            "a GPT-2 classifier with other parameters than this step knows"
        )
        starts = np.cumsum([0, *(named[name].numel() for name in self.names)]).tolist()
        self.start = dict(zip(self.names, starts, strict=False))
        self.shape = {name: named[name].shape for name in self.names}
        self.n_matrices = self.start[vectors[0]]
        self.n_vectors = self.start[POSITIONS] - self.n_matrices
        self.weights = torch.empty(starts[-1], device=self.device)
        self.exp_avg, self.exp_avg_sq = (
            torch.zeros_like(self.weights),
            torch.zeros_like(self.weights),
        )
        for name in self.names:
            self.weight(name).copy_(named[name].data)
            named[name].data = self.weight(name)
        self.copy = self.weights[: self.n_matrices + self.n_vectors].to(compute)
        self.matrix_gradients = torch.zeros(self.n_matrices, dtype=compute, device=self.device)
        self.vector_partials = torch.zeros(CHUNKS, self.n_vectors, device=self.device)
        self.vector_gradients = torch.zeros(self.n_vectors, device=self.device)
        self.current = torch.full(
            (self.config.vocab_size,), -1, dtype=torch.int32, device=self.device
        )

    def _view(self, flat: torch.Tensor, name: str) -> torch.Tensor:
        start = self.start[name]
        return flat[start : start + self.shape[name].numel()].view(self.shape[name])

    def weight(self, name: str) -> torch.Tensor:
        """A parameter, FP32."""
        return self._view(self.weights, name)

    def operand(self, name: str) -> torch.Tensor:
        """A matrix or bias in the compute type."""
        return self._view(self.copy, name)

    def matrix_gradient(self, name: str) -> torch.Tensor:
        return self._view(self.matrix_gradients, name)

    def partials(self, name: str) -> torch.Tensor:
        """Where the partial sums of a vector's gradient begin; chunk c is `n_vectors` c further."""
        return self.vector_partials.view(-1)[self.start[name] - self.n_matrices :]

    def block_gradients(self, block: int) -> torch.Tensor:
        """Gradients of all matrices of a block."""
        n = self.n_matrices // self.config.n_layer
        return self.matrix_gradients[block * n : (block + 1) * n]

    def trained(self, name: str) -> tuple[torch.Tensor, ...]:
        """Weight and both moments of a parameter."""
        return tuple(
            self._view(flat, name) for flat in (self.weights, self.exp_avg, self.exp_avg_sq)
        )

    def trained_from(self, start: int, n: int) -> tuple[torch.Tensor, ...]:
        """Weights and both moments of n consecutive parameters."""
        return tuple(
            flat[start : start + n] for flat in (self.weights, self.exp_avg, self.exp_avg_sq)
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """`model.<name>`, `exp_avg.<name>`, `exp_avg_sq.<name>`: views, in the form of a
        checkpoint.
        """
        parts = ("model", "exp_avg", "exp_avg_sq")
        return {
            f"{part}.{name}": t
            for name in self.names
            for part, t in zip(parts, self.trained(name), strict=True)
        }

    def load(self, tensors: dict[str, torch.Tensor], update: int) -> None:
        for name, view in self.tensors().items():
            view.copy_(tensors[name])
        self.copy.copy_(self.weights[: len(self.copy)])
        touched = self._view(self.exp_avg_sq, TOKENS).any(dim=1)
        self.current.copy_(torch.where(touched, update, -1))
