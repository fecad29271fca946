"""What each metric does when a text is damaged on purpose.

A text is scored against *another* human's reference where there is one, so that the original is not
a copy of it; news items are scored against themselves. Falls are in standard deviations of the
metric over the originals.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..suite import Tools
from .edits import EDITS, ONE_STRENGTH, STRENGTHS, edited
from .human_judgements import People
from .resampling import RESAMPLES, interval, preferred
from .values import coherence_metrics, overlap_values


@dataclass(frozen=True)
class Originals:
    """n texts, each with one reference and another text on another matter."""

    texts: list[str]
    references: list[str]
    others: list[str]
    source: str


def choose_originals(people: People | None, news: Sequence[str], limit: int) -> Originals:
    """SummEval's references where available, else enough news for `limit` texts per edit; the other
    matter is the next document's, or the next item.
    """
    if not people:
        texts, source = list(news[: 60 * limit]), "AG News test items against themselves"
        return Originals(texts, texts, texts[1:] + texts[:1], source)
    groups = people[0].references
    texts = [text for group in groups for text in group[1:7]]
    first = [group[0] for group in groups for _ in range(6)]
    others = texts[6:] + texts[:6]
    return Originals(texts, first, others, "SummEval references 2 to 7 against reference 1")


def edit_pairs(
    originals: Originals, limit: int, strengths: Sequence[int] = STRENGTHS
) -> pd.DataFrame:
    """One row per edited text: edit, effect, strength, text (number of the original), edited; at
    most `limit` texts per edit, the same at every strength.
    """
    # By hash: random, but fixed by the texts.
    digests = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in originals.texts]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    rows: list[tuple] = []
    for edit in EDITS:
        levels = (3,) if edit.name in ONE_STRENGTH else strengths
        most = len(rows) + limit * len(levels)
        for i in order:
            if len(rows) == most:
                break
            texts = originals.texts[i], originals.others[i]
            versions = [(level, edited(edit, *texts, level)) for level in levels]
            if all(version and version.strip() for _, version in versions):
                rows += [(edit.name, edit.effect, level, i, text) for level, text in versions]
    return pd.DataFrame(rows, columns=["edit", "effect", "strength", "text", "edited"])


def score_edits(
    originals: Originals, pairs: pd.DataFrame, tools: Tools
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores of the edited texts, in the order of `pairs`; of their originals, by number): one
    column per metric, higher meant to be better.
    """
    used = sorted(set(pairs["text"]))
    texts = [originals.texts[i] for i in used]
    before = _scores(texts, [originals.references[i] for i in used], tools).set_axis(used)
    references = [originals.references[i] for i in pairs["text"]]
    return _scores(list(pairs["edited"]), references, tools), before


def _scores(texts: list[str], references: list[str], tools: Tools) -> pd.DataFrame:
    groups, metrics = [[reference] for reference in references], coherence_metrics(tools)
    values = overlap_values(texts, groups, tools, ("rouge1", "rouge2", "rougeL"))
    others = {"Perplexity": metrics["perplexity"](texts), "SCS": metrics["SCS"](texts)}
    return pd.DataFrame(values | others)


def edit_table(pairs: pd.DataFrame, after: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """One row per metric, edit and strength, over the n texts with both scores defined: mean fall
    in standard deviations, fraction of originals preferred (a tie counts half); with intervals.
    """
    rng = np.random.default_rng(0)
    rows = []
    for name in before:
        unit = before[name].std(ddof=0)
        if unit < 1e-6:
            # Texts against themselves all score alike: take the edited ones' spread.
            unit = after[name].std(ddof=0) or 1.0
        original = pairs["text"].map(before[name])
        falls = pairs.assign(fall=(original - after[name]) / unit)
        for key, group in falls.groupby(["edit", "effect", "strength"], sort=False)["fall"]:
            fall = group.dropna().to_numpy()
            if not len(fall):
                continue
            drawn = fall[rng.integers(len(fall), size=(RESAMPLES, len(fall)))]
            wins = preferred(fall).mean(), *interval(preferred(drawn).mean(1))
            rows.append((name, *key, len(fall), fall.mean(), *interval(drawn.mean(1)), *wins))
    columns = "metric edit effect strength n mean_fall fall_low fall_high"
    columns += " prefers_original prefers_low prefers_high"
    return pd.DataFrame(rows, columns=columns.split())


def meaning_ranking(pairs: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """For each metric the fraction of (text, meaning-keeping edit, meaning-breaking edit) where the
    kept meaning scores higher (0.5 is chance), with its interval over texts.
    """
    rng = np.random.default_rng(0)
    rows = []
    for name in after:
        scored = pairs.assign(score=after[name]).dropna(subset="score").set_index("effect")
        kept, broken = (scored.loc[[effect], ["text", "score"]] for effect in ("keeps", "breaks"))
        both = kept.merge(broken, on="text", suffixes=("_kept", "_broken"))
        wins = preferred(both["score_kept"] - both["score_broken"]).groupby(both["text"])
        per_text = wins.agg(["sum", "count"]).to_numpy()  # [texts, 2]
        n = len(per_text)
        drawn = per_text[rng.integers(n, size=(RESAMPLES, n))].sum(1)
        low, high = interval(drawn[:, 0] / drawn[:, 1])
        won, compared = per_text.sum(0)
        rows.append((name, won / compared, low, high, n, int(compared)))
    columns = ["metric", "kept_above_broken", "low", "high", "texts", "pairs"]
    return pd.DataFrame(rows, columns=columns)
