"""Sentence splitting by rules.

A sentence ends at `.`, `!`, `?` or `…`, with the closing quotes and brackets behind it, when white
space and no lower-case letter follow; at a Chinese or Japanese stop; and at a line break.
Abbreviations and initials ("Mr. Lee", "J. K. Rowling") do not end one; a stop after a blank, as in
tokenized text ("Turin . townsend"), always does; a closing quote split off belongs to the sentence
before it.
"""

import re

_STOP = re.compile(
    r"""(?P<stop>[.!?…]+)(?P<close>\s?["'”’»)\]]+(?=\s|$)|["'”’»)\]]+)?(?P<gap>\s+|$)"""
    r"""|(?P<cjk>[。！？]+[」』”’]?)|(?P<line>\s*\n\s*)"""
)
_ABBREVIATED = """mr mrs ms dr prof gen sen rep gov lt col sgt capt rev hon st mt vs etc inc corp co
    ltd bros no vol fig jr sr dept est approx jan feb mar apr jun jul aug sep sept oct nov dec mon
    tue wed thu fri sat sun pct dlrs u.s u.k u.n e.g i.e a.m p.m"""
_ABBREVIATIONS = frozenset(_ABBREVIATED.split())
_LAST_WORD = re.compile(r"[\w.&-]+$")


def split_sentences(text: str) -> list[str]:
    """The stripped sentences of `text` in order; none of a blank text."""
    sentences, start = [], 0
    for match in _STOP.finditer(text):
        if match["stop"] and not _ends_here(text, match):
            continue
        piece = text[start : match.end()].strip()
        if any(map(str.isalnum, piece)):
            sentences.append(piece)
            start = match.end()
    rest = text[start:].strip()
    if rest and sentences and not any(map(str.isalnum, rest)):
        sentences[-1] = f"{sentences[-1]} {rest}"
    elif rest:
        sentences.append(rest)
    return sentences


def _ends_here(text: str, match: re.Match) -> bool:
    before, after = text[: match.start()], text[match.end() :]
    # At the end of the text or of a line, and after a blank (tokenized text), a stop always ends.
    if not after or "\n" in match["gap"] or before[-1:].isspace():
        return True
    if after[0].islower():
        return False
    word = _LAST_WORD.search(before)
    if match["stop"] != "." or not word:
        return True
    is_initial = len(word[0]) == 1 and word[0].isupper()
    return not is_initial and word[0].lower() not in _ABBREVIATIONS
