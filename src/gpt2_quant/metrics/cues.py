"""What the wording of a sentence says about its place in a text: cues of English news that a
sentence vector does not hold.

A story names a person in full and then by the surname, says "a ferry" and then "the ferry", does
not open with "He", "But" or a quotation, and ends its sentences. None of these needs a parser. They
are evidence, not rules: their weights are learned (see `order_model.py`) on texts whose only label
is the order that their authors gave them.
"""

import re
from collections.abc import Sequence

import numpy as np


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRONOUNS = _words("he she it they him her them his hers its their theirs this that these those")
_OPENERS = _words(
    "but and however meanwhile also so then yet still although while instead later another both such"
)
_SPEECH = _words("said says told added say adds asked insisted")
_DATES = _words("""monday tuesday wednesday thursday friday saturday sunday yesterday today
    january february march april june july august september october november december""")
_FUNCTION_WORDS = _words("""a an the of in on at to for from by with as is are was were be been has have had will would can could
    not no or if than who which when where what there i we you my our your after before over about into out up more one two mr
    mrs""")
_PERSONS = _words("he she him her his they them their")
_UNFINISHED = _FUNCTION_WORDS | _PRONOUNS | _words("and but while although")
_PAST, _PRESENT = _words("was were had did"), _words("is are has have do does will")
_STOP = _PRONOUNS | _OPENERS | _SPEECH | _FUNCTION_WORDS
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FINISHED = re.compile(r"[.!?…][\s\"'”’»)\]]*$")
_QUOTE_MARKS = re.compile(r"[\"“”]|``|''")
QUOTES = "\"'“”‘’`"
N_CUES, N_CONTEXT_CUES = 23, 11


class Cues:
    """One sentence's cues. `vector` float32 [N_CUES]; the sets of words serve `context_cues`."""

    def __init__(self, sentence: str) -> None:
        words = _WORD.findall(sentence)
        lowered = [word.lower() for word in words]
        capital = [word[0].isupper() and (i > 0) for i, word in enumerate(words)]
        stripped = sentence.strip()
        upper = [word[0].isupper() for word in words]
        follows = [
            i > 0 and upper[i - 1] and lowered[i - 1] not in _STOP for i in range(len(words))
        ]
        self.full = {
            word
            for word, is_name, follow in zip(lowered, capital, follows, strict=True)
            if is_name and follow
        }
        self.bare = {
            word for word, is_name in zip(lowered, capital, strict=True) if is_name
        } - self.full
        if words and words[0][0].isupper() and lowered[0] not in _STOP:
            self.bare.add(lowered[0])
        self.names = self.full | self.bare
        self.content = {word for word in lowered if word not in _STOP and len(word) > 2}
        self.definite = {
            word for article, word in zip(lowered, lowered[1:], strict=False) if article == "the"
        } & self.content
        self.persons = sum(word in _PERSONS for word in lowered)
        past = sum(word in _PAST or (word.endswith("ed") and len(word) > 4) for word in lowered)
        present = sum(word in _PRESENT for word in lowered)
        self.tense = (past - present) / (1 + past + present)
        count, first, last = (
            max(1, len(words)),
            lowered[0] if lowered else "",
            lowered[-1] if lowered else "",
        )
        self.vector = np.array(
            [
                first in _PRONOUNS,
                first in _OPENERS,
                first in ("a", "an"),
                first == "the",
                len(_PRONOUNS.intersection(lowered)) / 3,
                stripped[:1] in QUOTES,
                stripped[-1:] in QUOTES,
                any(word in _SPEECH for word in lowered),
                np.log(count) / 3,
                sum(word[0].isdigit() for word in words) / 3,
                len(self.full) / 2,
                len(self.bare) / 3,
                any(word in _DATES for word in lowered),
                sum(word in ("a", "an") for word in lowered) / 3,
                bool(_FINISHED.search(sentence)),
                not words or last in _UNFINISHED,
                first in ("this", "that", "these", "those"),
                first in ("he", "she", "they", "his", "her", "their"),
                self.tense,
                min(self.persons, 4) / 3,
                len(_QUOTE_MARKS.findall(sentence)) % 2,
                len(self.definite) / 3,
                stripped[:1].islower(),
            ],
            dtype=np.float32,
        )


def context_cues(cues: Sequence[Cues]) -> np.ndarray:
    """What each sentence takes up from those before it and what it leaves hanging, float32 [n,
    N_CONTEXT_CUES].

    In turn: whether it opens the text; the share of its content words that occurred before, and in
    the previous sentence; definite nouns known and unknown; bare names unknown and known, full
    names known, names that were full before and are bare now less the reverse; the shift of tense;
    a personal pronoun with somebody in the previous sentence to refer to.
    """
    content, names, full, bare = set(), set(), set(), set()
    rows = []
    for i, own in enumerate(cues):
        previous = cues[i - 1] if i else None
        size = max(1, len(own.content))
        shortened = len((own.bare - own.full) & full) - len(own.full & bare)
        rows.append(
            [
                i == 0,
                len(own.content & content) / size,
                len(own.content & previous.content) / size if previous else 0,
                len(own.definite & content) / 3,
                len(own.definite - content) / 3,
                len(own.bare - names) / 3,
                len(own.bare & names) / 3,
                len(own.full & names) / 2,
                min(shortened, 2),
                own.tense - previous.tense if previous else 0,
                bool(previous and own.persons and (previous.persons or previous.names)),
            ]
        )
        content |= own.content
        names |= own.names
        full |= own.full
        bare |= own.bare
    return np.array(rows, dtype=np.float32)
