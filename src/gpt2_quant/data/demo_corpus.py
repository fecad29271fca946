"""Made-up news in AG News' four classes, drawn from a grammar (demo_corpus.toml): the demo's data.

An item is a story of one class with a fixed cast (people, places, firms, clubs). All classes share
the names; only events tell them apart.

One item in nine is a story that either of two desks may print: half of those are guesses, a ceiling
near 0.95. One item in five ends with a sentence from another desk.
"""

import random
from functools import cache
from pathlib import Path

from ..cli import read_toml
from .labels import LABELS

GRAMMAR = Path(__file__).with_name("demo_corpus.toml")
BETWEEN_DESKS = 1 / 9
STRAY_SENTENCE = 1 / 5


@cache
def grammar() -> dict:
    return read_toml(__file__)


def generate_corpus(n: int, seed: int) -> tuple[list[str], list[str], list[int]]:
    """`n` titles, descriptions and labels 0–3; fewer items are the first of more."""
    rng = random.Random(seed)
    titles, descriptions, labels = [], [], []
    for _ in range(n):
        label = rng.randrange(len(LABELS))
        cast = draw_cast(rng)
        choices, sentences = _draw_story(LABELS[label], rng)
        titles.append(_fill(rng.choice(choices), cast, rng))
        descriptions.append(" ".join(_fill(sentence, cast, rng) for sentence in sentences))
        labels.append(label)
    return titles, descriptions, labels


def _draw_story(desk: str, rng: random.Random) -> tuple[list[str], list[str]]:
    """Possible titles, and sentences."""
    if rng.random() < BETWEEN_DESKS:
        shared = rng.choice([story for story in grammar()["between"] if desk in story["desks"]])
        return shared["titles"], rng.sample(shared["sentences"], rng.choice((2, 3)))
    own = rng.choice(_stories(desk))
    sentences = [rng.choice(own["openings"])]
    sentences += rng.sample(own["continuations"], rng.choice((1, 2)))
    if rng.random() < STRAY_SENTENCE:
        other = rng.choice([label for label in LABELS if label != desk])
        sentences.append(rng.choice(rng.choice(_stories(other))["continuations"]))
    return own["titles"], sentences


@cache
def _stories(desk: str) -> list[dict]:
    return [story for story in grammar()["story"] if story["desk"] == desk]


def draw_cast(rng: random.Random) -> dict[str, str]:
    names = grammar()["names"]

    def draw(head: str, tail: str, between: str = "") -> str:
        return rng.choice(names[head]) + between + rng.choice(names[tail])

    person, coach = (draw("first", "last", " ") for _ in range(2))
    place, place2, home, away = (draw("place_heads", "place_tails") for _ in range(4))
    heads, tails = rng.sample(names["firm_heads"], 2), names["firm_tails"]
    firm, firm2 = (f"{head} {rng.choice(tails)}" for head in heads)
    ours, theirs = rng.sample(names["club_tails"], 2)
    return {
        "person": person, "coach": coach, "place": place, "place2": place2, "firm": firm,
        "firm2": firm2, "club": f"{home} {ours}", "club2": f"{away} {theirs}",
    }  # fmt: skip


def _fill(template: str, cast: dict[str, str], rng: random.Random) -> str:
    # All fillers are drawn, so that the draws do not depend on the wording.
    fillers = {kind: rng.choice(values) for kind, values in grammar()["fillers"].items()}
    return template.format(**cast, **fillers)
