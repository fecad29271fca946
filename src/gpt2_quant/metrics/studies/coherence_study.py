"""Sensitivity of coherence metrics: the fraction of damaged versions of texts that score below the
original; 0.5 is chance, a tie counts half.

* shuffle: sentences permuted (Barzilay and Lapata 2008); block shuffle: blocks of three kept whole
* intrusion: one sentence of another text inserted; topic switch: the second half is another text's
* repetition: one sentence twice in a row; all twice in a row; the whole text twice

Perplexity, which runs the model anew for each version, gets fewer texts and permutations.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...data.datasets import Split
from ...errors import UserError
from ...records import file_sha256
from ..sentences import split_sentences
from ..suite import Tools
from ..texts import read_files
from .edits import permutation
from .human_judgements import People
from .resampling import draws, interval, preferred
from .values import coherence_metrics

PERPLEXITY_TEXTS = 30


def whole_texts(
    people: People | None, news: Split | None, held_out: Path | None, n: int
) -> dict[str, tuple[list[str], str]]:
    """Part of the record -> (texts, their source): "coherence", n of SummEval's articles, which
    were looked at while SCS was made, or else the longest test texts; "held_out", a user's file.

    Raises UserError when fewer than two of the latter have the four sentences that a shuffle takes.
    """
    sets: dict[str, tuple[list[str], str]] = {}
    if people:
        sets["coherence"] = people[0].sources[:n], "SummEval source articles, whole"
    elif news:
        texts = sorted(news.texts, key=lambda text: -len(split_sentences(text)))
        sets["coherence"] = texts[:n], "the test items with the most sentences"
    if held_out:
        texts, _ = read_files(held_out, None)
        if sum(len(split_sentences(text)) >= 4 for text in texts) < 2:
            fault = f"{held_out} has fewer than two texts of at least four sentences"
            raise UserError(f"{fault}: give whole documents, one per line")
        sets["held_out"] = texts, f"{held_out.name}, sha256 {file_sha256(held_out)[:8]}"
    return sets


def damaged_versions(texts: Sequence[str], permutations: int) -> pd.DataFrame:
    """One row per version of a text of at least four sentences: text (its number), control (or
    "original"), version; `permutations` of both shuffles, one of each other control.
    """
    rng = np.random.default_rng(0)
    split = [sentences for sentences in map(split_sentences, texts) if len(sentences) >= 4]
    rows = []
    for text, sentences in enumerate(split):
        n, other = len(sentences), split[(text + 1) % len(split)]
        position = int(rng.integers(n)) + 1
        before, after = sentences[:position], sentences[position:]
        blocks = [sentences[i : i + 3] for i in range(0, n, 3)]
        versions = [("original", sentences)]
        for control, units in (("shuffle", [[s] for s in sentences]), ("block shuffle", blocks)):
            for _ in range(permutations):
                order = permutation(len(units), rng)
                versions += [(control, [s for i in order for s in units[i]])]
        intruder = other[int(rng.integers(len(other)))]
        versions += [
            ("intrusion", [*before, intruder, *after]),
            ("topic switch", sentences[: n // 2] + other[len(other) // 2 :][: n - n // 2]),
            ("one sentence twice", [*before, before[-1], *after]),
            ("each sentence twice", [copy for s in sentences for copy in (s, s)]),
            ("whole text twice", sentences + sentences),
        ]
        # A line break always ends a sentence.
        rows += [(text, control, "\n".join(version)) for control, version in versions]
    return pd.DataFrame(rows, columns=["text", "control", "version"])


def control_table(texts: Sequence[str], tools: Tools, permutations: int) -> pd.DataFrame:
    """One row per metric and control: fraction of versions put below the original, its interval,
    numbers of texts and of versions per text.
    """
    versions = damaged_versions(texts, permutations)
    few = versions[versions["text"] < PERPLEXITY_TEXTS].groupby(["text", "control"]).head(1)
    rows = []
    for name, metric in coherence_metrics(tools).items():
        scored = few if name == "perplexity" else versions
        scored = scored.assign(score=metric(list(scored["version"])))
        is_original = scored["control"] == "original"
        original = scored[is_original].set_index("text")["score"]
        damaged = scored[~is_original]
        won = preferred(damaged["text"].map(original) - damaged["score"])
        for control, wins in won.groupby(damaged["control"], sort=False):
            per_text = wins.groupby(damaged["text"]).mean().to_numpy()
            low, high = interval(per_text[draws(len(per_text))].mean(1))
            n = len(per_text)
            rows.append((name, control, per_text.mean(), low, high, n, len(wins) // n))
    columns = ["metric", "control", "prefers_original", "low", "high", "texts", "versions"]
    return pd.DataFrame(rows, columns=columns)


def by_control(table: pd.DataFrame) -> pd.DataFrame:
    fractions = table.pivot(index="metric", columns="control", values="prefers_original")
    return fractions.reset_index()
