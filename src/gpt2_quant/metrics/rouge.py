"""ROUGE (Lin 2004): how much of the reference's wording the candidate has, counted in n-grams or in
a longest common subsequence.

    recall = matches / n-grams of the reference,  precision = matches / n-grams of the candidate
    F = 2PR / (P + R)

ROUGE-L takes the longest common subsequence of the whole text as its matches; ROUGE-Lsum takes the
union of the subsequences that each reference sentence shares with the candidate, and so needs
sentences (`sentences.py`). With several references each text counts with the one that gives the
highest F, as rouge-score's `score_multi` does. It reads no meaning: a negation costs one word, a
paraphrase nearly all of them.

The counting is the rouge-score package's. Its tokenizer knows ASCII letters and digits alone, and
gives two identical Russian texts a 0; the one here adds the letters and digits of any alphabet and
makes each Chinese or Japanese character and each emoji a token. On ASCII text the two agree.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..cache import Cache
from .scored import References, Scored, cached_rows, check_pairs, version
from .sentences import split_sentences

LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_CJK = "぀-ヿ㐀-䶿一-鿿豈-﫿"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[\U0001F000-\U0001FAFF\u2600-\u27BF]")
_ASCII_WORD = re.compile(r"[a-z0-9]{4,}")


class UnicodeTokenizer:
    """rouge-score's tokenizer for every alphabet; a drop-in for its `tokenizer` argument."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stem = functools.cache(PorterStemmer().stem)

    def tokenize(self, text: str) -> list[str]:
        """Lower-case tokens of `text`, stemmed where they are ASCII words of more than three
        characters.
        """
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
    """ROUGE of each candidate against its references, by variant; values are F, in [0, 1], `parts`
    has precision and recall.

    A candidate without a single token, or whose references have none, is undefined (NaN), as is the
    ROUGE-2 of a single word. The corpus value is the mean F.
    """
    from rouge_score.rouge_scorer import RougeScorer

    check_pairs(candidates, references)
    tokenizer = UnicodeTokenizer()
    scorer = RougeScorer(list(variants), tokenizer=tokenizer)
    signature = (
        f"{version('rouge-score')}|tokens: any alphabet, lower case|porter stems|best of references"
    )
    lines = functools.cache(lambda text: "\n".join(split_sentences(text)))
    n_tokens = functools.cache(lambda text: len(tokenizer.tokenize(text)))

    def score(candidate: str, *group: str) -> np.ndarray:
        """Precision, recall, F [variants, 3]."""
        row = np.full((len(variants), 3), np.nan)
        group = tuple(filter(n_tokens, group))
        if group and n_tokens(candidate):
            best = scorer.score_multi([lines(text) for text in group], lines(candidate))
            row[:] = [best[name] for name in variants]
            # Where one side has single words only there are no bigrams to count.
            if min(n_tokens(candidate), max(map(n_tokens, group))) < 2:
                row[[name == "rouge2" for name in variants]] = np.nan
        return row

    items = [(text, *group) for text, group in zip(candidates, references, strict=True)]
    table, width = "rouge_" + "_".join(variants), 3 * len(variants)
    rows = cached_rows(
        cache, table, signature, items, lambda some: [score(*item) for item in some], width
    ).reshape(-1, len(variants), 3)
    scored = {}
    for name, (precision, recall, f) in zip(variants, rows.transpose(1, 2, 0), strict=True):
        label, parts = LABELS[name], {"precision": precision, "recall": recall}
        scored[name] = Scored(label, f, f"{label}|F1|{signature}", parts=parts)
    return scored
