"""Training of the networks in `order_model.py`, on imitation summaries: the only labels are where
authors put their sentences.

A summary is made of a document's sentences, and each of its places is labelled: 1 if the sentence
opened the document (first place) or came right after the one that it follows now, else 0. What a
summary can look like:

    lead 30%, whole document 6%, a run from anywhere 10%, sentences picked from anywhere in their
    order 34%, out of order 20% then, of each: a foreign sentence 12%, one sentence again 8%, broken
    sentences 25%, all of it twice 3%, another text's rest 6%

A broken sentence is one cut off, one that lost its middle, or the halves of two joined; its place
is 0, and so is everything said again or of another text. Summaries have 2 to 8 sentences. Half of
them are read in lower case, as some systems write, so that capitals are evidence but no crutch. The
loss is the cross-entropy of the places.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from ..cues import Cues
from ..order_model import PairNetwork, places

SUMMARIES, EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 60_000, 8, 1024, 2e-3, 0.1, 0.4
LENGTHS, LENGTH_SHARES = (2, 3, 4, 5, 6, 8), (0.15, 0.25, 0.2, 0.2, 0.1, 0.1)
BROKEN_PER_DOCUMENT, BROKEN_AMONG_FIRST = 2, 8  # broken sentences cost an embedding each


@dataclass
class Documents:
    """Sentences of n documents laid end to end, then the broken ones: unit vectors [s, 384], cues
    as written and in lower case.

    Document d has the rows start[d] … start[d] + length[d] - 1; `broken[d]` maps some of them to
    their broken versions' rows.
    """

    vectors: np.ndarray
    cues: tuple[list[Cues], list[Cues]]
    start: np.ndarray
    length: np.ndarray
    broken: list[dict[int, int]]


def prepare(
    documents: Sequence[Sequence[str]], embed: Callable[[list[str]], np.ndarray], seed: int = 3
) -> Documents:
    """Embeds all sentences and some broken versions of them; documents have at least two sentences
    each.
    """
    draw = np.random.default_rng(seed)
    sentences = [sentence for document in documents for sentence in document]
    length = np.array([len(document) for document in documents])
    start = np.cumsum(length) - length
    broken = []
    for first, document in zip(start, documents, strict=True):
        among = min(len(document), BROKEN_AMONG_FIRST)
        rows = {}
        for k in draw.choice(among, size=min(BROKEN_PER_DOCUMENT, among), replace=False):
            version = break_sentence(document[k], document[draw.integers(len(document))], draw)
            if version:
                rows[int(first + k)] = len(sentences)
                sentences.append(version)
        broken.append(rows)
    cues = [Cues(text) for text in sentences], [Cues(text.lower()) for text in sentences]
    return Documents(embed(sentences), cues, start, length, broken)


def break_sentence(sentence: str, other: str, draw: np.random.Generator) -> str | None:
    """Cut off (half of the time), its middle dropped, or joined to the end of `other`; None where
    one has under 8 words.
    """
    words, end = sentence.split(), other.split()
    if min(len(words), len(end)) < 8:
        return None
    kind = draw.random()
    if kind < 0.5:
        kept = " ".join(words[: draw.integers(len(words) // 3 + 1, len(words) - 1)]).rstrip(",;:.")
        return kept + (" ." if draw.random() < 0.4 else "")
    if kind < 0.75:
        k = draw.integers(2, len(words) - 5)
        return " ".join(words[:k] + words[draw.integers(k + 2, len(words) - 1) :])
    return " ".join(
        words[: draw.integers(3, len(words) - 2)] + end[draw.integers(2, len(end) - 3) :]
    )


def imitation(
    data: Documents, document: int, draw: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels) of one imitation summary, as the module's docstring describes."""
    n, start = int(data.length[document]), data.start[document]
    size = min(n, draw.choice(LENGTHS, p=LENGTH_SHARES))
    kind = draw.random()
    if kind < 0.30:
        picked = np.arange(size)
    elif kind < 0.36:
        picked = np.arange(n)
    elif kind < 0.46:
        picked = draw.integers(n - size + 1) + np.arange(size)
    elif kind < 0.80:
        picked = np.sort(draw.choice(n, size=size, replace=False))
        if draw.random() < 0.5:
            picked[0] = 0
    else:
        picked = draw.permutation(min(n, size + 2))[:size]
    rows, fault = start + picked, draw.random()
    labels = np.concatenate([picked[:1] == 0, np.diff(picked) == 1])
    place, other = draw.integers(len(rows)), draw.integers(len(data.length))
    if fault < 0.12:
        rows[place] = data.start[other] + draw.integers(data.length[other])
        labels[place] = place == 0 and rows[0] == data.start[other]
        labels[place + 1 : place + 2] = False
    elif fault < 0.20:
        again = draw.integers(place, len(rows)) + 1
        labels[again : again + 1] &= (
            again == place + 1
        )  # after a repetition right away, what follows still follows
        rows, labels = np.insert(rows, again, rows[place]), np.insert(labels, again, False)
    elif fault < 0.45:
        is_broken = np.isin(rows, list(data.broken[document]))
        labels &= ~is_broken
        rows = np.array([data.broken[document].get(row, row) for row in rows])
    elif fault < 0.48:
        rows, labels = np.tile(rows, 2), np.concatenate([labels, np.zeros_like(labels)])
    elif fault < 0.54:
        kept = draw.integers(1, len(rows))
        rest = min(len(rows) - kept, data.length[other])
        rows = np.concatenate(
            [
                rows[:kept],
                data.start[other] + draw.integers(data.length[other] - rest + 1) + np.arange(rest),
            ]
        )
        labels = np.concatenate([labels[:kept], np.zeros(rest, dtype=bool)])
    return rows, labels


def examples(
    data: Documents, summaries: int = SUMMARIES, seed: int = 0
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """(the network's inputs, labels float32 [places]) of so many imitation summaries of documents
    drawn evenly.
    """
    draw = np.random.default_rng(seed)
    inputs, labels = [], []
    for _ in tqdm(range(summaries), desc="imitations", unit="summary"):
        rows, own = imitation(data, int(draw.integers(len(data.length))), draw)
        cues = data.cues[int(draw.integers(2))]
        inputs.append(places(data.vectors[rows], [cues[row] for row in rows]))
        labels.append(own)
    return tuple(torch.cat(parts) for parts in zip(*inputs, strict=True)), torch.from_numpy(
        np.concatenate(labels)
    ).float()


def train(
    inputs: Sequence[torch.Tensor],
    labels: torch.Tensor,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    seed: int = 0,
) -> PairNetwork:
    """A network, trained by AdamW on the cross-entropy of the places, the learning rate falling
    linearly to 0.
    """
    torch.manual_seed(seed)
    network = PairNetwork(DROPOUT).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1.0, 0.0, epochs * -(-len(labels) // batch)
    )
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        for rows in torch.randperm(len(labels)).split(batch):
            loss = binary_cross_entropy_with_logits(
                network(*(part[rows] for part in inputs)), labels[rows]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
