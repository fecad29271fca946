"""A small set to see every metric at work: two news stories, each told again in nine ways that a
reader would tell apart at once.

Written for this project. `EXAMPLES` are (kind, candidate, reference); the kinds that keep the
meaning (`copy`, `paraphrase`, `compressed`) should outrank those that break it (`negated`, `wrong
number`, `roles swapped`, `another story`), and no metric of overlap manages that. The last three
are there because metrics crash on them. `EDITED` is what each controlled edit makes of a third
story, for readers: the texts that the edit study scores belong to their owners and stay out of the
results.
"""

from .edits import EDITS, edited


def _text(block: str) -> str:
    return " ".join(block.split())


_FERRY = _text("""
    A ferry with 212 people on board ran aground off the island of Hven on Tuesday morning.
    The captain told the coast guard that thick fog had hidden the shoals.
    Two lifeboats brought all passengers to Landskrona, where doctors treated nine of them for minor injuries.
    The company said it would pay for new tickets.
""")
_BANK = _text("""
    Northfield Bank will buy its smaller rival Castle Mutual for 1.4 billion dollars in cash.
    Shareholders of Castle Mutual will vote on the offer in March.
    The bank expects to close forty branches, but it promised to keep all call centres open.
    Its shares fell two percent after the announcement.
""")
_STORIES = {
    _FERRY: {
        "copy": _FERRY,
        "paraphrase": _text("""
            On Tuesday, early in the day, a passenger ship carrying 212 travellers hit the sea bed near Hven. According to its
            master, who spoke to rescuers, dense mist kept the shallows out of sight. Everyone was taken ashore at Landskrona in a
            pair of rescue boats; nine needed care for slight wounds. Replacement fares will be covered by the operator.
        """),
        "compressed": _text("""
            A ferry with 212 people ran aground off Hven in fog on Tuesday. Lifeboats brought all passengers to Landskrona.
        """),
        "negated": _FERRY.replace("ran aground", "did not run aground").replace(
            "would pay", "would not pay"
        ),
        "wrong number": _FERRY.replace("212", "712").replace("nine", "ninety"),
        "roles swapped": _FERRY.replace(
            "captain told the coast guard", "coast guard told the captain"
        ),
    },
    _BANK: {
        "copy": _BANK,
        "paraphrase": _text("""
            Castle Mutual is to be taken over by the larger lender Northfield, which offers 1.4 billion dollars, none of it in
            stock. The target's owners are due to decide on the bid this March. Some forty offices are likely to disappear, although
            every telephone service unit has been guaranteed. Investors took two percent off the buyer's price when they heard.
        """),
        "compressed": _text("""
            Northfield Bank will buy Castle Mutual for 1.4 billion dollars in cash. It expects to close forty branches.
        """),
        "negated": _BANK.replace("will buy", "will not buy").replace(
            "promised to keep", "refused to keep"
        ),
        "wrong number": _BANK.replace("1.4 billion", "14 billion").replace("forty", "four"),
        "roles swapped": _BANK.replace(
            "Northfield Bank will buy its smaller rival Castle Mutual",
            "Castle Mutual will buy Northfield Bank",
        ),
    },
}


def _retold(story: str) -> dict[str, str]:
    """The ways of telling that need no hand: order, repetition, loss."""
    first, second, third, fourth = (f"{part.rstrip('.')}." for part in story.split(". "))
    return {
        "shuffled": " ".join((third, first, fourth, second)),
        "repetitive": " ".join((first, first, second, first)),
        "truncated": story[: story.index(third) + len(third) // 2],
    }


EXAMPLES: list[tuple[str, str, str]] = [
    *(
        (kind, text, story)
        for story, versions in _STORIES.items()
        for kind, text in {**versions, **_retold(story)}.items()
    ),
    ("another story", _BANK, _FERRY),
    ("another story", _FERRY, _BANK),
    (
        "non-Latin copy",
        "Паром сел на мель. Пассажиров спасли.",
        "Паром сел на мель. Пассажиров спасли.",
    ),
    ("one word", "Ferry", "Ferry"),
    ("blank", " ", _FERRY),
]

EDIT_STORY = _text("""
    The mayor, Clara Novak, told Peter Lindqvist on Friday that the old bridge is not worth repairing.
    About 40 buses have crossed it every day since 1962.
    They will now take the road along the river.
""")
EDITED: list[tuple[str, str, str]] = [
    (edit.name, edit.effect, edited(edit, EDIT_STORY, _BANK, 1)) for edit in EDITS
]
"""(edit, effect, `EDIT_STORY` after the edit in one place); where the edit needs a text on another matter it is the bank's."""
