"""Semantic Coherence Score (SCS), without a reference. For sentences s_1 … s_n with unit vectors
x_i (MiniLM), SCS = C · N · U in [0, 1]:

    continuity  C = mean over i of p_i
                    p_1: s_1 opens a text; p_i: s_i follows s_1 … s_i-1
    novelty     N = 1 - sqrt( mean over i > 1 of r_i² )
                    r_i = clip( (max over j < i of x_i · x_j - 0.8) / 0.2, 0, 1 )
    unity       U = 1 - exp( -(u / 0.08)² )
                    u = min over 3 <= k <= n - 3 of the mean of x_i · x_j over i <= k < j
                    U = 1 for n < 6

Cosines are blind to order in their mean over all pairs, and repetition raises their mean over
neighbours. So a learned judge gives the p_i (`order_model.py`); N and U discount repetition and a
change of subject. Constants were chosen on held-out documents, not on ratings (`dev/LOG.md`).
"""

from collections.abc import Callable, Sequence

import numpy as np

from .embeddings import Encoder
from .order_model import cues_of, judge, order_model_hash
from .scored import Scored, cached_rows
from .sentences import split_sentences

PARTS = ("continuity", "novelty", "unity")
ABLATIONS = {
    "without continuity": ("novelty", "unity"),
    "without novelty": ("continuity", "unity"),
    "without unity": ("continuity", "novelty"),
    **{f"{part} alone": (part,) for part in PARTS},
}
REPETITION_KNEE, UNRELATED, SIDE = 0.8, 0.08, 3
FLOOR = 1e-3  # of a part: the order of the others stays visible


def coherence(texts: Sequence[str], encoder: Encoder, parts: Sequence[str] = PARTS) -> Scored:
    """SCS of each text, NaN below two sentences; `parts` selects its factors (for ablations). The
    result's `parts` has every factor and the number of sentences.
    """
    version = f"SCS|v2|order model {order_model_hash()}|{encoder.signature}"
    columns = (*PARTS, "sentences")

    def compute(items):
        table = np.full((len(items), len(columns)), np.nan)
        embedded = _embedded([text for (text,) in items], encoder)
        for row, (sentences, vectors) in zip(table, embedded, strict=True):
            row[-1] = len(sentences)
            if len(sentences) > 1:
                in_place = judge(vectors, [cues_of(sentence) for sentence in sentences])
                row[:-1] = coherence_parts(in_place, vectors)
        return table

    items = [(text,) for text in texts]
    rows = cached_rows(encoder.cache, "coherence_parts", version, items, compute, len(columns))
    table = dict(zip(columns, rows.T, strict=True))
    values = np.prod([np.maximum(table[part], FLOOR) for part in parts], axis=0)
    return Scored("SCS", values, f"{version}|{'+'.join(parts)}", parts=table)


def coherence_parts(in_place: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Continuity, novelty, unity, float64 [3], of n >= 2 sentences: the judge's p_i [n] and the
    unit vectors [n, 384].
    """
    similarity = (vectors @ vectors.T).astype(np.float64)
    n = len(similarity)
    nearest = np.array([similarity[i, :i].max() for i in range(1, n)])
    repeated = np.clip((nearest - REPETITION_KNEE) / (1 - REPETITION_KNEE), 0, 1)
    across = [similarity[:k, k:].mean() for k in range(SIDE, n - SIDE + 1)]
    unity = 1 - np.exp(-((max(0.0, min(across)) / UNRELATED) ** 2)) if across else 1.0
    # Quadratic: one verbatim repetition outweighs a little overlap everywhere.
    return np.array([in_place.mean(), 1 - np.sqrt((repeated**2).mean()), unity])


def adjacent_cosine(texts: Sequence[str], encoder: Encoder) -> Scored:
    """Mean cosine of neighbouring sentences: rewards repetition. NaN below two."""
    return _cosines("adjacent cosine", texts, encoder, lambda cosines: np.diag(cosines, 1))


def all_pairs_cosine(texts: Sequence[str], encoder: Encoder) -> Scored:
    """Mean cosine over all pairs of sentences: blind to order. NaN below two."""
    return _cosines("all-pairs cosine", texts, encoder, lambda c: c[np.triu_indices(len(c), 1)])


def _cosines(name: str, texts: Sequence[str], encoder: Encoder, chosen: Callable) -> Scored:
    """Mean of the cosines `chosen` from [n, n]."""
    values = np.full(len(texts), np.nan)
    for i, (_, vectors) in enumerate(_embedded(texts, encoder)):
        if len(vectors) > 1:
            exact = vectors.astype(np.float64)
            values[i] = chosen(exact @ exact.T).mean()
    return Scored(name, values, f"{name}|{encoder.signature}")


def _embedded(texts: Sequence[str], encoder: Encoder) -> list[tuple[list[str], np.ndarray]]:
    """Each text's sentences and their vectors [n, 384]."""
    split = [split_sentences(text) for text in texts]
    vectors = encoder.sentence_vectors([sentence for group in split for sentence in group])
    ends = np.cumsum([len(group) for group in split])
    return list(zip(split, np.split(vectors, ends[:-1]), strict=True))
