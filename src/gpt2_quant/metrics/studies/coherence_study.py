"""Does a coherence metric see what it should? Texts against their own damaged versions, as shares
that prefer the original.

* shuffle: sentences permuted (the shuffle test of Barzilay and Lapata 2008); block shuffle: blocks
  of three kept whole
* intrusion: one sentence of another text inserted; topic switch: the second half is another text's
* repetition: one sentence twice in a row; all twice in a row; the whole text twice

0.5 is chance; a tie counts half. Intervals are bootstrap intervals over texts. Perplexity reads
every permutation anew, at the cost of a language model's pass, so it gets fewer texts and
permutations than the metrics that only reorder sentence vectors.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..coherence import ABLATIONS, adjacent_cosine, all_pairs_cosine, coherence
from ..perplexity import perplexity
from ..sentences import split_sentences
from ..suite import Tools

CONTROLS = (
    "shuffle",
    "block shuffle",
    "intrusion",
    "topic switch",
    "one sentence twice",
    "each sentence twice",
    "whole text twice",
)
RESAMPLES = 2000
PERPLEXITY_TEXTS, PERPLEXITY_PERMUTATIONS = 30, 1


def damaged_versions(texts: Sequence[str], permutations: int) -> list[dict[str, list[str]]]:
    """For each text its damaged versions by control; texts of fewer than four sentences are left
    out, as None would be.
    """
    draw = np.random.default_rng(0)
    split = [sentences for sentences in map(split_sentences, texts) if len(sentences) >= 4]
    result = []
    for i, sentences in enumerate(split):
        n, other = len(sentences), split[(i + 1) % len(split)]
        place = int(draw.integers(n))
        blocks = [sentences[k : k + 3] for k in range(0, n, 3)]
        versions = {
            "original": [sentences],
            "shuffle": [[sentences[k] for k in _permutation(n, draw)] for _ in range(permutations)],
            "block shuffle": [
                [s for k in _permutation(len(blocks), draw) for s in blocks[k]]
                for _ in range(permutations)
            ],
            "intrusion": [
                [
                    *sentences[: place + 1],
                    other[int(draw.integers(len(other)))],
                    *sentences[place + 1 :],
                ]
            ],
            "topic switch": [sentences[: n // 2] + other[len(other) // 2 :][: n - n // 2]],
            "one sentence twice": [sentences[: place + 1] + sentences[place:]],
            "each sentence twice": [
                [copy for sentence in sentences for copy in (sentence, sentence)]
            ],
            "whole text twice": [sentences + sentences],
        }
        # A line break always ends a sentence, so every version is read with the sentences that it
        # was made of.
        result.append(
            {name: ["\n".join(version) for version in group] for name, group in versions.items()}
        )
    return result


def _permutation(n: int, draw: np.random.Generator) -> np.ndarray:
    """A random order that is not the original one (n of at least 2)."""
    while True:
        order = draw.permutation(n)
        if (order != np.arange(n)).any():
            return order


def coherence_metrics(tools: Tools) -> dict[str, Callable[[list[str]], np.ndarray]]:
    """Name -> function from texts to values, higher meant to be better."""
    metrics = {
        "SCS": lambda texts: coherence(texts, tools.encoder).values,
        "adjacent cosine": lambda texts: adjacent_cosine(texts, tools.encoder).values,
        "all-pairs cosine": lambda texts: all_pairs_cosine(texts, tools.encoder).values,
        "perplexity": lambda texts: (
            -np.log(perplexity(texts, tools.language_model, tools.cache).values)
        ),
    }
    for name, parts in ABLATIONS.items():
        metrics[f"SCS {name}"] = lambda texts, parts=parts: (
            coherence(texts, tools.encoder, parts).values
        )
    return metrics


def control_table(texts: Sequence[str], tools: Tools, permutations: int) -> pd.DataFrame:
    """One row a metric and control: share of versions that the metric puts below the original,
    interval, texts, versions a text.
    """
    all_versions = damaged_versions(texts, permutations)
    rows = []
    for name, metric in coherence_metrics(tools).items():
        few = name == "perplexity"
        limit = PERPLEXITY_PERMUTATIONS if few else permutations
        versions = all_versions[:PERPLEXITY_TEXTS] if few else all_versions
        drawn = np.random.default_rng(0).integers(len(versions), size=(RESAMPLES, len(versions)))
        flat = [
            text
            for group in versions
            for control in ("original", *CONTROLS)
            for text in group[control][:limit]
        ]
        values = iter(metric(flat))
        shares = {control: np.empty(len(versions)) for control in CONTROLS}
        for i, group in enumerate(versions):
            original = next(values)
            for control in CONTROLS:
                scores = np.array([next(values) for _ in group[control][:limit]])
                shares[control][i] = (np.sign(np.round(original - scores, 9)) / 2 + 0.5).mean()
        for control, share in shares.items():
            low, high = np.quantile(share[drawn].mean(1), (0.025, 0.975))
            rows.append(
                (
                    name,
                    control,
                    share.mean(),
                    low,
                    high,
                    len(versions),
                    min(limit, len(versions[0][control])),
                )
            )
    return pd.DataFrame(
        rows, columns=["metric", "control", "prefers_original", "low", "high", "texts", "versions"]
    )
