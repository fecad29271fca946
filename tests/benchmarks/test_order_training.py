"""Training of the coherence score's judge: labels of imitation summaries, broken sentences, and
that it learns.
"""

import numpy as np
import pytest
import torch
from order_training import (
    break_sentence,
    examples,
    imitation,
    prepare,
    train,
)
from torch.nn.functional import binary_cross_entropy_with_logits

from gpt2_quant.metrics.order_model import judge

SENTENCES = 7


@pytest.fixture(scope="module")
def data():
    """Forty documents of seven sentences that say their position, with random unit vectors instead
    of MiniLM's.
    """
    ordinals = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh")
    documents = [
        [
            f"{word} of all came the report number {d} about the harbour and the town."
            for word in ordinals
        ]
        for d in range(40)
    ]

    def embed(sentences):
        # The place is written into the vector too, as far as a sentence has one.
        vectors = (
            np.random.default_rng(0).normal(size=(len(sentences), 384)).astype(np.float32) / 20
        )
        for vector, sentence in zip(vectors, sentences, strict=True):
            vector[[ordinal in sentence for ordinal in ordinals] + [False] * (384 - SENTENCES)] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return prepare(documents, embed)


def test_labels_say_whether_each_sentence_follows_the_one_before_it(data):
    draw = np.random.default_rng(1)
    broken = {row: whole for group in data.broken for whole, row in group.items()}
    runs = []
    for _ in range(2000):
        rows, labels = imitation(data, int(draw.integers(40)), draw)
        assert len(rows) == len(labels)
        before = np.array([broken.get(row, row) for row in rows[:-1]])
        follows = np.append(
            rows[0] % SENTENCES == 0, (rows[1:] == before + 1) & (rows[1:] % SENTENCES > 0)
        )
        said = np.array([row in rows[:i] for i, row in enumerate(rows)])
        # In its place: follows, whole, said for the first time.
        assert not labels[~follows | np.isin(rows, list(broken)) | said].any()
        if follows.all() and not np.isin(rows, list(broken)).any():
            runs.append(labels.all())
    # A lead is sound throughout, but for the rare foreign sentence or rest that chance took from
    # the same place.
    assert len(runs) > 300 and np.mean(runs) > 0.97


def test_broken_sentences_keep_words_of_their_sources_and_lose_some():
    draw = np.random.default_rng(0)
    sentence, other = "one two three four five six seven eight nine.", "a b c d e f g h i j."
    for _ in range(200):
        words = break_sentence(sentence, other, draw).replace(" .", "").split()
        assert len(words) > 2 and set(words) <= set((sentence + " " + other).split())
        assert words != sentence.split() and words[0] == "one"
    assert break_sentence("Too short to break.", other, draw) is None


def test_a_few_passes_lower_the_loss_and_the_judge_knows_the_order(data):
    inputs, labels = examples(data, summaries=800)
    assert {len(part) for part in inputs} == {len(labels)} and 0.3 < labels.mean() < 0.8
    losses = []
    for epochs in (0, 15):
        network = train(inputs, labels, epochs=epochs, batch_size=128)
        with torch.inference_mode():
            losses.append(binary_cross_entropy_with_logits(network(*inputs), labels))
    assert losses[1] < 0.8 * losses[0]
    rows = np.arange(SENTENCES)
    in_order, reversed_ = (
        judge(data.vectors[order], [data.cues[0][row] for row in order], [network])
        for order in (rows, rows[::-1])
    )
    assert in_order[0] > reversed_[0] and in_order.mean() > reversed_.mean() + 0.2


def test_the_same_seed_trains_the_same_network(data):
    runs = [train(*examples(data, summaries=50), epochs=1, batch_size=32) for _ in range(2)]
    assert all(
        torch.equal(first, second)
        for first, second in zip(*(run.parameters() for run in runs), strict=True)
    )
