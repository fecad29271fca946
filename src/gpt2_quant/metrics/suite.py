"""All metrics over one set of texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..cache import Cache
from ..cli import Settings
from ..records import write_csv
from .bertscore import bertscore
from .bleu import bleu, chrf, nltk_bleu
from .coherence import coherence
from .embeddings import Encoder
from .perplexity import LanguageModel, load_language_model, perplexity
from .rouge import LABELS, rouge
from .scored import References, Scored


@dataclass
class Tools:
    encoder: Encoder
    language_model: LanguageModel
    cache: Cache


def load_tools(settings: Settings, with_encoder: bool = True) -> Tools:
    """The models, and the cache in `results_dir/cache`. The demo never asks the hub for MiniLM,
    which may be absent without `with_encoder`.
    """
    cache, device = Cache(settings.results_dir / "cache"), settings.device
    language_model = load_language_model(settings.base_model, settings.base_revision, device)
    encoder = Encoder(device, cache, use_hub=settings.preset != "demo")
    if with_encoder:
        _ = encoder.folder  # fail early on missing weights
    return Tools(encoder, language_model, cache)


def score_texts(
    candidates: Sequence[str], references: References | None, tools: Tools
) -> dict[str, Scored]:
    """Every metric by name; without references only perplexity and coherence."""
    ngrams = (bleu, nltk_bleu, chrf)
    scored = [] if references is None else overlap(candidates, references, tools, ngrams=ngrams)
    scored += [perplexity(candidates, tools.language_model, tools.cache)]
    scored += [coherence(candidates, tools.encoder)]
    return {metric.name: metric for metric in scored}


def overlap(
    candidates: Sequence[str],
    references: References,
    tools: Tools,
    rouges: Sequence[str] = tuple(LABELS),
    ngrams: Iterable[Callable] = (bleu, chrf),
) -> list[Scored]:
    """The metrics that need references."""
    scored = [*rouge(candidates, references, tools.cache, rouges).values()]
    scored += [metric(candidates, references, tools.cache) for metric in ngrams]
    return [*scored, bertscore(candidates, references, tools.encoder, tools.cache)]


def summary(scored: dict[str, Scored]) -> pd.DataFrame:
    rows = [(name, metric.corpus, metric.n, metric.signature) for name, metric in scored.items()]
    return pd.DataFrame(rows, columns=["metric", "corpus", "defined", "signature"])


def score_own_texts(
    texts: Sequence[str], references: References | None, tools: Tools, output: Path
) -> pd.DataFrame:
    """Score a user's texts; writes one row per text to `output` (CSV), returns the summary."""
    memory = Cache(None)  # keeps them out of the study's cache
    tools = replace(tools, cache=memory, encoder=replace(tools.encoder, cache=memory))
    scored = score_texts(texts, references, tools)
    lines = np.arange(1, len(texts) + 1)
    write_csv(output, pd.DataFrame({"line": lines, **rounded(scored)}))
    return summary(scored)


def rounded(scored: dict[str, Scored]) -> dict[str, np.ndarray]:
    return {name: np.round(metric.values, 6) for name, metric in scored.items()}
