"""What `report_1.typ` shows: the record of script 4 as plain values, and its findings. Sentences
that depend on this run's numbers are decided here; the template holds the rest.
"""

from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd

from ..metrics.studies.edits import EDITS, edited
from ..metrics.studies.examples import EDIT_STORY, OTHER_STORY
from ..metrics.studies.human_judgements import QUALITIES
from ..models.variants import BASELINE
from ..records import load_record
from . import compile_report

IMAGES = (
    "metric_edits", "metric_human_agreement", "metric_coherence", "language_model_quantization",
)  # fmt: skip
STRENGTH_NAMES = ("", "one place", "half", "all")
SHUFFLE_TARGET, AGREEMENT_TARGET, CONTROL_TARGET = 0.85, 0.30, 0.95
REPETITIONS = ("one sentence twice", "each sentence twice", "whole text twice")
PACKAGES = ("rouge-score", "sacrebleu", "nltk", "torch", "transformers")


def write_report(results_dir: Path) -> Path:
    """Typeset `results_dir/report_1.pdf` from records/text_metrics.json and the figures. Raises
    UserError when the record is missing or damaged.
    """
    data = report_data(load_record(results_dir / "records" / "text_metrics.json"))
    images = {name: results_dir / f"{name}.pdf" for name in IMAGES}
    output = results_dir / "report_1.pdf"
    compile_report("report_1.typ", data, images, output)
    return output


def report_data(record: dict) -> dict:
    """All values of the report; a part that the record lacks is None."""
    builders = (_scores, _edits, _humans, _coherence, _quantization)
    parts, findings = {}, []
    for build in builders:
        name = build.__name__[1:]
        parts[name] = build(record[name]) if name in record else None
        findings += (parts[name] or {}).pop("findings", [])
    preset = record["settings"]["preset"]
    return {"facts": _facts(record), "findings": findings, "preset": preset, **parts}


def _facts(record: dict) -> list[tuple[str, str]]:
    made, data = record["provenance"], record["data"]
    commit = (made["git_commit"] or "unknown")[:10]
    commit += " with local changes" if made["git_dirty"] else ""
    packages = made["packages"]
    versions = [f"{name} {packages[name]}" for name in PACKAGES if packages.get(name)]
    return [
        ("Language model", record["models"]["language_model"]),
        ("Embeddings", record["models"]["encoder"].split("|")[0]),
        ("News texts", f"{data['name']}, {data['split']}, {data['n']:,} texts"),
        ("Device", made["device"]),
        ("Code", f"commit {commit}, {made['time_utc']}"),
        ("Packages", ", ".join(versions)),
    ]


def _rows(table: pd.DataFrame, key: str, values: str) -> list[dict]:
    numbers = table.to_numpy(float).tolist()
    return [{key: name, values: row} for name, row in zip(table.index, numbers, strict=True)]


def _scores(section: dict) -> dict:
    names = [row["metric"] for row in section["corpus"]]
    by_kind = pd.DataFrame(section["texts"]).groupby("kind", sort=False)[names].mean()
    rouge = by_kind["ROUGE-1"].to_dict()
    wrong = np.mean([rouge[kind] for kind in ("negated", "wrong number", "roles swapped")])
    finding = (
        f"On the built-in stories ROUGE-1 gives a faithful paraphrase {rouge['paraphrase']:.2f}, "
        f"and {wrong:.2f} to texts that say the opposite, give another number or reverse who did "
        "it."
    )
    return {
        "head": names,
        "rows": _rows(by_kind, "kind", "values"),
        "signatures": section["corpus"],
        "baseline": section["bertscore_baseline"]["f1"],
        "findings": [finding],
    }


def _edits(section: dict) -> dict:
    table = pd.DataFrame(section["table"])
    ranking = sorted(section["ranking"], key=lambda row: -row["kept_above_broken"])
    best, worst = ranking[0], ranking[-1]
    high, low = (_percent(row["kept_above_broken"]) for row in (best, worst))
    findings = [
        "Edits that keep the meaning should score above edits that break it (chance: 50% of "
        f"pairs). The best, {best['metric']}, manages {high}, {worst['metric']} {low}."
    ]
    negation = table.query("edit == 'negation' and strength == strength.max()")
    if len(negation):
        fall, metric = max(zip(negation["mean_fall"], negation["metric"], strict=True))
        findings.append(
            "Denying statements with “not”, at the greatest strength tried, lowers no metric by "
            f"more than {max(fall, 0):.2f} of its standard deviations ({metric})."
        )
    dose = table.query("metric == 'BERTScore'").pivot_table(
        "mean_fall", "edit", "strength", sort=False
    )
    strengths = sorted(table["strength"].unique())
    versions = [(edit, edited(edit, EDIT_STORY, OTHER_STORY, 1) or "") for edit in EDITS]
    return {
        "source": section["source"],
        "n_low": table["n"].min(),
        "n_high": table["n"].max(),
        "n_edits": table["edit"].nunique(),
        "ranking": ranking,
        "strengths": [STRENGTH_NAMES[strength] for strength in strengths],
        "dose": _rows(dose[strengths], "edit", "falls"),
        "story": EDIT_STORY,
        "edited": [
            {"edit": edit.name, "effect": edit.effect, "runs": _runs(EDIT_STORY, text)}
            for edit, text in versions
        ],
        "findings": findings,
    }


def _runs(before: str, after: str) -> list[tuple[str, bool]]:
    """Runs of words of `after`, each with whether it differs from `before`."""
    old, new = before.split(), after.split()
    matches = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(" ".join(new[i:j]), what != "equal") for what, _, _, i, j in matches if j > i]


def _humans(section: dict) -> dict:
    table, stsb = pd.DataFrame(section["summeval"]), section["stsb"]
    whole = table[~table["metric"].str.startswith("SCS ")]
    system = whole.query("level == 'system' and statistic == 'kendall'")
    by_quality = system.pivot_table("value", "metric", "quality", sort=False)
    spearman = whole.query("level == 'summary' and statistic == 'spearman'")
    of_coherence = table.query("level == 'summary' and quality == 'coherence'")
    agreement = of_coherence.pivot(index="metric", columns="statistic", values="value")
    agreement = agreement.rename(columns={"spearman without length": "partial"})
    return {
        "rows": [
            {"metric": name, "values": cells.to_dict("records")}
            for name, cells in spearman.groupby("metric", sort=False)
        ],
        "system": _rows(by_quality, "metric", "values"),
        "differences": section["coherence_differences"],
        "stsb": stsb,
        "compared": _beside_published(spearman),
        "qualities": QUALITIES,
        "undefined": section["undefined_scs"],
        "coherence": agreement.to_dict("index"),
        "findings": _human_findings(section, spearman),
    }


def _human_findings(section: dict, spearman: pd.DataFrame) -> list[str]:
    scs = spearman.query("metric == 'SCS' and quality == 'coherence'").iloc[0]
    cosine = next(row for row in section["stsb"] if row["metric"] == "MiniLM cosine")
    rivals = [row for row in section["coherence_differences"] if row["statistic"] == "spearman"]
    ahead = [row["rival"] for row in rivals if (row["low"] or 0) > 0]
    others = [row["rival"] for row in rivals if row["rival"] not in ahead]
    lead = "It is ahead of no rival."
    if ahead:
        lead = f"It is ahead, by an interval above 0, of {', '.join(ahead)}."
    if others:
        lead += f" The interval of the difference does not exclude 0 for {', '.join(others)}."
    return [
        f"SCS agrees with people on coherence by a summary-level Spearman of {scs['value']:.3f} "
        f"[{scs['low']:.3f}, {scs['high']:.3f}] with neither reference nor source; "
        f"this {_verdict(scs['value'], AGREEMENT_TARGET)} the target of {AGREEMENT_TARGET:.2f}.",
        lead,
        f"MiniLM's cosine reaches Spearman {cosine['spearman']:.4f} on the STS Benchmark test "
        "(published: 0.8203).",
    ]


def _beside_published(spearman: pd.DataFrame) -> list[dict]:
    """Metric and quality: ours on eleven references and on one, and published."""
    rows = spearman[spearman["published"].notna()]
    rows = rows.assign(**rows["metric"].str.extract(r"(?P<metric>.+), (?P<n>one|eleven)"))
    values = rows.pivot_table("value", ["metric", "quality", "published"], "n", sort=False)
    return values.reset_index().to_dict("records")


def _coherence(section: dict) -> dict:
    won = {(row["metric"], row["control"]): row["prefers_original"] for row in section["table"]}
    shuffle = [row for row in section["table"] if row["control"] == "shuffle"]
    of = {row["metric"]: row for row in shuffle}
    scs, few = of["SCS"], of["perplexity"]
    worst = min(won["SCS", control] for control in ("topic switch", *REPETITIONS))
    reached = _verdict(scs["prefers_original"], SHUFFLE_TARGET)
    shuffled, low, high = (_percent(scs[key], 1) for key in ("prefers_original", "low", "high"))
    neighbours = _percent(won["adjacent cosine", "shuffle"], 1)
    surprise = _percent(few["prefers_original"], 1)
    findings = [
        f"Shuffle test ({section['source']}, {scs['versions']} permutations each): SCS prefers the "
        f"original to {shuffled} of permutations [{low}, {high}], which {reached} the target of "
        f"{_percent(SHUFFLE_TARGET)}; the cosine of neighbours to {neighbours}, perplexity (read "
        f"on {few['texts']} texts × {few['versions']}) to {surprise}.",
        "SCS prefers the original to every repetition and topic-switch control in at least "
        f"{_percent(worst)} of texts, which {_verdict(worst, CONTROL_TARGET)} the target of "
        f"{_percent(CONTROL_TARGET)}.",
    ]
    return {
        "source": section["source"],
        "texts": max(row["texts"] for row in section["table"]),
        "shuffle": shuffle,
        "findings": findings,
    }


def _quantization(section: dict) -> dict:
    quantized = [row for row in section["table"] if row["scheme"] != BASELINE.key]
    least, *_, most = sorted(quantized, key=lambda row: row["kl_mean"])
    low, high = (f"{row['kl_mean']:.2g}" for row in (least, most))
    finding = (
        f"For the language model quantization costs between {low} nats per token "
        f"({least['label']}) and {high} ({most['label']}), whose first choice differs at "
        f"{_percent(1 - most['top1_agreement'])} of positions."
    )
    return {
        "rows": section["table"],
        "missing": section["missing"],
        "tokens": max(row["tokens"] for row in section["table"]),
        "findings": [finding],
    }


def _verdict(value: float, target: float) -> str:
    return "reaches" if value >= target else "misses"


def _percent(fraction: float, digits: int = 0) -> str:
    return f"{100 * fraction:.{digits}f}%"
