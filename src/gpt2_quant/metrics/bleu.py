"""BLEU and chrF: n-gram overlap with a reference, on a scale of 0 to 100.

BLEU (Papineni et al. 2002) is precision with a brevity penalty in place of recall (c, r: lengths of
candidate and closest reference). Over a corpus the counts are summed before the ratio.

    BLEU = min(1, exp(1 - r/c)) * exp( mean over n = 1..4 of log(matched / candidate n-grams) )

One n without a match makes it 0, so sentence BLEU is *smoothed*: sacrebleu's `exp` halves a virtual
count at each empty order, NLTK's method 4 is Chen and Cherry's (2014). chrF (Popović 2015) is F
over character n-grams, recall weighted twice; it needs no tokenizer, so is fair to inflected and
non-Latin text.
"""

import functools
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from ..cache import Cache
from .scored import References, Scored, cached_rows, has_words, pair_items, version


def bleu(candidates: Sequence[str], references: References, cache: Cache | None = None) -> Scored:
    """sacrebleu's BLEU, without orders that a text is too short to have; corpus value from summed
    counts. NaN for a blank candidate, or one with blank references only.
    """
    from sacrebleu.metrics import BLEU

    sentence, corpus = BLEU(effective_order=True), BLEU(force=True)
    settings = "13a tokens|exp smoothing|effective order"
    return _sacrebleu("BLEU", sentence, corpus, settings, candidates, references, cache)


def chrf(candidates: Sequence[str], references: References, cache: Cache | None = None) -> Scored:
    """sacrebleu's chrF2 (character 6-grams, beta 2); NaN as `bleu`."""
    from sacrebleu.metrics import CHRF

    settings = "char 6, word 0, beta 2"
    return _sacrebleu("chrF", CHRF(), CHRF(), settings, candidates, references, cache)


def _sacrebleu(name, sentence, corpus, settings, candidates, references, cache) -> Scored:
    items = pair_items(candidates, references)
    fixed = f"{name}|{version('sacrebleu')}|{settings}"

    def score(candidate: str, *group: str) -> float:
        defined = group and has_words(candidate)
        return sentence.sentence_score(candidate, group).score if defined else np.nan

    rows = cached_rows(cache, name.lower(), fixed, items, lambda some: [score(*i) for i in some])
    values = rows[:, 0]
    defined = [item for item, value in zip(items, values, strict=True) if np.isfinite(value)]
    if not defined:
        return Scored(name, values, fixed)
    # sacrebleu knows num_refs only after scoring the corpus, which is lazy here; -1: varies.
    sizes = {len(item) - 1 for item in defined}
    corpus.num_refs = sizes.pop() if len(sizes) == 1 else -1
    signature = f"{name}|{corpus.get_signature().format(short=False)}|a text: {fixed}"

    def pooled() -> float:
        texts, *streams = zip_longest(*defined)  # stream k: reference k of each text, or None
        return corpus.corpus_score(texts, streams).score

    return Scored(name, values, signature, pooled)


def nltk_bleu(
    candidates: Sequence[str], references: References, cache: Cache | None = None
) -> Scored:
    """NLTK's sentence BLEU (smoothing method 4) times 100; the corpus value is the mean."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    smoothing, tokens = SmoothingFunction().method4, functools.cache(NLTKWordTokenizer().tokenize)
    signature = f"BLEU (NLTK)|{version('nltk')}|NLTKWordTokenizer|smoothing method 4"

    def score(candidate: str, *group: str) -> float:
        # Like sacrebleu's effective order: a text of three tokens has no 4-grams.
        order = min(4, len(tokens(candidate)))
        if not group or not order:
            return np.nan
        words = [tokens(text) for text in group]
        return 100 * sentence_bleu(words, tokens(candidate), (1 / order,) * order, smoothing)

    items = pair_items(candidates, references, keep=tokens)
    rows = cached_rows(cache, "bleu_nltk", signature, items, lambda some: [score(*i) for i in some])
    return Scored("BLEU (NLTK)", rows[:, 0], signature)
