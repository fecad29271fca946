"""What the wording of a sentence says about its place in a text: cues of English news that a sentence vector does not hold.

A story names a person in full and then by the surname, says "a ferry" and then "the ferry", and does not open with "He", "But"
or a quotation. None of these needs a parser. They are evidence, not rules: their weights are learned (see `order_model.py`) on
texts whose only label is the order that their authors gave them.
"""

import re

import numpy as np


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PRONOUNS = _words("he she it they him her them his hers its their theirs this that these those")
_OPENERS = _words("but and however meanwhile also so then yet still although while instead later another both such")
_SPEECH = _words("said says told added say adds asked insisted")
_DATES = _words("""monday tuesday wednesday thursday friday saturday sunday yesterday today
    january february march april june july august september october november december""")
_FUNCTION_WORDS = _words("""a an the of in on at to for from by with as is are was were be been has have had will would can could
    not no or if than who which when where what there i we you my our your after before over about into out up more one two mr
    mrs""")
_STOP = _PRONOUNS | _OPENERS | _SPEECH | _FUNCTION_WORDS
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
QUOTES = "\"'“”‘’`"
N_CUES, N_PAIR_CUES = 14, 2


class Cues:
    """One sentence's cues. `vector` float32 [N_CUES]; the sets serve `pair_cues`."""

    def __init__(self, sentence: str) -> None:
        words = _WORD.findall(sentence)
        lowered = [word.lower() for word in words]
        capital = [word[0].isupper() and (i > 0) for i, word in enumerate(words)]
        stripped = sentence.strip()
        upper = [word[0].isupper() for word in words]
        follows = [i > 0 and upper[i - 1] and lowered[i - 1] not in _STOP for i in range(len(words))]
        full = {word for word, is_name, follow in zip(lowered, capital, follows, strict=True) if is_name and follow}
        self.bare = {word for word, is_name in zip(lowered, capital, strict=True) if is_name} - full
        if words and words[0][0].isupper() and lowered[0] not in _STOP:
            self.bare.add(lowered[0])
        self.full = full
        self.content = {word for word in lowered if word not in _STOP and len(word) > 2}
        count, first = max(1, len(words)), lowered[0] if lowered else ""
        rest = {word for word in lowered if word in _PRONOUNS}
        self.vector = np.array(
            [
                first in _PRONOUNS,
                first in _OPENERS,
                first in ("a", "an"),
                first == "the",
                len(rest) / 3,
                stripped[:1] in QUOTES,
                stripped[-1:] in QUOTES,
                any(word in _SPEECH for word in lowered),
                np.log(count) / 3,
                sum(word[0].isdigit() for word in words) / 3,
                len(full) / 2,
                (len(self.bare)) / 3,
                any(word in _DATES for word in lowered),
                sum(word in ("a", "an") for word in lowered) / 3,
            ],
            dtype=np.float32,
        )


def pair_cues(first: Cues, second: Cues) -> np.ndarray:
    """float32 [N_PAIR_CUES] for the order first, second: names in full before bare less the reverse; shared content words."""
    forward = len(first.full & (second.bare - second.full)) - len(second.full & (first.bare - first.full))
    shared = len(first.content & second.content) / (1 + min(len(first.content), len(second.content)))
    return np.array([np.clip(forward, -2, 2), shared], dtype=np.float32)
