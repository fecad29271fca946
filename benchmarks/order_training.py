"""Training of the networks in `gpt2_quant/metrics/order_model.py`, on imitation summaries: the only
labels are where authors put their sentences.

A summary is made of a document's sentences, and each of its positions is labelled: 1 if the
sentence opened the document (first position) or came right after the one that it follows now, else
0. `KINDS` says which sentences a summary picks and how often, `FAULTS` what is then done to it; the
position of a broken sentence is 0, and so is everything said again or of another text. Half of the
summaries are read in lower case, as some systems write, so that capitals are evidence but no
crutch. The loss is the cross-entropy of the positions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from gpt2_quant.metrics.cues import Cues
from gpt2_quant.metrics.order_model import PairNetwork, network_inputs

SUMMARIES, EPOCHS, BATCH_SIZE, LEARNING_RATE = 60_000, 8, 1024, 2e-3
WEIGHT_DECAY, DROPOUT = 0.1, 0.4
LENGTHS, LENGTH_FRACTIONS = (2, 3, 4, 5, 6, 8), (0.15, 0.25, 0.2, 0.2, 0.1, 0.1)
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

    def run(self, document: int, size: int, rng: np.random.Generator) -> np.ndarray:
        """The rows of `size` sentences in a row from anywhere in `document`."""
        first = rng.integers(self.length[document] - size + 1)
        return self.start[document] + first + np.arange(size)


def prepare(
    documents: Sequence[Sequence[str]], embed: Callable[[list[str]], np.ndarray], seed: int = 3
) -> Documents:
    """Embeds all sentences and some broken versions of them; documents have at least two sentences
    each.
    """
    rng = np.random.default_rng(seed)
    sentences = [sentence for document in documents for sentence in document]
    length = np.array([len(document) for document in documents])
    start = np.cumsum(length) - length
    broken = []
    for first, document in zip(start, documents, strict=True):
        among = min(len(document), BROKEN_AMONG_FIRST)
        rows = {}
        for k in rng.choice(among, size=min(BROKEN_PER_DOCUMENT, among), replace=False):
            version = break_sentence(document[k], document[rng.integers(len(document))], rng)
            if version:
                rows[int(first + k)] = len(sentences)
                sentences.append(version)
        broken.append(rows)
    cues = [Cues(text) for text in sentences], [Cues(text.lower()) for text in sentences]
    return Documents(embed(sentences), cues, start, length, broken)


def break_sentence(sentence: str, other: str, rng: np.random.Generator) -> str | None:
    """Cut off (half of the time), its middle dropped, or joined to the end of `other`; None where
    one has under 8 words.
    """
    words, end = sentence.split(), other.split()
    if min(len(words), len(end)) < 8:
        return None
    kind = rng.random()
    if kind < 0.5:
        kept = " ".join(words[: rng.integers(len(words) // 3 + 1, len(words) - 1)]).rstrip(",;:.")
        return kept + (" ." if rng.random() < 0.4 else "")
    if kind < 0.75:
        k = rng.integers(2, len(words) - 5)
        return " ".join(words[:k] + words[rng.integers(k + 2, len(words) - 1) :])
    kept_words = words[: rng.integers(3, len(words) - 2)]
    return " ".join(kept_words + end[rng.integers(2, len(end) - 3) :])


def _in_order(n: int, size: int, rng: np.random.Generator) -> np.ndarray:
    picked = np.sort(rng.choice(n, size=size, replace=False))
    if rng.random() < 0.5:
        picked[0] = 0
    return picked


# Kind of summary -> (fraction, which of a document's n sentences it has: (n, size, rng) -> [size]).
KINDS = {
    "lead": (0.30, lambda n, size, rng: np.arange(size)),
    "whole document": (0.06, lambda n, size, rng: np.arange(n)),
    "a run from anywhere": (0.10, lambda n, size, rng: rng.integers(n - size + 1) + range(size)),
    "from anywhere, in order": (0.34, _in_order),
    "out of order": (0.20, lambda n, size, rng: rng.permutation(min(n, size + 2))[:size]),
}


@dataclass
class Summary:
    """One imitation summary: its rows in `data`, and whether each sentence is in its place."""

    data: Documents
    document: int
    rows: np.ndarray
    labels: np.ndarray


def _foreign_sentence(summary, position, other, rng) -> None:
    data, rows, labels = summary.data, summary.rows, summary.labels
    rows[position] = data.start[other] + rng.integers(data.length[other])
    labels[position] = position == 0 and rows[0] == data.start[other]
    labels[position + 1 : position + 2] = False


def _one_sentence_again(summary, position, other, rng) -> None:
    rows, labels = summary.rows, summary.labels
    again = rng.integers(position, len(rows)) + 1
    # After a repetition right away, what follows still follows.
    labels[again : again + 1] &= again == position + 1
    summary.rows = np.insert(rows, again, rows[position])
    summary.labels = np.insert(labels, again, False)


def _broken_sentences(summary, position, other, rng) -> None:
    broken = summary.data.broken[summary.document]
    summary.labels &= ~np.isin(summary.rows, list(broken))
    summary.rows = np.array([broken.get(row, row) for row in summary.rows])


def _all_twice(summary, position, other, rng) -> None:
    summary.rows = np.tile(summary.rows, 2)
    summary.labels = np.append(summary.labels, np.zeros_like(summary.labels))


def _rest_of_another(summary, position, other, rng) -> None:
    kept = rng.integers(1, len(summary.rows))
    rest = min(len(summary.rows) - kept, summary.data.length[other])
    summary.rows = np.append(summary.rows[:kept], summary.data.run(other, rest, rng))
    summary.labels = np.append(summary.labels[:kept], np.zeros(rest, dtype=bool))


# Fault -> (fraction, function of (summary, one of its positions, another document, rng)).
FAULTS = {
    "a foreign sentence": (0.12, _foreign_sentence),
    "one sentence again": (0.08, _one_sentence_again),
    "broken sentences": (0.25, _broken_sentences),
    "all of it twice": (0.03, _all_twice),
    "the rest of another text": (0.06, _rest_of_another),
    "none": (0.46, lambda summary, position, other, rng: None),
}


def _drawn(table: dict, rng: np.random.Generator) -> Callable:
    """One of the functions of a table, drawn by the fractions."""
    fractions, functions = zip(*table.values(), strict=True)
    return functions[rng.choice(len(functions), p=fractions)]


def imitation(
    data: Documents, document: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(rows, labels) of one imitation summary, as the module's docstring describes."""
    n = int(data.length[document])
    size = min(n, rng.choice(LENGTHS, p=LENGTH_FRACTIONS))
    picked = _drawn(KINDS, rng)(n, size, rng)
    labels = np.append(picked[:1] == 0, np.diff(picked) == 1)
    summary = Summary(data, document, data.start[document] + picked, labels)
    spoil = _drawn(FAULTS, rng)
    spoil(summary, rng.integers(len(picked)), rng.integers(len(data.length)), rng)
    return summary.rows, summary.labels


def examples(
    data: Documents, summaries: int = SUMMARIES, seed: int = 0
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """(the network's inputs, labels float32 [positions]) of so many imitation summaries of
    documents drawn evenly.
    """
    rng = np.random.default_rng(seed)
    inputs, labels = [], []
    for _ in tqdm(range(summaries), desc="imitations", unit="summary"):
        rows, own = imitation(data, int(rng.integers(len(data.length))), rng)
        cues = data.cues[int(rng.integers(2))]
        inputs.append(network_inputs(data.vectors[rows], [cues[row] for row in rows]))
        labels.append(own)
    joined = tuple(torch.cat(parts) for parts in zip(*inputs, strict=True))
    return joined, torch.from_numpy(np.concatenate(labels)).float()


def train(
    inputs: Sequence[torch.Tensor],
    labels: torch.Tensor,
    epochs: int = EPOCHS,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> PairNetwork:
    """A network, trained by AdamW on the cross-entropy of the positions, the learning rate falling
    linearly to 0.
    """
    torch.manual_seed(seed)
    network = PairNetwork(DROPOUT).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(labels) // batch_size)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        for rows in torch.randperm(len(labels)).split(batch_size):
            logits = network(*(part[rows] for part in inputs))
            loss = binary_cross_entropy_with_logits(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
