"""All metrics over one set of texts, and over a user's file of any length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from ..cache import Cache
from ..cli import Settings
from ..records import atomic_path
from .bertscore import bertscore
from .bleu import bleu, chrf, nltk_bleu
from .coherence import coherence
from .embeddings import Encoder, load_encoder
from .perplexity import LanguageModel, load_language_model, perplexity
from .rouge import rouge
from .scored import Scored
from .studies.examples import EXAMPLES
from .texts import check_files, read_chunks


@dataclass
class Tools:
    """What the metrics need: MiniLM (None where no metric will ask for it), a GPT-2 language model,
    and the cache of what was scored before.
    """

    encoder: Encoder | None
    language_model: LanguageModel
    cache: Cache


def load_tools(settings: Settings, with_encoder: bool = True) -> Tools:
    """Load the models and open the cache under `results_dir/cache`. The demo never asks the hub."""
    cache = Cache(settings.results_dir / "cache")
    language_model = load_language_model(
        settings.base_model, settings.base_revision, settings.device
    )
    encoder = (
        load_encoder(settings.device, cache, use_hub=settings.preset != "demo")
        if with_encoder
        else None
    )
    return Tools(encoder, language_model, cache)


def score_texts(
    candidates: Sequence[str], references: Sequence[Sequence[str]] | None, tools: Tools
) -> dict[str, Scored]:
    """Every metric that these texts allow, by name; without references those that need none:
    perplexity and coherence.
    """
    scored = {}
    if references is not None:
        scored = {
            metric.name: metric for metric in rouge(candidates, references, tools.cache).values()
        }
        for metric in (bleu, nltk_bleu, chrf):
            result = metric(candidates, references, tools.cache)
            scored[result.name] = result
        scored["BERTScore"] = bertscore(candidates, references, tools.encoder, cache=tools.cache)
    scored["Perplexity"] = perplexity(candidates, tools.language_model, tools.cache)
    scored["SCS"] = coherence(candidates, tools.encoder)
    return scored


def summary(scored: dict[str, Scored]) -> pd.DataFrame:
    """One row a metric: corpus value, number of defined texts, signature."""
    rows = [(name, metric.corpus, metric.n, metric.signature) for name, metric in scored.items()]
    return pd.DataFrame(rows, columns=["metric", "corpus", "defined", "signature"])


def score_examples(tools: Tools) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The built-in examples: (one row a text with all its values, the summary)."""
    kinds, candidates, references = zip(*EXAMPLES, strict=True)
    scored = score_texts(candidates, [[text] for text in references], tools)
    return pd.DataFrame({"kind": kinds, "candidate": candidates, **_columns(scored)}), summary(
        scored
    )


def score_files(
    candidates: Path, references: Path | None, tools: Tools, output: Path
) -> tuple[pd.DataFrame, int]:
    """Score a user's files in pieces; writes one row a text to `output` (CSV, atomically); returns
    the summary and the blank texts.

    Memory depends on the piece, not on the file: nothing is cached across pieces. Raises UserError
    before anything is written.
    """
    n, blank = check_files(candidates, references)
    total: dict[str, Scored] = {}
    with (
        atomic_path(output) as temporary,
        tqdm(total=n, desc="texts", unit="text", disable=n < 200) as bar,
    ):
        first = 0
        for texts, groups in read_chunks(candidates, references):
            memory = Cache(None)
            piece = score_texts(
                texts,
                groups,
                replace(tools, cache=memory, encoder=replace(tools.encoder, cache=memory)),
            )
            frame = pd.DataFrame(
                {"line": np.arange(first + 1, first + len(texts) + 1), **_columns(piece)}
            )
            frame.to_csv(temporary, mode="a" if first else "w", header=not first, index=False)
            total = {name: _joined(total.get(name), metric) for name, metric in piece.items()}
            first += len(texts)
            bar.update(len(texts))
    table = summary(total)
    table["defined"] = [int(metric.values[0]) for metric in total.values()]
    return table, blank


def _columns(scored: dict[str, Scored]) -> dict[str, np.ndarray]:
    return {name: np.round(metric.values, 6) for name, metric in scored.items()}


def _joined(before: Scored | None, piece: Scored) -> Scored:
    """The corpus of two pieces: sums added, and in place of values how many were defined."""
    defined = np.array([piece.n + (before.values[0] if before else 0)])
    sums = [
        metric.additive
        for metric in (before, piece)
        if metric is not None and metric.additive is not None
    ]
    named = piece if piece.additive is not None or before is None else before
    return replace(named, values=defined, additive=np.sum(sums, axis=0) if sums else None, parts={})
