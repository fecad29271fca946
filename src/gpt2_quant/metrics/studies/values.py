"""Every metric as plain values per text, higher meant to be better: perplexity enters as -log."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from ..bertscore import random_pair_baseline
from ..coherence import ABLATIONS, PARTS, adjacent_cosine, all_pairs_cosine, coherence
from ..perplexity import perplexity
from ..suite import Tools, overlap, rounded, score_texts, summary
from .examples import EXAMPLES

Values = dict[str, np.ndarray]
Metric = Callable[[Sequence[str]], np.ndarray]


def overlap_values(texts, references, tools: Tools, **chosen) -> Values:
    """`suite.overlap` as values [n] by name."""
    scored = overlap(texts, references, tools, **chosen)
    return {metric.name: metric.values for metric in scored}


def score_examples(tools: Tools) -> tuple[pd.DataFrame, pd.DataFrame]:
    kinds, candidates, references = zip(*EXAMPLES, strict=True)
    scored = score_texts(candidates, [[text] for text in references], tools)
    texts = pd.DataFrame({"kind": kinds, "candidate": candidates, **rounded(scored)})
    return texts, summary(scored)


def unrelated_bertscore(texts: Sequence[str], tools: Tools) -> dict[str, float]:
    zero = random_pair_baseline(texts, tools.encoder, tools.cache)
    return dict(zip(("precision", "recall", "f1"), zero.tolist(), strict=True))


def coherence_metrics(tools: Tools) -> dict[str, Metric]:
    """Metrics of the text alone, each a function from n texts to values [n]."""
    encoder, model, cache = tools.encoder, tools.language_model, tools.cache

    def scs(parts: Sequence[str]) -> Metric:
        return lambda texts: coherence(texts, encoder, parts).values

    metrics: dict[str, Metric] = {
        "SCS": scs(PARTS),
        "adjacent cosine": lambda texts: adjacent_cosine(texts, encoder).values,
        "all-pairs cosine": lambda texts: all_pairs_cosine(texts, encoder).values,
        "perplexity": lambda texts: -np.log(perplexity(texts, model, cache).values),
    }
    return metrics | {f"SCS {name}": scs(parts) for name, parts in ABLATIONS.items()}
