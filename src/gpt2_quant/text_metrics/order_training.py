"""Training of the pair networks in `order_model.py`: the only labels are the orders that authors gave their own sentences.

Each step draws documents, then a pair of sentences from each. *Precedence*: the loss is softplus(-(h(a, b) - h(b, a))) for a
before b. *Continuation*: a true neighbour pair against one false pair: 60% another two sentences of the text, 15% the
neighbours reversed, 15% a sentence of another text, 10% the first sentence again, its vector slightly moved so that paraphrase
counts as repetition too. A quarter of the documents is put in lower case, so that the names' capitals are evidence but no
crutch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize, softplus
from tqdm import tqdm

from .cues import Cues, pair_cues
from .order_model import PairNetwork

EPOCHS, PAIRS, BATCH, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 8, 80_000, 512, 2e-3, 0.1, 0.4
LOWER_CASED, REPETITION_NOISE = 0.25, 0.02


@dataclass
class Documents:
    """n documents laid end to end: unit vectors [s, 384], cues [s, c], `start` and `length` [n], pair cues [n][k, k, p]."""

    vectors: torch.Tensor
    cues: torch.Tensor
    start: np.ndarray
    length: np.ndarray
    pairs: list[np.ndarray]

    def pair(self, document: np.ndarray, i: np.ndarray, j: np.ndarray) -> torch.Tensor:
        """Pair cues [b, p] of sentences i and j of each document."""
        return torch.from_numpy(np.stack([self.pairs[d][a, b] for d, a, b in zip(document, i, j, strict=True)]))


def prepare(documents: Sequence[Sequence[str]], vectors: np.ndarray, seed: int = 5) -> Documents:
    """Cues of all sentences, for documents of at least three sentences; `vectors` [s, 384] are of all sentences in order."""
    draw = np.random.default_rng(seed)
    cues, pairs = [], []
    for sentences in tqdm(documents, desc="cues", unit="document"):
        lower = draw.random() < LOWER_CASED
        own = [Cues(text[:1] + text[1:].lower() if lower else text) for text in sentences]
        cues += [cue.vector for cue in own]
        pairs.append(np.stack([[pair_cues(a, b) for b in own] for a in own]))
    length = np.array([len(sentences) for sentences in documents])
    start = np.cumsum(length) - length
    return Documents(torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(np.stack(cues)), start, length, pairs)


def train(data: Documents, kind: str, seed: int = 0) -> PairNetwork:
    """A network of `kind` "continuation" or "precedence": AdamW, the learning rate falling linearly to 0."""
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    network = PairNetwork(DROPOUT).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (PAIRS // BATCH)
    loss_of = _precedence_loss if kind == "precedence" else _continuation_loss
    for done in tqdm(range(steps), desc=kind, unit="step"):
        document = draw.integers(len(data.length), size=BATCH)
        loss = loss_of(network, data, document, draw)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - done / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def _precedence_loss(network: PairNetwork, data: Documents, document: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
    length = data.length[document]
    i = draw.integers(length)
    j = (i + 1 + draw.integers(length - 1)) % length  # any other sentence
    i, j = np.minimum(i, j), np.maximum(i, j)
    a, b = data.start[document] + i, data.start[document] + j
    forward = network(data.vectors[a], data.vectors[b], data.cues[a], data.cues[b], data.pair(document, i, j))
    backward = network(data.vectors[b], data.vectors[a], data.cues[b], data.cues[a], data.pair(document, j, i))
    return softplus(backward - forward).mean()


def _continuation_loss(network: PairNetwork, data: Documents, document: np.ndarray, draw: np.random.Generator) -> torch.Tensor:
    length, start = data.length[document], data.start[document]
    i = draw.integers(length - 1)
    kind = draw.random(len(document))
    far = (i + 2 + draw.integers(length - 2)) % length  # neither i nor its successor
    reversed_, foreign, repeated = (kind >= 0.6) & (kind < 0.75), (kind >= 0.75) & (kind < 0.9), kind >= 0.9
    first = np.where(reversed_, i + 1, i)
    second = np.where(reversed_ | repeated, i, far)
    a, b, c = start + i, start + i + 1, start + first
    d = np.where(foreign, draw.integers(len(data.vectors), size=len(document)), start + second)
    false_cues = data.pair(document, first, second)
    false_cues[torch.from_numpy(foreign)] = 0
    other = data.vectors[d]
    again = torch.from_numpy(repeated)
    noise = REPETITION_NOISE * torch.rand(int(again.sum()), 1) * torch.randn(int(again.sum()), other.shape[1])
    other[again] = normalize(other[again] + noise, dim=1)
    true = network(data.vectors[a], data.vectors[b], data.cues[a], data.cues[b], data.pair(document, i, i + 1))
    false = network(data.vectors[c], other, data.cues[c], data.cues[d], false_cues)
    return softplus(-true).mean() + softplus(false).mean()
