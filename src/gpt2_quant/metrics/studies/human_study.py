"""Every metric against people: SummEval at summary and system level, STS Benchmark; published
values beside ours.

Metrics that need a reference are computed twice, against the first reference (the one that was in
the news) and against all eleven. Perplexity enters with its sign turned, so that a higher value is
always meant to be better. A summary of one sentence has no coherence score; the coherence metrics
are compared with the others on the summaries that all of them define.
"""

import numpy as np
import pandas as pd

from ...measure.paired import holm
from ..bertscore import bertscore
from ..bleu import bleu, chrf
from ..coherence import ABLATIONS, adjacent_cosine, all_pairs_cosine, coherence
from ..perplexity import context_gain, perplexity
from ..rouge import rouge
from ..sentences import split_sentences
from ..suite import Tools
from .human_judgements import QUALITIES, SentencePairs, SummEval
from .meta_evaluation import (
    by_document,
    difference,
    interval_of_mean,
    kendall,
    partial_spearman,
    pearson,
    resampled_documents,
    spearman,
    system_level,
    williams,
)

# Summary-level Spearman, coherence / consistency / fluency / relevance (Liu et al. 2023, G-Eval,
# table 1).
PUBLISHED = {
    "ROUGE-1": (0.167, 0.160, 0.115, 0.326),
    "ROUGE-2": (0.184, 0.187, 0.159, 0.290),
    "ROUGE-L": (0.128, 0.115, 0.105, 0.311),
    "BERTScore": (0.284, 0.110, 0.193, 0.312),
}
RIVALS = (
    "adjacent cosine",
    "all-pairs cosine",
    "perplexity",
    "context gain",
    "ROUGE-L, one reference",
    "fewer sentences",
)


def summeval_metrics(data: SummEval, tools: Tools) -> dict[str, np.ndarray]:
    """Metric -> values [documents, systems], higher meant to be better, NaN where undefined."""
    shape = (len(data.summaries), len(data.systems))
    candidates = [text for row in data.summaries for text in row]
    result = {}
    # Eleven first: their pairs hold those of one reference, whose scores are then in the cache.
    for label, count in (("eleven references", 11), ("one reference", 1)):
        references = [group[:count] for group in data.references for _ in data.systems]
        scored = [*rouge(candidates, references, tools.cache).values()]
        scored += [metric(candidates, references, tools.cache) for metric in (bleu, chrf)]
        scored.append(bertscore(candidates, references, tools.encoder, cache=tools.cache))
        result |= {f"{metric.name}, {label}": metric.values for metric in scored}
    result["perplexity"] = -np.log(perplexity(candidates, tools.language_model, tools.cache).values)
    result["context gain"] = context_gain(candidates, tools.language_model, tools.cache).values
    result["adjacent cosine"] = adjacent_cosine(candidates, tools.encoder).values
    result["all-pairs cosine"] = all_pairs_cosine(candidates, tools.encoder).values
    result["SCS"] = coherence(candidates, tools.encoder).values
    for name, parts in ABLATIONS.items():
        result[f"SCS {name}"] = coherence(candidates, tools.encoder, parts).values
    result["fewer sentences"] = -np.array(
        [float(len(split_sentences(text))) for text in candidates]
    )
    return {name: values.reshape(shape) for name, values in result.items()}


def summeval_table(data: SummEval, metrics: dict[str, np.ndarray]) -> pd.DataFrame:
    """One row a metric, quality, level and statistic: value, low, high, n, and the published value
    where there is one.
    """
    drawn = resampled_documents(len(data.summaries))
    rows = []
    for name, values in metrics.items():
        for column, quality in enumerate(QUALITIES):
            ratings = data.ratings[quality]
            published = PUBLISHED.get(name.split(",")[0], (np.nan,) * 4)[column]
            for statistic, function in (("spearman", spearman), ("kendall", kendall)):
                result = interval_of_mean(by_document(function, values, ratings), drawn)
                rows.append(
                    (
                        name,
                        quality,
                        "summary",
                        statistic,
                        *result.values(),
                        published if statistic == "spearman" else np.nan,
                    )
                )
            partial = by_document(partial_spearman, values, ratings, metrics["fewer sentences"])
            rows.append(
                (
                    name,
                    quality,
                    "summary",
                    "spearman without length",
                    *interval_of_mean(partial, drawn).values(),
                    np.nan,
                )
            )
            rows += [
                (name, quality, "system", statistic, *result.values(), np.nan)
                for statistic, result in system_level(values, ratings, drawn).items()
            ]
    return pd.DataFrame(
        rows,
        columns=[
            "metric",
            "quality",
            "level",
            "statistic",
            "value",
            "low",
            "high",
            "n",
            "published",
        ],
    )


def coherence_differences(data: SummEval, metrics: dict[str, np.ndarray]) -> pd.DataFrame:
    """SCS minus each rival on SummEval's coherence, on the summaries that SCS defines; Holm over
    the family of both statistics.
    """
    drawn, ratings = resampled_documents(len(data.summaries)), data.ratings["coherence"]
    length, defined = metrics["fewer sentences"], np.isfinite(metrics["SCS"])
    rows = []
    for rival in RIVALS:
        other = np.where(defined, metrics[rival], np.nan)
        for statistic in ("spearman", "spearman without length"):
            if statistic == "spearman":
                ours, theirs = (
                    by_document(spearman, metrics["SCS"], ratings),
                    by_document(spearman, other, ratings),
                )
            elif rival == "fewer sentences":
                continue
            else:
                ours = by_document(partial_spearman, metrics["SCS"], ratings, length)
                theirs = by_document(partial_spearman, other, ratings, length)
            rows.append({"rival": rival, "statistic": statistic, **difference(ours, theirs, drawn)})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows)


def stsb_table(data: SentencePairs, tools: Tools) -> pd.DataFrame:
    """Pearson and Spearman with human similarity for each metric, and Williams' p (Holm) against
    the cosine of MiniLM vectors.
    """
    references = [[text] for text in data.second]
    scored = [*rouge(data.first, references, tools.cache).values()]
    scored += [metric(data.first, references, tools.cache) for metric in (bleu, chrf)]
    scored.append(bertscore(data.first, references, tools.encoder, cache=tools.cache))
    cosine = (
        (tools.encoder.sentence_vectors(data.first) * tools.encoder.sentence_vectors(data.second))
        .sum(1)
        .astype(np.float64)
    )
    values = {metric.name: metric.values for metric in scored} | {"MiniLM cosine": cosine}
    best, n = spearman(cosine, data.similarity), len(cosine)
    rows = [
        {
            "metric": name,
            "pearson": pearson(column, data.similarity),
            "spearman": spearman(column, data.similarity),
            "n": int(np.isfinite(column).sum()),
            "p_cosine": williams(
                best, spearman(column, data.similarity), spearman(cosine, column), n
            )
            if column is not cosine
            else 1.0,
        }
        for name, column in values.items()
    ]
    for row, p in zip(rows, holm([row["p_cosine"] for row in rows]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows)
