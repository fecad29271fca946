"""BERTScore (Zhang et al. 2020): each token of one text is matched with its nearest token of the
other, by cosine in context.

    P = mean over candidate tokens of max over reference tokens cos(c, r),   R the same from the reference's side,   F = 2PR / (P+R)

The special tokens at both ends may be matched but carry no weight of their own, as in the
bert-score package; with several references P, R and F each take their best. Unrelated texts do not
score 0 (0.19 under MiniLM, above 0.8 under roberta-large), so values can be *rescaled*: (x - b) /
(1 - b), b being the mean over pairs of unrelated texts. The package ships b for the models it
knows; `random_pair_baseline` measures it for this one. The order of values is unchanged by it, and
values of different models never compare.

Here each distinct text goes through the model once, in batches of equal length, and pairs are
matched in batches; the package, called once a pair, runs the model twice for each. Same numbers, at
a fraction of the time.
"""

from collections.abc import Sequence

import numpy as np
import torch

from ..cache import Cache, content_key
from .embeddings import N_LAYERS, WEIGHTS_SHA256, Encoder
from .scored import Scored, check_pairs, has_words

CHUNK_PAIRS = (
    4096  # texts of one chunk are held as token vectors at a time: about 300 MB for summaries
)


def bertscore(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    encoder: Encoder,
    baseline: np.ndarray | None = None,
    cache: Cache | None = None,
) -> Scored:
    """BERTScore under `encoder`'s last layer, without idf; values are F, `parts` has precision and
    recall.

    `baseline` [3] (P, R, F of unrelated pairs) rescales. Blank texts are undefined; a text beyond
    the model's positions counts with its beginning. The corpus value is the mean.
    """
    check_pairs(candidates, references)
    limit = position_limit(encoder)
    fixed = f"BERTScore|all-MiniLM-L6-v2@{WEIGHTS_SHA256[:8]}|layer {N_LAYERS}|no idf|first {limit} tokens"
    owners, pairs = [], []
    for owner, (candidate, group) in enumerate(zip(candidates, references, strict=True)):
        kept = (
            [(candidate, text) for text in group if has_words(text)] if has_words(candidate) else []
        )
        pairs += kept
        owners += [owner] * len(kept)
    keys = [content_key(fixed, *pair) for pair in pairs]
    rows = (cache or Cache(None)).rows(
        "bertscore", keys, lambda missing: _score([pairs[i] for i in missing], encoder, limit)
    )
    best = np.full((len(candidates), 3), np.nan)
    if pairs:
        np.fmax.at(best, owners, rows)
    if baseline is not None:
        best = (best - baseline) / (1 - baseline)
    scale = "raw" if baseline is None else f"rescaled with own baseline {baseline[2]:.4f}"
    parts = {"precision": best[:, 0], "recall": best[:, 1]}
    return Scored.mean("BERTScore", best[:, 2], f"{fixed}|F1|{scale}", parts=parts)


def random_pair_baseline(
    texts: Sequence[str], encoder: Encoder, cache: Cache | None = None, n: int = 1000
) -> np.ndarray:
    """Mean P, R, F [3] over `n` pairs of different `texts` drawn with a fixed seed: the score that
    means "nothing in common".
    """
    texts = sorted({text for text in texts if has_words(text)})
    draw = np.random.default_rng(0)
    left, shift = draw.integers(len(texts), size=n), draw.integers(1, len(texts), size=n)
    right = (left + shift) % len(texts)
    scored = bertscore([texts[i] for i in left], [[texts[i]] for i in right], encoder, cache=cache)
    return np.array(
        [
            np.nanmean(scored.parts["precision"]),
            np.nanmean(scored.parts["recall"]),
            np.nanmean(scored.values),
        ]
    )


def position_limit(encoder: Encoder) -> int:
    """How many tokens of a text count: the smaller of the tokenizer's limit and the model's
    positions.
    """
    return int(
        min(encoder.tokenizer.model_max_length, encoder.model.config.max_position_embeddings)
    )


def _score(pairs: list[tuple[str, str]], encoder: Encoder, limit: int) -> np.ndarray:
    """P, R, F float64 [len(pairs), 3] of (candidate, reference) pairs of texts with words in them."""
    rows = np.empty((len(pairs), 3))
    for start in range(0, len(pairs), CHUNK_PAIRS):
        chunk = pairs[start : start + CHUNK_PAIRS]
        texts = list(dict.fromkeys(text.strip() for pair in chunk for text in pair))
        vectors = _token_vectors(texts, encoder, limit)
        index = {text: i for i, text in enumerate(texts)}
        ends = np.array(
            [[index[candidate.strip()], index[reference.strip()]] for candidate, reference in chunk]
        )
        lengths = np.array([len(v) for v in vectors])
        order = np.lexsort((lengths[ends[:, 1]], lengths[ends[:, 0]]))
        for batch in np.array_split(order, max(1, len(order) // 64)):
            rows[start + batch] = _match(
                [vectors[i] for i in ends[batch, 0]], [vectors[i] for i in ends[batch, 1]]
            )
    return rows


def _token_vectors(texts: list[str], encoder: Encoder, limit: int) -> list[torch.Tensor]:
    """Unit token vectors [t, 384] of each text, special tokens first and last."""
    vectors: list[torch.Tensor] = [None] * len(texts)
    for rows, hidden, mask in encoder.batches(texts, limit, "token vectors"):
        hidden = torch.nn.functional.normalize(hidden, dim=-1)
        for line, row in enumerate(rows):
            vectors[row] = hidden[line, : int(mask[line].sum())].clone()
    return vectors


@torch.inference_mode()
def _match(candidates: list[torch.Tensor], references: list[torch.Tensor]) -> np.ndarray:
    """P, R, F [b, 3] from token vectors, each [t, d]; a text of special tokens alone gives NaN."""
    left, left_weight, left_gap = _padded(candidates)
    right, right_weight, right_gap = _padded(references)
    similarity = torch.bmm(left, right.transpose(1, 2))
    precision = (similarity + right_gap[:, None, :]).amax(2)
    recall = (similarity + left_gap[:, :, None]).amax(1)
    precision = (precision * left_weight).sum(1) / left_weight.sum(1)
    recall = (recall * right_weight).sum(1) / right_weight.sum(1)
    f1 = 2 * precision * recall / (precision + recall)
    return torch.stack((precision, recall, f1), dim=1).double().cpu().numpy()


def _padded(vectors: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors [b, t, d]; weight [b, t], 0 at special tokens and padding; gap [b, t], 0 at tokens
    and -3 (below any cosine) at padding.
    """
    stacked = torch.nn.utils.rnn.pad_sequence(vectors, batch_first=True)
    lengths = torch.tensor([len(v) for v in vectors], device=stacked.device)[:, None]
    position = torch.arange(stacked.shape[1], device=stacked.device)
    weight = ((position > 0) & (position < lengths - 1)).float()
    gap = torch.where(position < lengths, 0.0, -3.0)
    return stacked, weight, gap
