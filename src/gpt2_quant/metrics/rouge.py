"""ROUGE (Lin 2004): how much of the reference's wording the candidate has, counted in n-grams or in
a longest common subsequence.

    recall = matches / n-grams of the reference,  precision = matches / n-grams of the candidate,  F = 2PR / (P + R)

ROUGE-L takes the longest common subsequence of the whole text as its matches; ROUGE-Lsum takes the
union of the subsequences that each reference sentence shares with the candidate, and so needs
sentences (`sentences.py`). With several references each text counts with the one that gives the
highest F, as rouge-score's `score_multi` does. It reads no meaning: a negation costs one word, a
paraphrase nearly all of them.

The counting is the rouge-score package's own. Its tokenizer knows ASCII letters and digits alone,
and gives two identical Russian texts a 0; the one here extends it: letters and digits of any
alphabet, each Chinese or Japanese character and each emoji a token. On ASCII text the two agree
token by token. Tokens of more than three ASCII letters are stemmed (Porter), as in the original
Perl.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from ..cache import Cache, content_key
from .scored import Scored, check_pairs, version
from .sentences import split_sentences

VARIANTS = ("rouge1", "rouge2", "rougeL", "rougeLsum")
_LABELS = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
_TOKEN = re.compile(
    r"[぀-ヿ㐀-䶿一-鿿豈-﫿]|[^\W_぀-ヿ㐀-䶿一-鿿豈-﫿]+|[\U0001F000-\U0001FAFF\u2600-\u27BF]"
)
_ASCII_WORD = re.compile(r"[a-z0-9]{4,}")


class UnicodeTokenizer:
    """rouge-score's tokenizer for every alphabet; a drop-in for its `tokenizer` argument."""

    def __init__(self, stemming: bool = True) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer() if stemming else None
        self._stems: dict[str, str] = {}

    def tokenize(self, text: str) -> list[str]:
        """Lower-case tokens of `text`, stemmed where they are ASCII words of more than three
        characters.
        """
        lowered = text.lower()
        if not lowered.isascii():
            lowered = unicodedata.normalize("NFC", lowered)
        return [self._stem(token) for token in _TOKEN.findall(lowered)]

    def _stem(self, token: str) -> str:
        if self._stemmer is None or not _ASCII_WORD.fullmatch(token):
            return token
        if token not in self._stems:
            self._stems[token] = self._stemmer.stem(token)
        return self._stems[token]


def rouge(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    cache: Cache | None = None,
    variants: Sequence[str] = VARIANTS,
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
    keys = [
        content_key(signature, *variants, candidate, *group)
        for candidate, group in zip(candidates, references, strict=True)
    ]

    def compute(missing: list[int]) -> np.ndarray:
        rows = np.full((len(missing), len(variants), 3), np.nan)
        lines: dict[str, str] = {}
        for row, position in enumerate(missing):
            group = [text for text in references[position] if tokenizer.tokenize(text)]
            if not group or not tokenizer.tokenize(candidates[position]):
                continue
            for text in (candidates[position], *group):
                lines.setdefault(text, "\n".join(split_sentences(text)))
            best = scorer.score_multi([lines[text] for text in group], lines[candidates[position]])
            rows[row] = [
                (best[name].precision, best[name].recall, best[name].fmeasure) for name in variants
            ]
            if "rouge2" in variants and _without_bigrams(tokenizer, candidates[position], group):
                rows[row, variants.index("rouge2")] = np.nan
        return rows

    rows = (
        (cache or Cache(None))
        .rows("rouge_" + "_".join(variants), keys, compute)
        .reshape(-1, len(variants), 3)
    )
    return {
        name: Scored.mean(
            _LABELS[name],
            rows[:, i, 2],
            f"{_LABELS[name]}|F1|{signature}",
            parts={"precision": rows[:, i, 0], "recall": rows[:, i, 1]},
        )
        for i, name in enumerate(variants)
    }


def _without_bigrams(tokenizer: UnicodeTokenizer, candidate: str, group: list[str]) -> bool:
    """Whether one side has single words only: then there are no bigrams to count, and ROUGE-2 has
    no value.
    """
    return len(tokenizer.tokenize(candidate)) < 2 or all(
        len(tokenizer.tokenize(text)) < 2 for text in group
    )
