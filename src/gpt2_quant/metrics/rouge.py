"""ROUGE (Lin 2004): how much of the reference's wording the candidate has.

    recall = matches / n-grams of the reference,  precision = matches / n-grams of the candidate
    F = 2PR / (P + R)

ROUGE-L takes the longest common subsequence as its matches; ROUGE-Lsum the union of those that each
reference sentence shares with the candidate. Of several references the one with the highest F
counts. It is blind to meaning: a negation costs one word, a paraphrase nearly all of them.

Counting is the rouge-score package's; the tokenizer agrees with its on ASCII and reads any
alphabet.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..cache import Cache
from .scored import References, Scored, cached_rows, pair_items, version
from .sentences import split_sentences

LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_CJK = "぀-ヿ㐀-䶿一-鿿豈-﫿"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[\U0001F000-\U0001FAFF\u2600-\u27BF]")
_ASCII_WORD = re.compile(r"[a-z0-9]{4,}")


class UnicodeTokenizer:
    """rouge-score's `tokenizer` for every alphabet; a CJK character or an emoji is a token."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = functools.cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        """Lower-case tokens; ASCII words of more than three characters are stemmed."""
        lowered = text.lower()
        if not lowered.isascii():
            lowered = unicodedata.normalize("NFC", lowered)
        tokens = _TOKEN.findall(lowered)
        return [self._stem(token) if _ASCII_WORD.fullmatch(token) else token for token in tokens]


def rouge(
    candidates: Sequence[str],
    references: References,
    cache: Cache | None = None,
    variants: Sequence[str] = tuple(LABELS),
) -> dict[str, Scored]:
    """ROUGE by variant; values are F in [0, 1], `parts` has precision and recall. NaN where
    candidate or references have no token, and for the ROUGE-2 of a single word.
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = UnicodeTokenizer()
    scorer = RougeScorer(list(variants), tokenizer=tokenizer)
    signature = version("rouge-score")
    signature += "|tokens: any alphabet, lower case|porter stems|best of references"
    lines = functools.cache(lambda text: "\n".join(split_sentences(text)))
    n_tokens = functools.cache(lambda text: len(tokenizer.tokenize(text)))

    def score(candidate: str, *group: str) -> np.ndarray:
        """Precision, recall, F [variants, 3]."""
        row = np.full((len(variants), 3), np.nan)
        if group and n_tokens(candidate):
            best = scorer.score_multi([lines(text) for text in group], lines(candidate))
            row[:] = [best[name] for name in variants]
            # Single words have no bigrams.
            if min(n_tokens(candidate), max(map(n_tokens, group))) < 2:
                row[[name == "rouge2" for name in variants]] = np.nan
        return row

    items = pair_items(candidates, references, keep=n_tokens)
    table, width = "rouge_" + "_".join(variants), 3 * len(variants)
    rows = cached_rows(
        cache, table, signature, items, lambda some: [score(*i) for i in some], width
    )
    rows = rows.reshape(-1, len(variants), 3)
    scored = {}
    for name, (precision, recall, f) in zip(variants, rows.transpose(1, 2, 0), strict=True):
        label, parts = LABELS[name], {"precision": precision, "recall": recall}
        scored[name] = Scored(label, f, f"{label}|F1|{signature}", parts=parts)
    return scored
