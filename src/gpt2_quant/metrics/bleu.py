"""BLEU and chrF: overlap with a reference as machine translation counts it.

BLEU (Papineni et al. 2002) is precision only, with a penalty for brevity standing in for recall:

    BLEU = min(1, exp(1 - r / c)) * exp( mean over n = 1..4 of log(matched n-grams / candidate
    n-grams) )

c and r being the lengths of candidate and closest reference. It was made for a corpus, where counts
are summed over texts before the ratio. For one text a single n-gram order without a match makes it
0, so sentence BLEU is *smoothed*, and published numbers differ by how: sacrebleu's `exp` halves an
invisible count at each empty order and, with `effective_order`, leaves out the orders that the text
is too short to have. NLTK's BLEU (method 4, Chen and Cherry 2014) is given beside it to show by how
much two common implementations differ on the same pair. chrF (Popović 2015) counts character
n-grams, F with recall weighted twice: no tokenizer, so inflected and non-Latin text is not punished
for its spaces. All are on the scale 0 to 100.
"""

from collections.abc import Sequence

import numpy as np

from ..cache import Cache, content_key
from .scored import Scored, check_pairs, has_words, version


def bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]], cache: Cache | None = None
) -> Scored:
    """sacrebleu's BLEU: smoothed value a text, unsmoothed-by-effective-order corpus value; 0 to
    100.

    A blank candidate, or one with blank references only, is undefined and stays out of the corpus
    value.
    """
    from sacrebleu.metrics import BLEU

    sentence, corpus = (
        BLEU(smooth_method="exp", effective_order=True),
        BLEU(smooth_method="exp", force=True),
    )
    return _sacrebleu("BLEU", sentence, corpus, candidates, references, cache)


def chrf(
    candidates: Sequence[str], references: Sequence[Sequence[str]], cache: Cache | None = None
) -> Scored:
    """sacrebleu's chrF2 (character 6-grams, beta 2), 0 to 100; undefined as `bleu` is."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu("chrF", CHRF(), CHRF(), candidates, references, cache)


def _sacrebleu(name: str, sentence, corpus, candidates, references, cache: Cache | None) -> Scored:
    check_pairs(candidates, references)
    groups = [[text for text in group if has_words(text)] for group in references]
    settings = (
        "13a tokens|exp smoothing|effective order" if name == "BLEU" else "char 6, word 0, beta 2"
    )
    fixed = f"{name}|{version('sacrebleu')}|{settings}"
    keys = [
        content_key("score and counts", fixed, candidate, *group)
        for candidate, group in zip(candidates, groups, strict=True)
    ]

    width = len(corpus._extract_corpus_statistics(["one"], [["one"]])[0])

    def compute(missing: list[int]) -> np.ndarray:
        rows = np.full((len(missing), 1 + width), np.nan)
        for row, i in enumerate(missing):
            if groups[i] and has_words(candidates[i]):
                counts = corpus._extract_corpus_statistics(
                    [candidates[i]], [[text] for text in groups[i]]
                )[0]
                rows[row] = (sentence._compute_score_from_stats(counts).score, *counts)
        return rows

    rows = (cache or Cache(None)).rows(name.lower(), keys, compute).reshape(-1, 1 + width)
    values = rows[:, 0]
    defined = np.isfinite(values)
    additive = rows[defined, 1:].sum(axis=0).astype(int) if defined.any() else None
    signature = (
        f"{name}|{corpus.get_signature().format(short=False)}|a text: {fixed}"
        if additive is not None
        else fixed
    )
    return Scored(
        name,
        values,
        signature,
        additive,
        lambda counts: float(corpus._compute_score_from_stats(list(counts)).score),
    )


def nltk_bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]], cache: Cache | None = None
) -> Scored:
    """NLTK's sentence BLEU with smoothing method 4 on NLTK's word tokens, times 100; corpus value
    the mean.
    """
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    check_pairs(candidates, references)
    smoothing, tokenizer = SmoothingFunction().method4, NLTKWordTokenizer()
    memo: dict[str, list[str]] = {}

    def tokens(text: str) -> list[str]:
        if text not in memo:
            memo[text] = tokenizer.tokenize(text)
        return memo[text]

    groups = [[text for text in group if tokens(text)] for group in references]
    signature = f"BLEU (NLTK)|{version('nltk')}|NLTKWordTokenizer|smoothing method 4"
    keys = [
        content_key(signature, candidate, *group)
        for candidate, group in zip(candidates, groups, strict=True)
    ]

    def compute(missing: list[int]) -> np.ndarray:
        values = np.full(len(missing), np.nan)
        for row, i in enumerate(missing):
            if groups[i] and tokens(candidates[i]):
                # A text of fewer than four tokens has no 4-grams: like sacrebleu's effective order,
                # count the orders it has.
                order = min(4, len(tokens(candidates[i])))
                weights = (1 / order,) * order
                values[row] = 100 * sentence_bleu(
                    [tokens(text) for text in groups[i]],
                    tokens(candidates[i]),
                    weights,
                    smoothing_function=smoothing,
                )
        return values

    values = (cache or Cache(None)).rows("bleu_nltk", keys, compute).reshape(-1)
    return Scored.mean("BLEU (NLTK)", values, signature)
