"""What each metric does when a text is damaged on purpose: its mean fall, how often it prefers the
original, how it ranks edits.

A text is scored against *another* human's reference where there is one (SummEval has eleven a
document), so that the original's own score is that of a good text and not of a copy; news items,
which have none, are scored against themselves. Falls are in units of the metric's standard
deviation over the originals, so that metrics on different scales share one figure: 1.0 means that
the edit costs as much as one standard deviation between good texts. (Where originals are their own
references and so all score the same, the unit is the standard deviation over the edited texts.)
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..bertscore import bertscore
from ..bleu import bleu, chrf
from ..coherence import coherence
from ..perplexity import perplexity
from ..rouge import rouge
from ..suite import Tools
from .edits import EDITS, ONE_STRENGTH, STRENGTHS, edited
from .human_judgements import SummEval

RESAMPLES = 2000


@dataclass(frozen=True)
class Originals:
    """n texts with one reference each, and for each another text on another matter."""

    texts: list[str]
    references: list[str]
    others: list[str]
    source: str


def originals_from_summeval(data: SummEval, per_document: int = 6) -> Originals:
    """References 2 to 7 of each document as texts, the first as their reference, the next
    document's as the other matter.
    """
    texts, references, others = [], [], []
    for i, group in enumerate(data.references):
        following = data.references[(i + 1) % len(data.references)]
        for k in range(1, per_document + 1):
            texts.append(group[k])
            references.append(group[0])
            others.append(following[k])
    return Originals(texts, references, others, "SummEval references 2 to 7 against reference 1")


def originals_from_news(texts: Sequence[str]) -> Originals:
    """News items scored against themselves; the other matter is the next item's."""
    texts = list(texts)
    return Originals(texts, texts, texts[1:] + texts[:1], "AG News test items against themselves")


def edit_pairs(
    originals: Originals, limit: int, strengths: Sequence[int] = STRENGTHS
) -> pd.DataFrame:
    """One row an edited text: edit, effect, strength, text (row number of the original), edited. At
    most `limit` texts an edit.

    The same texts at every strength, chosen by hash, so that strengths compare.
    """
    order = sorted(
        range(len(originals.texts)),
        key=lambda i: hashlib.sha256(originals.texts[i].encode("utf-8", "replace")).digest(),
    )
    rows = []
    for edit in EDITS:
        levels = [3] if edit.name in ONE_STRENGTH else strengths
        taken = 0
        for i in order:
            versions = [
                edited(edit, originals.texts[i], originals.others[i], level) for level in levels
            ]
            if taken == limit:
                break
            if all(version is not None and version.strip() for version in versions):
                taken += 1
                rows += [
                    (edit.name, edit.effect, level, i, version)
                    for level, version in zip(levels, versions, strict=True)
                ]
    return pd.DataFrame(rows, columns=["edit", "effect", "strength", "text", "edited"])


def score_edits(
    originals: Originals, pairs: pd.DataFrame, tools: Tools
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """(edited scores, one column a metric beside `pairs`' rows; metric -> scores of the originals,
    NaN for those no edit used); higher is meant to be better.
    """
    edited_references = [originals.references[i] for i in pairs["text"]]
    scores = _scores(list(pairs["edited"]), edited_references, tools)
    used = sorted(set(pairs["text"]))
    before = {}
    for name, values in _scores(
        [originals.texts[i] for i in used], [originals.references[i] for i in used], tools
    ).items():
        before[name] = np.full(len(originals.texts), np.nan)
        before[name][used] = values
    return pd.DataFrame(scores), before


def _scores(texts: list[str], references: list[str], tools: Tools) -> dict[str, np.ndarray]:
    groups = [[reference] for reference in references]
    scored = [*rouge(texts, groups, tools.cache, ("rouge1", "rouge2", "rougeL")).values()]
    scored += [metric(texts, groups, tools.cache) for metric in (bleu, chrf)]
    scored.append(bertscore(texts, groups, tools.encoder, cache=tools.cache))
    result = {metric.name: metric.values for metric in scored}
    result["Perplexity"] = -np.log(perplexity(texts, tools.language_model, tools.cache).values)
    result["SCS"] = coherence(texts, tools.encoder).values
    return result


def edit_table(
    pairs: pd.DataFrame, scores: pd.DataFrame, before: dict[str, np.ndarray]
) -> pd.DataFrame:
    """One row a metric, edit and strength: n, mean fall in standard deviations with interval, share
    that prefers the original.

    A tie counts half. Rows where the original or the edited text is undefined are left out and `n`
    says how many remain.
    """
    rows = []
    draw = np.random.default_rng(0)
    for name, original in before.items():
        spread = np.nanstd(original)
        if (
            spread < 1e-6
        ):  # texts scored against themselves are all alike: then the unit is the spread of the edited ones
            spread = np.nanstd(scores[name]) or 1.0
        fall = (original[pairs["text"]] - scores[name].to_numpy()) / spread
        for (edit, effect, strength), group in pairs.groupby(
            ["edit", "effect", "strength"], sort=False
        ).indices.items():
            values = fall[group][np.isfinite(fall[group])]
            if not len(values):
                continue
            drawn = values[draw.integers(len(values), size=(RESAMPLES, len(values)))]
            prefers = np.sign(np.round(drawn, 9)) / 2 + 0.5
            low, high = np.quantile(drawn.mean(1), (0.025, 0.975))
            share_low, share_high = np.quantile(prefers.mean(1), (0.025, 0.975))
            share = float((np.sign(np.round(values, 9)) / 2 + 0.5).mean())
            rows.append(
                (
                    name,
                    edit,
                    effect,
                    strength,
                    len(values),
                    values.mean(),
                    low,
                    high,
                    share,
                    share_low,
                    share_high,
                )
            )
    columns = "metric edit effect strength n mean_fall fall_low fall_high prefers_original prefers_low prefers_high"
    return pd.DataFrame(rows, columns=columns.split(" "))


def meaning_ranking(
    pairs: pd.DataFrame, scores: pd.DataFrame, before: dict[str, np.ndarray]
) -> pd.DataFrame:
    """For each metric the share of (text, meaning-keeping edit, meaning-breaking edit) where the
    kept meaning scores higher.

    0.5 is chance and below it the metric prefers wrong texts to clumsy ones. Interval: bootstrap
    over texts.
    """
    rows = []
    draw = np.random.default_rng(0)
    for name in before:
        frame = pairs.assign(score=scores[name].to_numpy()).dropna(subset=["score"])
        kept = frame[frame["effect"] == "keeps"][["text", "score"]]
        broken = frame[frame["effect"] == "breaks"][["text", "score"]]
        joined = kept.merge(broken, on="text", suffixes=("_kept", "_broken"))
        gap = joined["score_kept"] - joined["score_broken"]
        wins = (
            (np.sign(gap.round(9)) / 2 + 0.5)
            .groupby(joined["text"])
            .agg(["sum", "count"])
            .to_numpy()
        )
        drawn = wins[draw.integers(len(wins), size=(RESAMPLES, len(wins)))].sum(1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], (0.025, 0.975))
        rows.append(
            (name, wins[:, 0].sum() / wins[:, 1].sum(), low, high, len(wins), int(wins[:, 1].sum()))
        )
    return pd.DataFrame(
        rows, columns=["metric", "kept_above_broken", "low", "high", "texts", "pairs"]
    )
