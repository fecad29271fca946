"""What `report_1.typ` shows: the record of script 4 as plain values, and its findings: sentences of
metrics_report.toml, chosen by this run's numbers. The template holds the rest.
"""

from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd

from ..cli import generated, read_toml
from ..compare.experiment import short
from ..metrics.studies.edits import EDITS, Edit, edited
from ..metrics.studies.examples import EDIT_STORY, OTHER_STORY
from ..metrics.studies.human_judgements import QUALITIES
from ..metrics.studies.human_study import LENGTH, SOURCE
from ..models.variants import BASELINE, LIBRARY_NF4, NF4, VARIANTS
from ..records import load_record
from . import compile_report, fill

IMAGES = (
    "metric_edits", "metric_human_agreement", "metric_coherence", "metric_held_out",
    "language_model_quantization",
)  # fmt: skip
WRONG = ("negated", "wrong number", "roles swapped")
STRENGTH_NAMES = ("", "one place", "half", "all")
SHUFFLE_TARGET, AGREEMENT_TARGET, CONTROL_TARGET = 0.85, 0.30, 0.95
REPETITIONS = ("one sentence twice", "each sentence twice", "whole text twice")
SENTENCES = read_toml(__file__)
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
    """All values of the report; a part that the record lacks is None. A finding is (whether it came
    out as hoped, sentence): those that did not stand first.
    """
    builders = (_scores, _edits, _humans, _coherence, _held_out, _quantization)
    parts, findings = {}, []
    for build in builders:
        name = build.__name__[1:]
        parts[name] = build(record[name]) if name in record else None
        findings += (parts[name] or {}).pop("findings", [])
    findings.sort(key=lambda finding: finding[0])
    return {
        "facts": _facts(record),
        "findings": [sentence for _, sentence in findings],
        "preset": record["settings"]["preset"],
        "demo": generated(record["settings"])["base_model"],
        "model": record["models"],
        **parts,
    }


def _facts(record: dict) -> list[tuple[str, str]]:
    made, data = record["provenance"], record["data"]
    news = f"{short(data['name'])}, {data['split']}, {data['n']:,} texts" if data else "none read"
    commit = (made["git_commit"] or "unknown")[:10]
    commit += " with local changes" if made["git_dirty"] else ""
    packages = made["packages"]
    versions = [f"{name} {packages[name]}" for name in PACKAGES if packages.get(name)]
    return [
        ("Embeddings", record["models"]["encoder"].split("|")[0]),
        ("News texts", news),
        ("Device", made["device"]),
        ("Code", f"commit {commit}, {made['time_utc']}"),
        ("Packages", ", ".join(versions)),
    ]


def _rows(table: pd.DataFrame) -> list[dict]:
    return [{"name": name, "values": row.tolist()} for name, row in table.astype(float).iterrows()]


def _scores(section: dict) -> dict:
    names = [row["metric"] for row in section["corpus"]]
    by_kind = pd.DataFrame(section["texts"]).groupby("kind", sort=False)[names].mean()
    signed = by_kind * [-1 if name == "Perplexity" else 1 for name in names]
    kept, wrong = signed.loc["paraphrase"], signed.loc[list(WRONG)]
    fooled = [name for name in names if (wrong[name] > kept[name]).all()]
    finding = _said("scores", kept=kept["ROUGE-1"], wrong=wrong["ROUGE-1"].mean())
    return {
        "head": names,
        "rows": _rows(by_kind),
        "signatures": section["corpus"],
        "fooled": fooled,
        "baseline": section["bertscore_baseline"]["f1"],
        "findings": [("ROUGE-1" not in fooled, finding)],
    }


def _edits(section: dict) -> dict:
    table = pd.DataFrame(section["table"])
    ranking = sorted(section["ranking"], key=lambda row: -row["kept_above_broken"])
    best, worst = ranking[0], ranking[-1]
    findings = [(worst["high"] >= 0.5, _said("ranking", best=best, worst=worst))]
    negation = table.query("edit == 'negation' and strength == strength.max()")
    if len(negation):
        fall, metric = max(zip(negation["mean_fall"], negation["metric"], strict=True))
        findings.append((fall > 1, _said("negation", fall=max(fall, 0), metric=metric)))
    of_bertscore = table[table["metric"] == "BERTScore"]
    dose = of_bertscore.pivot_table("mean_fall", "edit", "strength", sort=False).sort_index(axis=1)
    return {
        "source": section["source"],
        "n_low": table["n"].min(),
        "n_high": table["n"].max(),
        "n_edits": table["edit"].nunique(),
        "ranking": ranking,
        "strengths": [STRENGTH_NAMES[int(strength)] for strength in dose.columns],
        "dose": _rows(dose),
        "story": EDIT_STORY,
        "edited": [
            {"edit": edit.name, "effect": edit.effect, "runs": _runs(edit)} for edit in EDITS
        ],
        "findings": findings,
    }


def _runs(edit: Edit) -> list[tuple[str, bool]]:
    """Runs of words of the edited story, each with whether it is new."""
    old = EDIT_STORY.split()
    new = (edited(edit, EDIT_STORY, OTHER_STORY, 1) or "").split()
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
    agreement["n"] = of_coherence.groupby("metric")["n"].max()
    return {
        "rows": [
            {"name": name, "values": cells.to_dict("records")}
            for name, cells in spearman.groupby("metric", sort=False)
        ],
        "system": _rows(by_quality),
        "systems": int(system["n"].max()),
        "source": SOURCE,
        "differences": section["coherence_differences"],
        "stsb": stsb,
        "compared": _beside_published(spearman),
        "qualities": QUALITIES,
        "undefined": section["undefined_scs"],
        "coherence": agreement.to_dict("index"),
        "findings": _human_findings(section, spearman),
    }


def _human_findings(section: dict, spearman: pd.DataFrame) -> list[tuple[bool, str]]:
    scs: dict = spearman.query("metric == 'SCS' and quality == 'coherence'").iloc[0].to_dict()
    cosine = next(row for row in section["stsb"] if row["metric"] == "MiniLM cosine")
    rivals: dict[str, list[str]] = {"open": [], "behind": [], "ahead": []}
    for row in section["coherence_differences"]:
        if row["statistic"] == "spearman":
            shown, ahead = row["p_holm"] < 0.05, row["value"] > 0
            outcome = ("ahead" if ahead else "behind") if shown else "open"
            rivals[outcome].append(_rival(row))
    findings = [
        (outcome == "ahead", _said(outcome, rivals="; ".join(names)))
        for outcome, names in rivals.items()
        if names
    ]
    reached = _verdict(scs["value"], AGREEMENT_TARGET)
    findings.append((reached["hoped"], _said("agreement", **scs, **reached)))
    return [*findings, (True, _said("stsb", **cosine))]


def _rival(row: dict) -> str:
    name = "counting sentences" if row["rival"] == LENGTH else row["rival"]
    if row.get("strongest"):
        name = _said("strongest", name=name)
    return _said("rival", name=name, **row)


def _beside_published(spearman: pd.DataFrame) -> list[dict]:
    """Metric and quality: ours on eleven references and on one, and published."""
    rows = spearman[spearman["published"].notna()]
    rows = rows.assign(**rows["metric"].str.extract(r"(?P<metric>.+), (?P<n>one|eleven)"))
    values = rows.pivot_table("value", ["metric", "quality", "published"], "n", sort=False)
    return values.reset_index().to_dict("records")


def _coherence(section: dict) -> dict:
    seen = section["source"].startswith("SummEval")
    return _controls(section, "seen" if seen else "short") | {"seen": seen}


def _held_out(section: dict) -> dict:
    return _controls(section, "held_out")


def _controls(section: dict, standing: str) -> dict:
    # Nine digits, as in tables: a mean of 0.85 may be held as a little less.
    table = [
        {**row, "prefers_original": round(row["prefers_original"], 9)} for row in section["table"]
    ]
    source = section["source"]
    won = {(row["metric"], row["control"]): row["prefers_original"] for row in table}
    shuffle = [row for row in table if row["control"] == "shuffle"]
    of = {row["metric"]: row for row in shuffle}
    worst = min(won["SCS", control] for control in ("topic switch", *REPETITIONS))
    shuffled = {
        **of["SCS"],
        **_verdict(won["SCS", "shuffle"], SHUFFLE_TARGET),
        "standing": SENTENCES["standing"][standing],
        "cosine": won["adjacent cosine", "shuffle"],
        "few": of["perplexity"],
    }
    controls = _verdict(worst, CONTROL_TARGET)
    return {
        "source": source,
        "repeated": [won["perplexity", control] for control in REPETITIONS],
        "texts": max(row["texts"] for row in table),
        "shuffle": shuffle,
        "findings": [
            (shuffled["hoped"], _said("shuffle", source=source, **shuffled)),
            (controls["hoped"], _said("controls", source=source, worst=worst, **controls)),
        ],
    }


def _quantization(section: dict) -> dict:
    rows = {row["scheme"]: row for row in section["table"]}
    # Float16 is no quantization.
    cast = [row for key, row in rows.items() if not VARIANTS[key].method and key != BASELINE.key]
    quantized = [row for key, row in rows.items() if VARIANTS[key].method]
    quantized.sort(key=lambda row: row["kl_mean"])
    findings = []
    if len(quantized) > 1:
        least, most = quantized[0], quantized[-1]
        differs = 1 - most["top1_agreement"]
        findings = [(True, _said("quantization", least=least, most=most, differs=differs))]
    same = [row["label"] for row in cast if (row["kl_mean"], row["top1_agreement"]) == (0, 1)]
    return {
        "rows": section["table"],
        "missing": section["missing"],
        "same": same,
        "tokens": max(row["tokens"] for row in section["table"]),
        "nf4": [rows[key] for key in (NF4.key, LIBRARY_NF4.key) if key in rows],
        "findings": findings,
    }


def _said(which: str, /, **values) -> str:
    return fill(SENTENCES[which], **values)


def _verdict(value: float, target: float) -> dict:
    hoped = value >= target
    return {"target": target, "hoped": hoped, "verdict": "reaches" if hoped else "misses"}
