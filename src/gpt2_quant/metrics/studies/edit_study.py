"""What each metric does when a text is damaged on purpose.

A text is scored against *another* human's reference where there is one, so that the original is not
a copy of it; news items are scored against themselves. Falls are in standard deviations of the
metric over the originals.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..suite import Tools
from .edits import EDITS, ONE_STRENGTH, STRENGTHS, edited
from .human_judgements import People
from .resampling import document_means, interval, preferred
from .values import coherence_metrics, overlap_values


def choose_originals(
    people: People | None, news: Sequence[str], limit: int
) -> tuple[pd.DataFrame, str]:
    """(one row per text: text, its reference, other (a text on another matter), document (number of
    what it is about); their source): SummEval's references where available, else enough news for
    `limit` texts per edit.
    """
    if people:
        source = "SummEval references 2 to 7 against reference 1"
        groups, each = people[0].references, 6
        texts = [text for group in groups for text in group[1:7]]
        references = [group[0] for group in groups for _ in range(each)]
    else:
        source, each = "test texts against themselves", 1
        texts = references = list(news[: 60 * limit])
    columns = {"text": texts, "reference": references, "other": texts[each:] + texts[:each]}
    return pd.DataFrame({**columns, "document": np.arange(len(texts)) // each}), source


def edit_pairs(
    originals: pd.DataFrame, limit: int, strengths: Sequence[int] = STRENGTHS
) -> pd.DataFrame:
    """One row per edited text: edit, effect, strength, text (number of the original), document,
    edited; at most `limit` texts per edit, the same at every strength.
    """
    # By hash: random, but fixed by the texts.
    digests = [hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in originals.text]
    shuffled = originals.assign(digest=digests).sort_values("digest", kind="stable")
    rows: list[tuple] = []
    for edit in EDITS:
        levels = (3,) if edit.name in ONE_STRENGTH else strengths
        most = len(rows) + limit * len(levels)
        for i, text, _, other, document, _ in shuffled.itertuples():
            if len(rows) == most:
                break
            versions = [(level, edited(edit, text, other, level)) for level in levels]
            if all(version and version.strip() for _, version in versions):
                rows += [(edit.name, edit.effect, level, i, document, t) for level, t in versions]
    columns = ["edit", "effect", "strength", "text", "document", "edited"]
    return pd.DataFrame(rows, columns=columns)


def score_edits(
    originals: pd.DataFrame, pairs: pd.DataFrame, tools: Tools
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(scores of the edited texts, in the order of `pairs`; of their originals, by number): one
    column per metric, higher meant to be better.
    """
    used = originals.loc[sorted(set(pairs["text"]))]
    before = _scores(used["text"], used["reference"], tools).set_axis(used.index)
    return _scores(pairs["edited"], originals["reference"][pairs["text"]], tools), before


def _scores(texts: Iterable[str], references: Iterable[str], tools: Tools) -> pd.DataFrame:
    texts, metrics = list(texts), coherence_metrics(tools)
    groups = [[reference] for reference in references]
    values = overlap_values(texts, groups, tools, rouges=("rouge1", "rouge2", "rougeL"))
    others = {"Perplexity": metrics["perplexity"](texts), "SCS": metrics["SCS"](texts)}
    return pd.DataFrame(values | others)


def edit_table(pairs: pd.DataFrame, after: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """One row per metric, edit and strength, over the n texts with both scores defined: mean fall
    in standard deviations, fraction of originals preferred (a tie counts half); with intervals,
    bootstrapped over documents.
    """
    rows = []
    for name in before:
        unit = before[name].std(ddof=0)
        if unit < 1e-6:
            # Texts against themselves all score alike: take the edited ones' spread.
            unit = after[name].std(ddof=0) or 1.0
        original = pairs["text"].map(before[name])
        falls = pairs.assign(fall=(original - after[name]) / unit).dropna(subset="fall")
        falls["preferred"] = preferred(falls["fall"])
        for key, group in falls.groupby(["edit", "effect", "strength"], sort=False):
            both = group[["fall", "preferred"]]
            fall, wins = document_means(both, group["document"]).T
            fallen, won = both.mean()
            rows.append((name, *key, len(group), fallen, *interval(fall), won, *interval(wins)))
    columns = "metric edit effect strength n mean_fall fall_low fall_high"
    columns += " prefers_original prefers_low prefers_high"
    return pd.DataFrame(rows, columns=columns.split())


def meaning_ranking(pairs: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """For each metric the fraction of (text, meaning-keeping edit, meaning-breaking edit) where the
    kept meaning scores higher (0.5 is chance): the mean over texts and strengths, then over pairs
    of kinds, as synonyms and negation. Intervals are bootstrapped over documents.
    """
    columns = ["text", "document", "edit", "score"]
    rows = []
    for name in after:
        scored = pairs.assign(score=after[name]).dropna(subset="score").set_index("effect")
        kept, broken = (scored.loc[[effect], columns] for effect in ("keeps", "breaks"))
        both = kept.merge(broken, on=["text", "document"], suffixes=("_kept", "_broken"))
        both["won"] = preferred(both["score_kept"] - both["score_broken"])
        # One column per pair of kinds, undefined in the rows of the others.
        by_kinds = both.pivot(columns=["edit_kept", "edit_broken"], values="won")
        drawn = document_means(by_kinds, both["document"])
        counts = both["text"].nunique(), both["document"].nunique(), len(both), by_kinds.shape[1]
        low, high = interval(np.nanmean(drawn, axis=1))
        rows.append((name, by_kinds.mean().mean(), low, high, *counts))
    names = "metric kept_above_broken low high texts documents pairs kinds"
    return pd.DataFrame(rows, columns=names.split())
