"""The five parts of the study, each from models and data to a section of the record and its table
on disk.

The presets differ in how much they read: the paper preset takes every text that the questions need,
the demo enough to see every part at work within a minute.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ...cli import Settings
from ...data.hub import fetch_model_folder
from ...records import load_record, provenance, save_record, write_csv
from ..bertscore import random_pair_baseline
from ..embeddings import Encoder
from ..sentences import split_sentences
from ..suite import Tools, score_examples
from . import figures
from .coherence_study import control_table
from .edit_study import (
    edit_pairs,
    edit_table,
    meaning_ranking,
    originals_from_news,
    originals_from_summeval,
    score_edits,
)
from .human_judgements import SentencePairs, SummEval
from .human_study import coherence_differences, stsb_table, summeval_metrics, summeval_table
from .quantization_cost import cached_cost_table

PARTS = ("scores", "edits", "humans", "coherence", "quantization")
READ_HUMANS = {"edits", "humans", "coherence"}  # edits and coherence take SummEval's texts


@dataclass(frozen=True)
class Scale:
    """How much a preset reads."""

    edits: int
    strengths: tuple[int, ...]
    permutations: int
    coherence_texts: int
    quantization_texts: int
    baseline_texts: int


SCALES = {
    "paper": Scale(
        edits=200,
        strengths=(1, 3),
        permutations=20,
        coherence_texts=100,
        quantization_texts=200,
        baseline_texts=500,
    ),
    "demo": Scale(
        edits=8,
        strengths=(2,),
        permutations=5,
        coherence_texts=12,
        quantization_texts=24,
        baseline_texts=40,
    ),
}


@dataclass
class Inputs:
    """What the parts share: news texts of the test split, and people's judgements where there are
    any.
    """

    settings: Settings
    tools: Tools
    news: list[str]
    humans: tuple[SummEval, SentencePairs] | None

    @property
    def scale(self) -> Scale:
        return SCALES[self.settings.preset]


def scores(inputs: Inputs) -> tuple[dict, str]:
    """The built-in examples under every metric."""
    texts, table = score_examples(inputs.tools)
    write_csv(inputs.settings.results_dir / "metric_scores.csv", texts)
    baseline = random_pair_baseline(
        inputs.news[: inputs.scale.baseline_texts], inputs.tools.encoder, inputs.tools.cache
    )
    section = {
        "corpus": table.to_dict("records"),
        "texts": texts.to_dict("records"),
        "bertscore_baseline": dict(zip(("precision", "recall", "f1"), baseline, strict=True)),
    }
    return section, _shown(table.drop(columns="signature"))


def edits(inputs: Inputs) -> tuple[dict, str]:
    """Controlled edits of SummEval's references where they are at hand, else of news items."""
    scale = inputs.scale
    originals = (
        originals_from_summeval(inputs.humans[0])
        if inputs.humans
        else originals_from_news(inputs.news[: 60 * scale.edits])
    )
    pairs = edit_pairs(originals, scale.edits, scale.strengths)
    after, before = score_edits(originals, pairs, inputs.tools)
    table, ranking = edit_table(pairs, after, before), meaning_ranking(pairs, after, before)
    write_csv(inputs.settings.results_dir / "metric_edits.csv", table)
    figures.edit_heatmap(table, inputs.settings.results_dir / "metric_edits.png")
    section = {
        "source": originals.source,
        "table": table.to_dict("records"),
        "ranking": ranking.to_dict("records"),
    }
    return section, _shown(ranking)


def humans(inputs: Inputs) -> tuple[dict, str]:
    """SummEval and STS Benchmark."""
    summeval, pairs = inputs.humans
    metrics = summeval_metrics(summeval, inputs.tools)
    table, differences = summeval_table(summeval, metrics), coherence_differences(summeval, metrics)
    stsb = stsb_table(pairs, inputs.tools)
    write_csv(inputs.settings.results_dir / "metric_meta_evaluation.csv", table)
    figures.human_agreement(table, inputs.settings.results_dir / "metric_human_agreement.png")
    section = {
        "summeval": table.to_dict("records"),
        "coherence_differences": differences.to_dict("records"),
        "stsb": stsb.to_dict("records"),
        "undefined_scs": int((metrics["SCS"] != metrics["SCS"]).sum()),
    }
    shown = table[(table["level"] == "summary") & (table["statistic"] == "spearman")]
    shown = shown.pivot(index="metric", columns="quality", values="value").reset_index()
    return section, f"{_shown(shown)}\n\n{_shown(differences)}\n\n{_shown(stsb)}"


def coherence(inputs: Inputs) -> tuple[dict, str]:
    """Shuffle test and controls on whole articles, or on the longest news items where there are
    none.
    """
    if inputs.humans:
        texts, source = inputs.humans[0].sources, "SummEval source articles, whole"
    else:
        texts = sorted(inputs.news, key=lambda text: -len(split_sentences(text)))
        source = "the test items with the most sentences"
    table = control_table(
        texts[: inputs.scale.coherence_texts], inputs.tools, inputs.scale.permutations
    )
    write_csv(inputs.settings.results_dir / "metric_coherence.csv", table)
    figures.coherence_controls(table, inputs.settings.results_dir / "metric_coherence.png")
    shown = table.pivot(index="metric", columns="control", values="prefers_original").reset_index()
    return {"source": source, "table": table.to_dict("records")}, _shown(shown)


def quantization(inputs: Inputs) -> tuple[dict, str]:
    """The language model under every weight scheme, on held-out news."""
    settings, tools = inputs.settings, inputs.tools
    folder = fetch_model_folder(settings.base_model, settings.base_revision)
    texts = inputs.news[: inputs.scale.quantization_texts]
    table, missing = cached_cost_table(tools.language_model, folder, texts, tools.cache)
    write_csv(settings.results_dir / "language_model_quantization.csv", table)
    figures.quantization_cost(table, settings.results_dir / "language_model_quantization.png")
    section = {"source": "test split", "table": table.to_dict("records"), "missing": missing}
    return section, _shown(table.drop(columns="scheme"))


RUNNERS: dict[str, Callable[[Inputs], tuple[dict, str]]] = {
    "scores": scores,
    "edits": edits,
    "humans": humans,
    "coherence": coherence,
    "quantization": quantization,
}
OUTPUTS = {
    "scores": ["metric_scores.csv"],
    "edits": ["metric_edits.csv", "metric_edits.png"],
    "humans": ["metric_meta_evaluation.csv", "metric_human_agreement.png"],
    "coherence": ["metric_coherence.csv", "metric_coherence.png"],
    "quantization": ["language_model_quantization.csv", "language_model_quantization.png"],
}


def store(inputs: Inputs, sections: dict[str, dict], data: dict) -> Path:
    """Write the parts that ran into the record text_metrics.json; parts of an earlier run with the
    same models stay.
    """
    settings, tools = inputs.settings, inputs.tools
    models = {"language_model": tools.language_model.signature, "encoder": Encoder.signature}
    path = settings.results_dir / "records" / "text_metrics.json"
    before = load_record(path) if path.is_file() else {"models": {}}
    same = all(before["models"].get(name) == signature for name, signature in models.items())
    kept = {part: before[part] for part in PARTS if part in before and same}
    record = {
        "settings": settings.as_dict(),
        "data": data,
        "models": models,
        "provenance": provenance(settings),
    }
    return save_record(settings.results_dir, "text_metrics", {**record, **kept, **sections})


def _shown(table: pd.DataFrame) -> str:
    return table.to_string(index=False, float_format=lambda value: f"{value:.3f}")


def typeset(results_dir: Path) -> Path:
    """Set report_1.pdf from the record and the figures in `results_dir`."""
    from ...reports.metrics_report import write_report

    return write_report(results_dir)
