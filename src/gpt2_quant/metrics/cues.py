"""Lexical cues to a sentence's position in a text of English news.

A story names a person in full and then by the surname, says "a ferry" and then "the ferry", and
does not open with "He", "But" or a quotation. The cues' weights are learned (`order_model.py`).
"""

import json
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_WORDS = json.loads(Path(__file__).with_name("cue_words.json").read_text(encoding="utf-8"))
_PRONOUNS, _OPENERS, _SPEECH, _DATES, _FUNCTION_WORDS, _PERSONS, _PAST, _PRESENT = (
    frozenset(words.split()) for words in _WORDS.values()
)
_UNFINISHED = _FUNCTION_WORDS | _PRONOUNS | {"and", "but", "while", "although"}
_STOP = _PRONOUNS | _OPENERS | _SPEECH | _FUNCTION_WORDS
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_FINISHED = re.compile(r"[.!?…][\s\"'”’»)\]]*$")
_QUOTE_MARKS = re.compile(r"[\"“”]|``|''")
_QUOTES = "\"'“”‘’`"


class Cues:
    """A sentence's lower-case words, sets of them, and `vector`, float32 [N_CUES]."""

    def __init__(self, sentence: str) -> None:
        self.text = sentence.strip()
        written: list[str] = _WORD.findall(sentence)
        self.words = words = [word.lower() for word in written]
        self.first: str = words[0] if words else ""
        self.last: str = words[-1] if words else ""
        capital = [word[0].isupper() for word in written]
        # A capital past the first word marks a name: full ("Paul Merson") after another capital
        # that is no function word, else bare ("Merson").
        names = {i for i in range(1, len(words)) if capital[i]}
        follows = {i for i in names if capital[i - 1] and words[i - 1] not in _STOP}
        self.full = {words[i] for i in follows}
        self.bare = {words[i] for i in names} - self.full
        if words and capital[0] and self.first not in _STOP:
            self.bare.add(self.first)
        self.names = self.full | self.bare
        self.content = {word for word in words if word not in _STOP and len(word) > 2}
        after_the = {words[i] for i in range(1, len(words)) if words[i - 1] == "the"}
        self.definite = after_the & self.content
        self.persons = self.count(_PERSONS)
        past = sum(word in _PAST or (word.endswith("ed") and len(word) > 4) for word in words)
        present = self.count(_PRESENT)
        self.tense = (past - present) / (1 + past + present)
        self.vector = np.array([cue(self) for cue in CUES.values()], dtype=np.float32)

    def count(self, among: Container[str]) -> int:
        return sum(word in among for word in self.words)


# Divisors bring counts to the size of the yes-or-no cues.
CUES: dict[str, Callable[[Cues], float]] = {
    "opens with a pronoun": lambda s: s.first in _PRONOUNS,
    "opens with a connective": lambda s: s.first in _OPENERS,
    "opens with a or an": lambda s: s.first in ("a", "an"),
    "opens with the": lambda s: s.first == "the",
    "different pronouns": lambda s: len(_PRONOUNS.intersection(s.words)) / 3,
    "opens with a quote": lambda s: s.text[:1] in _QUOTES,
    "ends with a quote": lambda s: s.text[-1:] in _QUOTES,
    "reports speech": lambda s: s.count(_SPEECH) > 0,
    "length": lambda s: np.log(max(1, len(s.words))) / 3,
    "numbers": lambda s: sum(word[0].isdigit() for word in s.words) / 3,
    "full names": lambda s: len(s.full) / 2,
    "bare names": lambda s: len(s.bare) / 3,
    "names a day or month": lambda s: s.count(_DATES) > 0,
    "indefinite articles": lambda s: s.count(("a", "an")) / 3,
    "ends with a stop": lambda s: _FINISHED.search(s.text) is not None,
    "breaks off": lambda s: not s.words or s.last in _UNFINISHED,
    "opens with a demonstrative": lambda s: s.first in ("this", "that", "these", "those"),
    "opens with a person": lambda s: s.first in ("he", "she", "they", "his", "her", "their"),
    "tense": lambda s: s.tense,
    "personal pronouns": lambda s: min(s.persons, 4) / 3,
    "unpaired quote": lambda s: len(_QUOTE_MARKS.findall(s.text)) % 2,
    "definite nouns": lambda s: len(s.definite) / 3,
    "opens in lower case": lambda s: s.text[:1].islower(),
}


@dataclass
class _Before:
    """The words of all earlier sentences, and the last of these (None: none)."""

    previous: Cues | None = None
    content: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    bare: set[str] = field(default_factory=set)

    def add(self, own: Cues) -> None:
        self.previous = own
        for kind in ("content", "names", "full", "bare"):
            getattr(self, kind).update(getattr(own, kind))


def _common_content(own: Cues, words: set[str]) -> float:
    return len(own.content & words) / max(1, len(own.content))


def _shortened(own: Cues, before: _Before) -> int:
    """Names full before and bare now, less the reverse."""
    return len((own.bare - own.full) & before.full) - len(own.full & before.bare)


CONTEXT_CUES: dict[str, Callable[[Cues, _Before], float]] = {
    "opens the text": lambda s, before: before.previous is None,
    "known content words": lambda s, before: _common_content(s, before.content),
    "content words of the previous sentence": lambda s, before: (
        _common_content(s, before.previous.content) if before.previous else 0
    ),
    "known definite nouns": lambda s, before: len(s.definite & before.content) / 3,
    "unknown definite nouns": lambda s, before: len(s.definite - before.content) / 3,
    "unknown bare names": lambda s, before: len(s.bare - before.names) / 3,
    "known bare names": lambda s, before: len(s.bare & before.names) / 3,
    "known full names": lambda s, before: len(s.full & before.names) / 2,
    "shortened names": lambda s, before: min(_shortened(s, before), 2),
    "shift of tense": lambda s, before: s.tense - before.previous.tense if before.previous else 0,
    "a person to refer to": lambda s, before: bool(
        s.persons and before.previous and (before.previous.persons or before.previous.names)
    ),
}
N_CUES, N_CONTEXT_CUES = len(CUES), len(CONTEXT_CUES)


def context_cues(cues: Sequence[Cues]) -> np.ndarray:
    """Cues of each sentence to those before it: float32 [n, N_CONTEXT_CUES]."""
    before, rows = _Before(), []
    for own in cues:
        rows.append([cue(own, before) for cue in CONTEXT_CUES.values()])
        before.add(own)
    return np.array(rows, dtype=np.float32)
