"""Edits with a known effect: what a metric should notice, done to real text by a program, at three
strengths.

An edit *keeps* the meaning (a synonym, lost punctuation, lower case, typos), *breaks* it (a
negation, another number, swapped names), *loses* content, *repeats* it, or disturbs its *order*.
Every edit is made reliably or not at all: one that finds nothing to do in a text returns None
rather than the text as it was, so "no fall" always means that the metric did not see a change that
is there.

Strength 1 touches one place, 2 about half of the places that the edit could touch, 3 all of them.
What is chosen depends on the text, the edit and the strength alone.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..sentences import split_sentences

STRENGTHS = (1, 2, 3)
_NUMBER_WORDS = re.findall(
    r"\w+",
    """two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred thousand million billion""",
)
_WEEKDAYS = re.findall(r"\w+", "Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = re.findall(
    r"\w+", "January February March April June July August September October November December"
)
_NUMBER = re.compile(rf"\d+(?:[.,]\d+)*|\b(?:{'|'.join(_NUMBER_WORDS)})\b")
_DATE = re.compile(rf"\b(?:{'|'.join(_WEEKDAYS + _MONTHS)})\b|\b(?:19|20)\d\d\b")
_AUXILIARY = re.compile(
    r"\b(?:is|are|was|were|has|have|had|will|would|can|could|should|must|may|might)\b(?! (?:not|n't|never)\b)"
)
_NAME = re.compile(r"\b[A-Z][\w’'-]+(?: [A-Z][\w’'-]+)*")
_WORD = re.compile(r"[A-Za-z]{4,}")
# Each pair means the same wherever the left word stands in running news text.
_SYNONYMS = dict(
    re.findall(
        r"(\w+):(\w+)",
        """said:stated told:informed big:large began:started begin:start buy:purchase bought:purchased help:assist children:kids
        however:nevertheless about:approximately killed:slain also:additionally while:whilst because:since many:numerous
        after:following showed:displayed show:display ended:finished needed:required needs:requires need:require got:obtained
        allow:permit allowed:permitted tried:attempted try:attempt wants:desires large:big huge:enormous quickly:rapidly
        often:frequently injured:hurt hurt:injured car:automobile movie:film film:movie doctor:physician doctors:physicians
        job:position jobs:positions home:house father:dad mother:mum died:perished attack:assault attacked:assaulted
        whole:entire entire:whole last:final wife:spouse husband:spouse difficult:hard choose:pick chose:picked chosen:picked
        happy:glad angry:furious rich:wealthy smart:clever small:little little:small fast:quick firm:company company:firm
        rise:increase fell:dropped dropped:fell revealed:disclosed announced:declared declared:announced match:game won:triumphed
        famous:renowned area:region previously:formerly currently:presently found:discovered discovered:found""",
    )
)
_SYNONYM = re.compile(rf"\b(?:{'|'.join(sorted(_SYNONYMS, key=len, reverse=True))})\b")


@dataclass(frozen=True)
class Edit:
    """One kind of edit: `apply(text, other, strength, rng)` gives the edited text or None; `other`
    is a text on another matter.
    """

    name: str
    effect: str
    apply: Callable[[str, str, int, np.random.Generator], str | None]


def edited(edit: Edit, text: str, other: str, strength: int) -> str | None:
    """`text` after `edit`, deterministic in all arguments; None where it does not apply or would
    change nothing but spaces.
    """
    digest = hashlib.sha256(
        f"{edit.name}|{strength}|{text}".encode("utf-8", "surrogatepass")
    ).digest()
    result = edit.apply(
        text, other, strength, np.random.default_rng(int.from_bytes(digest[:8], "little"))
    )
    return None if result is None or result.split() == text.split() else result


def _some(items: list, strength: int, rng: np.random.Generator) -> list[int]:
    """Positions of one item, of half of them (at least one), or of all."""
    count = (1, max(1, round(len(items) / 2)), len(items))[strength - 1]
    return sorted(rng.permutation(len(items))[:count].tolist())


def _substitute(pattern: re.Pattern, replacement: Callable[[str], str]):
    """An edit that replaces matches of `pattern`."""

    def apply(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
        matches = list(pattern.finditer(text))
        for i in reversed(_some(matches, strength, rng)) if matches else ():
            text = (
                text[: matches[i].start()]
                + replacement(matches[i][0], rng)
                + text[matches[i].end() :]
            )
        return text if matches else None

    return apply


def _other_number(found: str, rng: np.random.Generator) -> str:
    if not found[0].isdigit():
        return str(rng.choice([word for word in _NUMBER_WORDS if word != found]))
    # Another first digit, the rest as it was: as plausible as the true number, and never equal to
    # it.
    return f"{(int(found[0]) - 1 + rng.integers(1, 9)) % 9 + 1}{found[1:]}"


def _other_date(found: str, rng: np.random.Generator) -> str:
    if found[0].isdigit():
        return str(int(found) + int(rng.integers(1, 9)))
    group = _WEEKDAYS if found in _WEEKDAYS else _MONTHS
    return str(rng.choice([name for name in group if name != found]))


def _typo(found: str, rng: np.random.Generator) -> str:
    """Two neighbouring letters inside the word change places; the first and last stay, as readers
    hardly notice.
    """
    places = [i for i in range(1, len(found) - 2) if found[i] != found[i + 1]]
    if not places:
        return found[:1] + found[2:]
    i = int(rng.choice(places))
    return found[:i] + found[i + 1] + found[i] + found[i + 2 :]


def _typos(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
    words = list(_WORD.finditer(text))
    if not words:
        return None
    count = max(1, round(len(words) * (0.03, 0.1, 0.25)[strength - 1]))
    for i in sorted(rng.permutation(len(words))[:count], reverse=True):
        text = text[: words[i].start()] + _typo(words[i][0], rng) + text[words[i].end() :]
    return text


def _names(text: str) -> list[str]:
    """Names of `text`: capitalized words that do not merely begin a sentence, longest first."""
    starts = {sentence.split()[0] for sentence in split_sentences(text) if sentence.split()}
    found = {match[0] for match in _NAME.finditer(text)}
    return sorted(
        (name for name in found if " " in name or name not in starts),
        key=lambda name: (-len(name), name),
    )


def _replace_names(text: str, mapping: dict[str, str]) -> str:
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in mapping))
    return pattern.sub(lambda match: mapping[match[0]], text)


def _entity_swap(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
    mine, theirs = _names(text), [name for name in _names(other) if name not in text]
    if not mine or not theirs:
        return None
    return _replace_names(
        text, {mine[i]: theirs[k % len(theirs)] for k, i in enumerate(_some(mine, strength, rng))}
    )


def _role_swap(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
    names = [name for name in _names(text) if not _DATE.search(name)]
    if len(names) < 2:
        return None
    drawn = rng.permutation(len(names))[
        : 2 * (1, 1 + len(names) // 4, len(names) // 2)[strength - 1]
    ]
    mapping = {}
    for i, j in zip(drawn[::2], drawn[1::2], strict=False):
        mapping |= {names[i]: names[j], names[j]: names[i]}
    return _replace_names(text, mapping)


def _on_sentences(
    change: Callable[[list[str], list[str], int, np.random.Generator], list[str] | None],
    at_least: int = 2,
):
    """An edit of the list of sentences; texts of fewer than `at_least` are left out."""

    def apply(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
        sentences = split_sentences(text)
        if len(sentences) < at_least:
            return None
        changed = change(sentences, split_sentences(other), strength, rng)
        return " ".join(changed) if changed else None

    return apply


def _sentence_order(sentences, others, strength, rng):
    order = np.arange(len(sentences))
    if strength == 1:
        i = int(rng.integers(len(order) - 1))
        order[[i, i + 1]] = order[[i + 1, i]]
    elif strength == 2:
        order = np.roll(order, len(order) // 2)
    else:
        while (order == np.arange(len(order))).all():
            order = rng.permutation(len(order))
    return [sentences[i] for i in order]


def _word_order(sentences, others, strength, rng):
    width = (2, 4, 10**6)[strength - 1]
    result = []
    for sentence in sentences:
        words = sentence.split()
        blocks = [words[i : i + width] for i in range(0, len(words), width)]
        result.append(" ".join(word for block in blocks for word in rng.permutation(block)))
    return result


def _dropped(sentences, others, strength, rng):
    gone = set(_some(sentences, min(strength, 2), rng))
    if strength == 3:
        gone = set(range(len(sentences))) - {int(rng.integers(len(sentences)))}
    return [sentence for i, sentence in enumerate(sentences) if i not in gone]


def _repeated(sentences, others, strength, rng):
    again = set(_some(sentences, strength, rng))
    return [
        copy
        for i, sentence in enumerate(sentences)
        for copy in [sentence] * (2 if i in again else 1)
    ]


def _inserted(sentences, others, strength, rng):
    result = list(sentences)
    for i in _some(others, strength, rng) if others else ():
        result.insert(int(rng.integers(1, len(result) + 1)), others[i])
    return result


def _topic_switch(sentences, others, strength, rng):
    kept = max(1, round(len(sentences) * (0.75, 0.5, 0.25)[strength - 1]))
    return sentences[:kept] + others[: max(1, len(sentences) - kept)] if others else None


def _truncated(text: str, other: str, strength: int, rng: np.random.Generator) -> str | None:
    words = text.split()
    kept = round(len(words) * (0.9, 0.7, 0.4)[strength - 1])
    return " ".join(words[:kept]) if kept else None


def _no_punctuation(text: str, other: str, strength: int, rng: np.random.Generator) -> str:
    return " ".join(re.sub(r"[^\w\s]+", " ", text).split())


EDITS = (
    Edit("synonyms", "keeps", _substitute(_SYNONYM, lambda found, rng: _SYNONYMS[found])),
    Edit("typos", "keeps", _typos),
    Edit("lower case", "keeps", lambda text, other, strength, rng: text.lower()),
    Edit("no punctuation", "keeps", _no_punctuation),
    Edit("negation", "breaks", _substitute(_AUXILIARY, lambda found, rng: f"{found} not")),
    Edit("other number", "breaks", _substitute(_NUMBER, _other_number)),
    Edit("other date", "breaks", _substitute(_DATE, _other_date)),
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
ONE_STRENGTH = {"lower case", "no punctuation"}
