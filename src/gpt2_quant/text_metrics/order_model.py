"""A small learned judge of sentence order: is b a likely continuation of a, and does a come before b?

Two networks of 48 hidden units over a pair of sentences (a, b), with the sentence vectors x (MiniLM, 384) and cues c
(`cues.py`):

    h(a, b) = w · gelu( W [ p, q, p*q, |p - q|, x_a · x_b, c_a, c_b, c_ab ] ),   p = P x_a,  q = Q x_b   (48 each)
    continuation(a, b) = sigmoid( h1(a, b) ),      precedence(a, b) = sigmoid( h2(a, b) - h2(b, a) )

They were trained on the order that authors gave their own sentences, with no rating, label or summary anywhere: continuation
tells neighbours from two other sentences of the same text, from reversed neighbours, from a sentence of another text and from a
repetition; precedence tells each pair in order from the same pair reversed. The texts are 4,235 documents of public news and
encyclopedia collections (Reuters-21578, BBC, Brown, WikiText-2) from the years 1961 to 2016; none of the data that the scores
are judged on is among them. `benchmarks/fit_order_model.py` made `order_model.safetensors` (float16) and tests it on 401
held-out documents, of whose shuffles continuation prefers the original to 94%, precedence to 92%, their product to 96%.

The idea of learning local coherence from adjacency is Xu et al. 2019 ("A Cross-Domain Transferable Neural Coherence Model").
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..records import file_sha256
from .cues import N_CUES, N_PAIR_CUES, Cues, pair_cues

WEIGHTS = Path(__file__).with_name("order_model.safetensors")
EMBEDDING, WIDTH = 384, 48


class PairNetwork(nn.Module):
    """h(a, b) of the module's docstring. Vectors [b, 384], cues [b, N_CUES] each, pair cues [b, N_PAIR_CUES] -> [b]."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(EMBEDDING, WIDTH), nn.Linear(EMBEDDING, WIDTH)
        self.hidden = nn.Linear(4 * WIDTH + 1 + 2 * N_CUES + N_PAIR_CUES, WIDTH)
        self.output = nn.Linear(WIDTH, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, a, b, cues_a, cues_b, pair) -> torch.Tensor:
        p, q = self.first(a), self.second(b)
        meaning = self.dropout(torch.cat([p, q, p * q, (p - q).abs()], dim=-1))
        cosine = (a * b).sum(-1, keepdim=True)
        return self.output(nn.functional.gelu(self.hidden(torch.cat([meaning, cosine, cues_a, cues_b, pair], dim=-1)))).squeeze(-1)


@cache
def order_model_hash() -> str:
    """First eight digits of the weights' sha256: part of every score's signature."""
    return file_sha256(WEIGHTS)[:8]


@cache
def load_order_model() -> tuple[PairNetwork, PairNetwork]:
    """(continuation, precedence), in float32 on the CPU: they are small enough that moving them would cost more than it saves."""
    from safetensors.torch import load_file

    state = load_file(WEIGHTS)
    networks = []
    for name in ("continuation", "precedence"):
        network = PairNetwork().eval()
        own = {key.removeprefix(f"{name}."): value.float() for key, value in state.items() if key.startswith(f"{name}.")}
        network.load_state_dict(own)
        networks.append(network)
    return tuple(networks)


@lru_cache(maxsize=50_000)
def _cues(sentence: str) -> Cues:
    return Cues(sentence)


@torch.inference_mode()
def judge(
    sentences: Sequence[str], vectors: np.ndarray, networks: tuple[PairNetwork, PairNetwork] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(continuation [n-1] of each neighbouring pair, precedence [n, n] with entry (i, j) for "i comes before j"); vectors [n,
    384].
    """
    n = len(sentences)
    cues = [_cues(sentence) for sentence in sentences]
    i, j = (index.ravel() for index in np.indices((n, n)))
    x, c = torch.from_numpy(vectors), torch.from_numpy(np.stack([cue.vector for cue in cues]))
    pair = torch.from_numpy(np.stack([pair_cues(cues[a], cues[b]) for a, b in zip(i, j, strict=True)]))
    continuation, precedence = networks or load_order_model()
    following = torch.arange(n - 1) * n + torch.arange(1, n)
    near = continuation(x[:-1], x[1:], c[:-1], c[1:], pair[following]).sigmoid()
    h = precedence(x[i], x[j], c[i], c[j], pair).reshape(n, n)
    return near.double().numpy(), (h - h.T).sigmoid().double().numpy()
