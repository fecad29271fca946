"""Every metric against people's ratings, on SummEval and the STS Benchmark.

Metrics that need a reference are computed against the first (the published highlights) and against
all eleven; BERTScore's precision also against the source, with no reference at all. A summary of
one sentence has no coherence score: SCS is compared with its rivals on the others. Holm's
correction is per table.

A metric that gives all of a document's summaries one score ranks nothing there and counts as
correlation 0: leaving such documents out would compare metrics over different texts.
"""

import numpy as np
import pandas as pd

from ...measure.paired import holm
from ..bertscore import bertscore
from ..perplexity import context_gain
from ..sentences import split_sentences
from ..suite import Tools
from . import meta_evaluation as meta
from .human_judgements import QUALITIES, SentencePairs, SummEval
from .resampling import draws
from .values import Values, coherence_metrics, overlap_values

# Summary-level Spearman by quality (Liu et al. 2023, G-Eval, table 1).
PUBLISHED = {
    "ROUGE-1": (0.167, 0.160, 0.115, 0.326),
    "ROUGE-2": (0.184, 0.187, 0.159, 0.290),
    "ROUGE-L": (0.128, 0.115, 0.105, 0.311),
    "BERTScore": (0.284, 0.110, 0.193, 0.312),
}
SOURCE = "BERTScore, source"
LENGTH = "fewer sentences"  # what counting sentences alone would reach
COSINE = "MiniLM cosine"
RIVALS = (
    "adjacent cosine", "all-pairs cosine", "perplexity", "context gain", "ROUGE-L, one reference",
    SOURCE, LENGTH,
)  # fmt: skip


def summeval_metrics(data: SummEval, tools: Tools) -> Values:
    """Metric -> values [documents, systems]."""
    summaries = [text for group in data.summaries for text in group]
    result: Values = {}
    # Eleven first: caches the pairs with one.
    for label, count in (("eleven references", 11), ("one reference", 1)):
        references = [group[:count] for group in data.references for _ in data.systems]
        values = overlap_values(summaries, references, tools)
        result |= {f"{name}, {label}": column for name, column in values.items()}
    sources = [[source] for source in data.sources for _ in data.systems]
    result[SOURCE] = bertscore(summaries, sources, tools.encoder, tools.cache).parts["precision"]
    metrics = coherence_metrics(tools)
    gain = context_gain(summaries, tools.language_model, tools.cache).values
    result |= {"perplexity": metrics.pop("perplexity")(summaries), "context gain": gain}
    for name in dict.fromkeys(("adjacent cosine", "all-pairs cosine", *metrics)):
        result[name] = metrics[name](summaries)
    result[LENGTH] = -np.array([len(split_sentences(text)) for text in summaries], dtype=float)
    return {name: values.reshape(-1, len(data.systems)) for name, values in result.items()}


def summeval_table(data: SummEval, metrics: Values) -> pd.DataFrame:
    """One row per metric, quality, level and statistic: value, low, high, n, published value."""
    drawn = draws(len(data.summaries))
    rows = []
    for name, values in metrics.items():
        overlap = "" if name == SOURCE else name.split(",")[0]
        published = PUBLISHED.get(overlap, (np.nan,) * len(QUALITIES))
        for quality, known in zip(QUALITIES, published, strict=True):
            ratings = data.ratings[quality]
            by_document = meta.summary_level(values, ratings, metrics[LENGTH])
            level = {"metric": name, "quality": quality, "level": "summary"}
            for statistic, correlations in by_document.items():
                result = meta.interval_of_mean(correlations, drawn)
                rows.append({**level, "statistic": statistic, **result, "published": known})
                known = np.nan
            level["level"] = "system"
            for statistic, result in meta.system_level(values, ratings, drawn).items():
                rows.append({**level, "statistic": statistic, **result})
    return pd.DataFrame(rows)


def by_quality(table: pd.DataFrame) -> pd.DataFrame:
    rows = table.query("level == 'summary' and statistic == 'spearman'")
    return rows.pivot(index="metric", columns="quality", values="value").reset_index()


def undefined(values: np.ndarray) -> int:
    return int(np.isnan(values).sum())


def coherence_differences(data: SummEval, metrics: Values) -> pd.DataFrame:
    """SCS minus each rival on SummEval's coherence, with and without control for the number of
    sentences. `strongest` marks the best metric against references, which being picked by these
    ratings can only favour.
    """
    drawn, ratings = draws(len(data.summaries)), data.ratings["coherence"]
    defined = np.isfinite(metrics["SCS"])
    correlations = {
        name: meta.summary_level(np.where(defined, values, np.nan), ratings, metrics[LENGTH])
        for name, values in metrics.items()
    }
    with_references = [n for n in metrics if n.endswith(("reference", "references"))]
    strongest = max(with_references, key=lambda name: np.nanmean(correlations[name]["spearman"]))
    rows = []
    for rival in dict.fromkeys((*RIVALS, strongest)):
        for statistic in ("spearman", "spearman without length")[: 1 if rival == LENGTH else 2]:
            ours, theirs = (correlations[name][statistic] for name in ("SCS", rival))
            names = {"rival": rival, "statistic": statistic, "strongest": rival == strongest}
            rows.append({**names, **meta.difference(ours, theirs, drawn)})
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(list(table["p"])))


def stsb_table(data: SentencePairs, tools: Tools) -> pd.DataFrame:
    """Pearson and Spearman with human similarity; Williams' p against MiniLM's cosine."""
    values = overlap_values(data.first, [[text] for text in data.second], tools)
    first, second = map(tools.encoder.sentence_vectors, (data.first, data.second))
    cosine = values[COSINE] = (first * second).sum(1).astype(np.float64)
    best = float(meta.spearman(cosine, data.similarity))
    rows = []
    for name, column in values.items():
        linear, rank = (float(r(column, data.similarity)) for r in (meta.pearson, meta.spearman))
        shared = float(meta.spearman(cosine, column))
        p = 1.0 if name == COSINE else meta.williams(best, rank, shared, len(cosine))
        rows.append((name, linear, rank, int(np.isfinite(column).sum()), p))
    table = pd.DataFrame(rows, columns=["metric", "pearson", "spearman", "n", "p_cosine"])
    return table.assign(p_holm=holm(list(table["p_cosine"])))
