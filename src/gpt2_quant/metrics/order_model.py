"""A small learned judge: does a sentence open a text, or follow from those before it?

A network of 48 hidden units reads sentence b and the one before it, a (zeros where b opens the
text), as vectors x (MiniLM) and cues c (`cues.py`); the cues of b to all sentences before it,
c_b|before; and the highest and the mean cosine of x_b with theirs:

    p = P x_a,  q = Q x_b   (48 each)
    h = w · gelu( W [ p, q, p*q, |p - q|, x_a · x_b, c_a, c_b, c_b|before, highest, mean ] )
    p(b is in its place) = mean over three random seeds of sigmoid(h)

Trained to tell positions in public news texts from those in imitation summaries with known faults
(after Xu et al. 2019, "A Cross-Domain Transferable Neural Coherence Model";
`benchmarks/fit_order_model.py`), without ratings or data that the scores are judged on.
"""

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..records import file_sha256
from .cues import N_CONTEXT_CUES, N_CUES, Cues, context_cues

WEIGHTS = Path(__file__).with_name("order_model.safetensors")
EMBEDDING, WIDTH, N_NETWORKS = 384, 48, 3


class PairNetwork(nn.Module):
    """h of the module's docstring: vectors a, b [n, 384], cues [n, N_CUES] each, context [n,
    N_CONTEXT_CUES + 2] -> [n].
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(EMBEDDING, WIDTH), nn.Linear(EMBEDDING, WIDTH)
        self.hidden = nn.Linear(4 * WIDTH + 1 + 2 * N_CUES + N_CONTEXT_CUES + 2, WIDTH)
        self.output = nn.Linear(WIDTH, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a, b, cues_a, cues_b, context) -> torch.Tensor:
        p, q = self.first(a), self.second(b)
        meaning = self.dropout(torch.cat([p, q, p * q, (p - q).abs()], dim=-1))
        cosine = (a * b).sum(-1, keepdim=True)
        hidden = self.hidden(torch.cat([meaning, cosine, cues_a, cues_b, context], dim=-1))
        return self.output(nn.functional.gelu(hidden)).squeeze(-1)


@cache
def order_model_hash() -> str:
    """First eight digits of the weights' sha256."""
    return file_sha256(WEIGHTS)[:8]


@cache
def load_order_model() -> nn.ModuleList:
    """The networks in float32 on the CPU."""
    from safetensors.torch import load_file

    networks = nn.ModuleList(PairNetwork() for _ in range(N_NETWORKS))
    networks.load_state_dict(load_file(WEIGHTS))
    return networks.eval()


@lru_cache(maxsize=50_000)
def cues_of(sentence: str) -> Cues:
    return Cues(sentence)


def network_inputs(vectors: np.ndarray, cues: Sequence[Cues]) -> tuple[torch.Tensor, ...]:
    """`PairNetwork.forward`'s inputs for a text: vectors [n, 384], cues of its sentences."""
    own = np.stack([cue.vector for cue in cues])
    before = [np.vstack([np.zeros_like(rows[:1]), rows[:-1]]) for rows in (vectors, own)]
    nearness = np.zeros((len(vectors), 2), dtype=np.float32)
    for i, row in enumerate(vectors @ vectors.T):
        if i:
            nearness[i] = row[:i].max(), row[:i].mean()
    context = np.hstack([context_cues(cues), nearness])
    return tuple(map(torch.from_numpy, (before[0], vectors, before[1], own, context)))


@torch.inference_mode()
def judge(
    vectors: np.ndarray, cues: Sequence[Cues], networks: Iterable[nn.Module] | None = None
) -> np.ndarray:
    """Probability of each sentence to be in its place, float64 [n]; arguments: `network_inputs`."""
    inputs = network_inputs(vectors, cues)
    judged = [network(*inputs).sigmoid() for network in networks or load_order_model()]
    return torch.stack(judged).double().mean(0).numpy()
