"""Programmatic edits of real text with a known effect.

An edit *keeps* the meaning, *breaks* it, *loses* content, *repeats* it, or disturbs its *order*;
with nothing to do it gives None, so that "no fall" means an unseen change. Strength 1 touches one
of the possible positions, 2 about half, 3 all; text, edit and strength seed the choice.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from ..sentences import split_sentences

STRENGTHS = (1, 2, 3)
FRACTIONS = (0, 0.5, 1)  # of the positions, by strength, at least one
ONE_STRENGTH = {"lower case", "no punctuation"}

_WORDS = json.loads(Path(__file__).with_name("edit_words.json").read_text(encoding="utf-8"))
NUMBER_WORDS, _WEEKDAYS, _MONTHS = (_WORDS[name] for name in ("numbers", "weekdays", "months"))
# Not the digits of "&#39;", an apostrophe in AG News.
_NUMBER = re.compile(rf"(?<![#\d])\d+(?:[.,]\d+)*|\b(?:{'|'.join(NUMBER_WORDS)})\b")
_DATE = re.compile(rf"\b(?:{'|'.join(_WEEKDAYS + _MONTHS)})\b|\b(?:19|20)\d\d\b")
_AUXILIARIES = "is|are|was|were|has|have|had|will|would|can|could|should|must|may|might"
# One "not" for "will have", and none beside another negation, which it would undo.
_AUXILIARY = re.compile(
    rf"(?<!\bthe )(?<!\ba )\b(?:{_AUXILIARIES})(?: (?:{_AUXILIARIES}))*\b"
    r"(?! (?:not|n't|never|no|none|nothing|neither|only)\b)"
)
_NAME = re.compile(r"\b[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)*")
_WORD = re.compile(r"[A-Za-z]{4,}")
# Who reports, not what: another name there changes nothing.
_NOT_TOLD = re.compile(rf"{_DATE.pattern}|\b(?:{'|'.join(_WORDS['agencies'])})\b")
# Neither the point of "10.5" nor marks that mean something: "$", "%", "-".
_PUNCTUATION = re.compile(r"""(?<!\d)[.,;:!?…"“”()]+|[.,;:!?…"“”()]+(?!\d)""")

# A pattern, and what replaces a match.
Rule = tuple[re.Pattern, Callable[[re.Match, Generator], str]]
# (text, text on another matter, strength, rng) -> edited text or None
Apply = Callable[[str, str, int, Generator], str | None]


class Edit(NamedTuple):
    name: str
    effect: str
    apply: Apply


def edited(edit: Edit, text: str, other: str, strength: int) -> str | None:
    """`text` after `edit`; None where it changes nothing but spaces."""
    key = f"{edit.name}|{strength}|{text}".encode("utf-8", "surrogatepass")
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
    result = edit.apply(text, other, strength, np.random.default_rng(seed))
    return result if result is not None and result.split() != text.split() else None


def _some(n: int, strength: int, rng: Generator, fractions=FRACTIONS) -> list[int]:
    return sorted(rng.permutation(n)[: max(1, round(n * fractions[strength - 1]))].tolist())


def _substitute(*rules: Rule, fractions=FRACTIONS) -> Apply:

    def apply(text, other, strength, rng):
        places = sorted(
            (match.span(), k, match)
            for k, (pattern, _) in enumerate(rules)
            for match in pattern.finditer(text)
        )
        if not places:
            return None
        untouched = len(text)
        # Last first: earlier positions stay valid.
        for i in reversed(_some(len(places), strength, rng, fractions)):
            (start, end), k, match = places[i]
            if end <= untouched:  # patterns may share a word
                text, untouched = text[:start] + rules[k][1](match, rng) + text[end:], start
        return text

    return apply


def _synonym(template: str, match: re.Match, rng: Generator) -> str:
    return match.expand(template)


# A pattern asks for the neighbours that leave a word one meaning, as "about" before a number; "last
# week" and "won the game" have no safe synonym and no entry.
_SYNONYMS: list[Rule] = [
    (re.compile(pattern), partial(_synonym, template)) for pattern, template in _WORDS["synonyms"]
]


def _negated(match: re.Match, rng: Generator) -> str:
    first, *rest = match[0].split(" ")
    return " ".join([first, "not", *rest])


def _other_number(match: re.Match, rng: Generator) -> str:
    found = match[0]
    if not found[0].isdigit():
        return str(rng.choice([word for word in NUMBER_WORDS if word != found]))
    return f"{(int(found[0]) - 1 + rng.integers(1, 9)) % 9 + 1}{found[1:]}"


def _other_date(match: re.Match, rng: Generator) -> str:
    found = match[0]
    if found[0].isdigit():
        return str(int(found) + int(rng.integers(1, 9)))
    group = _WEEKDAYS if found in _WEEKDAYS else _MONTHS
    return str(rng.choice([name for name in group if name != found]))


def _typo(match: re.Match, rng: Generator) -> str:
    found = match[0]
    positions = [i for i in range(1, len(found) - 2) if found[i] != found[i + 1]]
    if not positions:
        return found[:1] + found[2:]
    i = int(rng.choice(positions))
    return found[:i] + found[i + 1] + found[i] + found[i + 2 :]


def _names(text: str) -> list[str]:
    """Capitalized words, longest first, but no dates, agencies or mere beginnings of sentences."""
    starts = {sentence.split()[0].rstrip(",:;") for sentence in split_sentences(text)}
    names = {name for name in _NAME.findall(text) if " " in name or name not in starts}
    names = {re.sub(r"['’]s$", "", name) for name in names if not _NOT_TOLD.search(name)}
    names -= {name for name in names if name.lower() in text.split()}  # "In", "Voters"
    return sorted(names, key=lambda name: (-len(name), name))


def _replace_names(text: str, mapping: dict[str, str]) -> str:
    pattern = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in mapping)
    return re.sub(pattern, lambda match: mapping[match[0]], text)


def _entity_swap(text, other, strength, rng):
    mine, theirs = _names(text), [name for name in _names(other) if name not in text]
    if not mine or not theirs:
        return None
    chosen = [mine[i] for i in _some(len(mine), strength, rng)]
    return _replace_names(text, dict(zip(chosen, itertools.cycle(theirs))))


def _role_swap(text, other, strength, rng):
    names = _names(text)
    pairs = (1, 1 + len(names) // 4, len(names) // 2)[strength - 1]
    mapping: dict[str, str] = {}
    drawn = rng.permutation(names).tolist()
    for one, two in itertools.combinations(drawn, 2):
        if len(mapping) < 2 * pairs and not {one, two} & mapping.keys() and _apart(text, one, two):
            mapping |= {one: two, two: one}
    return _replace_names(text, mapping) if mapping else None


def _apart(text: str, one: str, two: str) -> bool:
    """Whether to swap two names says something else: not "Bush" for "President Bush", nor the two
    of "Ann and Tom".
    """
    listed = r"(?:,| and| or|, and| -|'s| \()? "
    joined = "|".join(rf"{re.escape(a)}{listed}{re.escape(b)}" for a, b in ((one, two), (two, one)))
    return not set(one.split()) & set(two.split()) and not re.search(joined, text)


def _on_sentences(change: Callable, at_least: int = 2) -> Apply:

    def apply(text, other, strength, rng):
        sentences = split_sentences(text)
        if len(sentences) < at_least:
            return None
        return " ".join(change(sentences, split_sentences(other), strength, rng)) or None

    return apply


def _sentence_order(sentences, others, strength, rng):
    if strength == 1:
        i = int(rng.integers(len(sentences) - 1))
        return [*sentences[:i], *sentences[i : i + 2][::-1], *sentences[i + 2 :]]
    if strength == 2:
        half = len(sentences) - len(sentences) // 2
        return sentences[half:] + sentences[:half]
    return [sentences[i] for i in permutation(len(sentences), rng)]


def permutation(n: int, rng: Generator) -> np.ndarray:
    """A random order of n >= 2 other than the original one."""
    while (order := rng.permutation(n)).tolist() == list(range(n)):
        pass
    return order


def _word_order(sentences, others, strength, rng):
    width = (2, 4, 10**6)[strength - 1]  # words change places within blocks of this many
    blocks = []
    for words in map(str.split, sentences):
        blocks += [rng.permutation(words[i : i + width]) for i in range(0, len(words), width)]
    return np.concatenate(blocks)


def _dropped(sentences, others, strength, rng):
    gone = _some(len(sentences), strength, rng)
    if strength == 3:  # one remains
        return [sentences[rng.integers(len(sentences))]]
    return [sentence for i, sentence in enumerate(sentences) if i not in gone]


def _repeated(sentences, others, strength, rng):
    order = sorted([*range(len(sentences)), *_some(len(sentences), strength, rng)])
    return [sentences[i] for i in order]


def _inserted(sentences, others, strength, rng):
    result = list(sentences)
    for i in _some(len(others), strength, rng):
        result.insert(int(rng.integers(1, len(result) + 1)), others[i])
    return result


def _topic_switch(sentences, others, strength, rng):
    kept = max(1, round(len(sentences) * (0.75, 0.5, 0.25)[strength - 1]))
    return sentences[:kept] + others[: max(1, len(sentences) - kept)] if others else []


def _truncated(text, other, strength, rng):
    words = text.split()
    return " ".join(words[: round(len(words) * (0.9, 0.7, 0.4)[strength - 1])]) or None


def _no_punctuation(text, other, strength, rng):
    return " ".join(_PUNCTUATION.sub(" ", text).split())


EDITS = (
    Edit("synonyms", "keeps", _substitute(*_SYNONYMS)),
    Edit("typos", "keeps", _substitute((_WORD, _typo), fractions=(0.03, 0.1, 0.25))),
    Edit("lower case", "keeps", lambda text, other, strength, rng: text.lower()),
    Edit("no punctuation", "keeps", _no_punctuation),
    Edit("negation", "breaks", _substitute((_AUXILIARY, _negated))),
    Edit("other number", "breaks", _substitute((_NUMBER, _other_number))),
    Edit("other date", "breaks", _substitute((_DATE, _other_date))),
    Edit("entity swap", "breaks", _entity_swap),
    Edit("role swap", "breaks", _role_swap),
    Edit("intrusion", "breaks", _on_sentences(_inserted, 1)),
    Edit("topic switch", "breaks", _on_sentences(_topic_switch)),
    Edit("dropped sentence", "loses", _on_sentences(_dropped)),
    Edit("truncation", "loses", _truncated),
    Edit("repeated sentence", "repeats", _on_sentences(_repeated, 1)),
    Edit("sentence order", "order", _on_sentences(_sentence_order)),
    Edit("word order", "order", _on_sentences(_word_order, 1)),
)
