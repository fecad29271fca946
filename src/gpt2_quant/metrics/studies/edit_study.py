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
from .resampling import document_means, interval, preferred
from .values import coherence_metrics, overlap_values


@dataclass(frozen=True)
class Originals:
    """n texts, each with one reference, another text on another matter, and the number of the
    document that it is about.
    """

    texts: list[str]
    references: list[str]
    others: list[str]
    documents: list[int]
    source: str


def choose_originals(people: People | None, news: Sequence[str], limit: int) -> Originals:
    """SummEval's references where available, else enough news for `limit` texts per edit; the other
    matter is the next document's, or the next item.
    """
    if not people:
        texts, source = list(news[: 60 * limit]), "AG News test items against themselves"
        return Originals(texts, texts, texts[1:] + texts[:1], list(range(len(texts))), source)
    groups = people[0].references
    texts = [text for group in groups for text in group[1:7]]
    first = [group[0] for group in groups for _ in range(6)]
    others = texts[6:] + texts[:6]
    documents = [document for document in range(len(groups)) for _ in range(6)]
    source = "SummEval references 2 to 7 against reference 1"
    return Originals(texts, first, others, documents, source)


def edit_pairs(
    originals: Originals, limit: int, strengths: Sequence[int] = STRENGTHS
) -> pd.DataFrame:
    """One row per edited text: edit, effect, strength, text (number of the original), document,
    edited; at most `limit` texts per edit, the same at every strength.
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
                document = originals.documents[i]
                rows += [(edit.name, edit.effect, level, i, document, t) for level, t in versions]
    columns = ["edit", "effect", "strength", "text", "document", "edited"]
    return pd.DataFrame(rows, columns=columns)


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
    kept meaning scores higher (0.5 is chance).

    Each pair of kinds, as synonyms and negation, weighs the same, however many texts allow both:
    the mean over texts and strengths, then over pairs of kinds. Its interval is bootstrapped over
    documents.
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
