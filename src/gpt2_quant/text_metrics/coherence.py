"""Semantic Coherence Score (SCS): does each sentence follow from what came before? From the text alone, in [0, 1].

For sentences s_1 … s_n with unit vectors x_i (MiniLM), SCS is the geometric mean of four parts, each in [0, 1]:

    continuity  C = mean over i of continuation(s_i, s_i+1)            do neighbours belong together, in this order?
    precedence  P = mean over i < j of precedence(s_i, s_j)            is what comes early the kind of thing that comes early?
    novelty     N = 1 - sqrt( mean over i > 1 of r_i² ),               does each sentence add something?
                    r_i = clip( (max over j < i of x_i · x_j - 0.6) / 0.4, 0, 1 )
    unity       U = 1 - exp( -(u / 0.25)² ),                           is it all about one thing?
                    u = mean of x_i · x_j over pairs with x_i · x_j < 0.85

Why these. Cosines alone cannot do it: the mean over all pairs does not change when sentences are shuffled, and the mean over
neighbours is highest when one sentence is said again and again. So order comes from a small learned judge of pairs
(`order_model.py`), locally (C) and globally (P); repetition is charged explicitly (N), for each sentence against everything
said before it, by a quadratic mean so that one verbatim repetition weighs more than a little overlap everywhere; and a change
of subject, which may read smoothly at every joint but one, shows in U, which saturates because above a typical relatedness more
sameness is no more coherence (near-duplicates are left out of it: they are N's business). The geometric mean lets no part make
up for another: a text fails by its worst failing.

The knees (0.6, 0.25, 0.85) and the form were chosen for their behaviour on held-out news documents and damaged versions of
them. Agreement with SummEval's ratings was printed beside it for some thirty variants; the one kept is not the one that agreed
best. A text of one sentence has no joints: its score is undefined (NaN), and so is that of a blank text.
"""

from collections.abc import Sequence

import numpy as np

from .cache import content_key
from .embeddings import Encoder
from .order_model import judge, order_model_hash
from .scored import Scored
from .sentences import split_sentences

PARTS = ("continuity", "precedence", "novelty", "unity")
ABLATIONS = {
    "without continuity": ("precedence", "novelty", "unity"),
    "without precedence": ("continuity", "novelty", "unity"),
    "without novelty": ("continuity", "precedence", "unity"),
    "without unity": ("continuity", "precedence", "novelty"),
    **{f"{part} alone": (part,) for part in PARTS},
}
REPETITION_KNEE, RELATED, DUPLICATE = 0.6, 0.25, 0.85
FLOOR = 1e-3  # of a part, so that one part at 0 leaves the order of the others visible


def coherence(texts: Sequence[str], encoder: Encoder, parts: Sequence[str] = PARTS) -> Scored:
    """SCS of each text in [0, 1], NaN for fewer than two sentences; `parts` selects what enters (for ablations).

    The result's `parts` has every part's values and the number of sentences.
    """
    version = f"SCS|v1|order model {order_model_hash()}|{encoder.signature}"
    keys = [content_key(version, text) for text in texts]
    rows = encoder.cache.rows("coherence_parts", keys, lambda missing: _all_parts([texts[i] for i in missing], encoder))
    table = rows.reshape(-1, len(PARTS) + 1)
    chosen = [PARTS.index(part) for part in parts]
    values = np.exp(np.log(np.maximum(table[:, chosen], FLOOR)).mean(axis=1))
    columns = {part: table[:, i] for i, part in enumerate((*PARTS, "sentences"))}
    return Scored.mean("SCS", values, f"{version}|{'+'.join(parts)}", parts=columns)


def _all_parts(texts: Sequence[str], encoder: Encoder) -> np.ndarray:
    """Every part and the number of sentences of each text, float64 [len(texts), 5]; parts are NaN below two sentences."""
    sentences = [split_sentences(text) for text in texts]
    table = np.full((len(texts), len(PARTS) + 1), np.nan)
    for row, vectors in enumerate(_vectors(sentences, encoder)):
        table[row, -1] = len(sentences[row])
        if len(sentences[row]) > 1:
            table[row, :-1] = coherence_parts(sentences[row], vectors)
    return table


def coherence_parts(sentences: Sequence[str], vectors: np.ndarray) -> np.ndarray:
    """Continuity, precedence, novelty, unity, float64 [4], of at least two sentences with their unit vectors [n, 384]."""
    continuation, precedence = judge(sentences, vectors)
    similarity = (vectors @ vectors.T).astype(np.float64)
    upper = np.triu_indices(len(sentences), 1)
    nearest = np.array([similarity[i, :i].max() for i in range(1, len(sentences))])
    repeated = np.clip((nearest - REPETITION_KNEE) / (1 - REPETITION_KNEE), 0, 1)
    distinct = similarity[upper][similarity[upper] < DUPLICATE]
    related = max(0.0, distinct.mean()) if len(distinct) else 0.0
    return np.array(
        [
            continuation.mean(),
            precedence[upper].mean(),
            1 - np.sqrt((repeated**2).mean()),
            1 - np.exp(-((related / RELATED) ** 2)),
        ]
    )


def adjacent_cosine(texts: Sequence[str], encoder: Encoder) -> Scored:
    """Mean cosine of neighbouring sentences, the usual coherence score: rewards repetition. NaN for fewer than two sentences."""
    return _cosines("adjacent cosine", texts, encoder, lambda gram: np.diag(gram, 1).mean())


def all_pairs_cosine(texts: Sequence[str], encoder: Encoder) -> Scored:
    """Mean cosine over all pairs of sentences: blind to their order. NaN for fewer than two sentences."""
    return _cosines("all-pairs cosine", texts, encoder, lambda gram: gram[np.triu_indices(len(gram), 1)].mean())


def _cosines(name: str, texts: Sequence[str], encoder: Encoder, statistic) -> Scored:
    sentences = [split_sentences(text) for text in texts]
    values = np.full(len(texts), np.nan)
    for row, vectors in enumerate(_vectors(sentences, encoder)):
        if len(vectors) > 1:
            values[row] = statistic(vectors.astype(np.float64) @ vectors.T.astype(np.float64))
    return Scored.mean(name, values, f"{name}|{encoder.signature}")


def _vectors(sentences: list[list[str]], encoder: Encoder) -> list[np.ndarray]:
    """Each text's sentence vectors [n, 384]; all texts' distinct sentences are embedded together."""
    distinct = list(dict.fromkeys(sentence for group in sentences for sentence in group))
    place = {sentence: i for i, sentence in enumerate(distinct)}
    vectors = encoder.sentence_vectors(distinct)
    return [vectors[[place[sentence] for sentence in group]] if group else np.empty((0, 384), np.float32) for group in sentences]
