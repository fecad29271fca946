"""BERTScore (Zhang et al. 2020): greedy matching of contextual token embeddings.

    P = mean over candidate tokens of max over reference tokens of cos(c, r)
    R = the same from the reference's side,   F = 2PR / (P + R)

Special tokens may be matched but carry no weight; with several references P, R and F each take
their best. Unrelated texts score above 0 (`random_pair_baseline`); models do not compare.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..cache import Cache
from ..models.loading import quiet_loading
from .embeddings import N_LAYERS, N_POSITIONS, WEIGHTS_SHA256, Encoder
from .scored import References, Scored, cached_rows, has_words, pair_items

BASELINE_PAIRS = 1000


def bertscore(
    candidates: Sequence[str], references: References, encoder: Encoder, cache: Cache | None = None
) -> Scored:
    """BERTScore under MiniLM's last layer, without idf; values are F, NaN for blank texts; `parts`
    has precision and recall. Longer texts are truncated to N_POSITIONS tokens.
    """
    signature = f"BERTScore|all-MiniLM-L6-v2@{WEIGHTS_SHA256[:8]}|layer {N_LAYERS}|no idf"
    signature += f"|first {N_POSITIONS} tokens|F1|raw"
    # The package crashes on blank texts.
    pairs = [
        (i, candidate, reference)
        for i, (candidate, *group) in enumerate(pair_items(candidates, references))
        for reference in group
        if has_words(candidate)
    ]
    score = functools.partial(_score, encoder=encoder)
    rows = cached_rows(cache, "bertscore", signature, [pair[1:] for pair in pairs], score, width=3)
    best = np.full((len(candidates), 3), np.nan)
    np.fmax.at(best, [i for i, *_ in pairs], rows)
    parts = {"precision": best[:, 0], "recall": best[:, 1]}
    return Scored("BERTScore", best[:, 2], signature, parts=parts)


def random_pair_baseline(
    texts: Sequence[str], encoder: Encoder, cache: Cache | None = None
) -> np.ndarray:
    """Mean P, R, F [3] over random pairs of different `texts`."""
    texts = sorted({text for text in texts if has_words(text)})
    rng = np.random.default_rng(0)
    left = rng.integers(len(texts), size=BASELINE_PAIRS)
    right = (left + rng.integers(1, len(texts), size=BASELINE_PAIRS)) % len(texts)
    scored = bertscore([texts[i] for i in left], [[texts[i]] for i in right], encoder, cache)
    return np.nanmean([*scored.parts.values(), scored.values], axis=1)


def _score(pairs: list[tuple[str, str]], encoder: Encoder) -> np.ndarray:
    """P, R, F float64 [len(pairs), 3]."""
    candidates, references = zip(*pairs, strict=True)
    scores = _scorer(encoder.folder, encoder.device).score(list(candidates), list(references))
    rows = torch.stack(scores, dim=1).double().numpy()
    rows[(rows == 0).all(axis=1)] = np.nan  # the package's 0 for a text without a single token
    return rows


@functools.cache
def _scorer(folder: Path, device: str):
    from bert_score import BERTScorer

    quiet_loading()
    return BERTScorer(model_type=str(folder), num_layers=N_LAYERS, device=device)
