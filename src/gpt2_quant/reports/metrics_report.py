"""What `report_1.typ` shows: the record of script 4 as plain values, and the sentences that depend
on them.

The template holds the words that are true of any run. Whatever depends on this run's numbers is
decided here, from the same rows as the tables, so that no sentence of the report can outlive the
result it was written about.
"""

from difflib import SequenceMatcher
from pathlib import Path

import pandas as pd

from ..metrics.studies.examples import EDIT_STORY, EDITED
from ..metrics.studies.human_judgements import QUALITIES
from ..models.variants import BASELINE
from ..records import load_record
from . import compile_report

IMAGES = (
    "metric_edits",
    "metric_human_agreement",
    "metric_coherence",
    "language_model_quantization",
)
STRENGTH_NAMES = {1: "one place", 2: "half", 3: "all"}
SHUFFLE_TARGET, AGREEMENT_TARGET, CONTROL_TARGET = 0.85, 0.30, 0.95


def write_report(results_dir: Path) -> Path:
    """Typeset `results_dir/report_1.pdf` from records/text_metrics.json and the figures beside it;
    returns its path.

    Raises UserError when the record is missing or damaged. A part that was not run is a sentence in
    the report.
    """
    data = report_data(load_record(results_dir / "records" / "text_metrics.json"))
    output = results_dir / "report_1.pdf"
    compile_report(
        "report_1.typ", data, {name: results_dir / f"{name}.pdf" for name in IMAGES}, output
    )
    return output


def report_data(record: dict) -> dict:
    """All values of the report as JSON-able data; a part that the record lacks is None."""
    builders = {
        "scores": _scores,
        "edits": _edits,
        "humans": _humans,
        "coherence": _coherence,
        "quantization": _quantization,
    }
    parts = {
        name: build(record[name]) if name in record else None for name, build in builders.items()
    }
    findings = [sentence for part in parts.values() if part for sentence in part.pop("findings")]
    return {
        "facts": _facts(record),
        "findings": findings,
        "preset": record["settings"]["preset"],
        **parts,
    }


def _facts(record: dict) -> list[tuple[str, str]]:
    made = record["provenance"]
    commit = (made["git_commit"] or "unknown")[:10] + (
        " with local changes" if made["git_dirty"] else ""
    )
    packages = made["packages"]
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("rouge-score", "sacrebleu", "nltk", "torch", "transformers")
        if packages.get(name)
    )
    return [
        ("Language model", record["models"]["language_model"]),
        ("Embeddings", record["models"]["encoder"].split("|")[0]),
        (
            "News texts",
            f"{record['data']['name']}, {record['data']['split']}, {record['data']['n']:,} texts",
        ),
        ("Device", made["device"]),
        ("Code", f"commit {commit}, {made['time_utc']}"),
        ("Packages", versions),
    ]


def _scores(section: dict) -> dict:
    table = pd.DataFrame(section["texts"])
    names = [row["metric"] for row in section["corpus"]]
    by_kind = table.groupby("kind", sort=False)[names].mean()
    meaning = by_kind.loc[["negated", "wrong number", "roles swapped"], "ROUGE-1"].mean()
    paraphrase = by_kind.loc["paraphrase", "ROUGE-1"]
    findings = [
        f"On the built-in stories ROUGE-1 gives a faithful paraphrase {paraphrase:.2f}, and {meaning:.2f} to texts that say the "
        "opposite, give another number or reverse who did it."
    ]
    return {
        "head": names,
        "rows": [
            {"kind": kind, "values": [_number(value) for value in row]}
            for kind, row in by_kind.iterrows()
        ],
        "signatures": [
            {"metric": row["metric"], "signature": row["signature"]} for row in section["corpus"]
        ],
        "baseline": section["bertscore_baseline"]["f1"],
        "findings": findings,
    }


def _edits(section: dict) -> dict:
    table, ranking = pd.DataFrame(section["table"]), pd.DataFrame(section["ranking"])
    worst, best = (
        ranking.loc[ranking["kept_above_broken"].idxmin()],
        ranking.loc[ranking["kept_above_broken"].idxmax()],
    )
    findings = [
        f"Edits that keep the meaning should score above edits that break it (chance: 50% of pairs). The best, {best['metric']}, "
        f"manages {_percent(best['kept_above_broken'])}, {worst['metric']} {_percent(worst['kept_above_broken'])}."
    ]
    negation = table[(table["edit"] == "negation") & (table["strength"] == table["strength"].max())]
    if len(negation):
        row = negation.loc[negation["mean_fall"].idxmax()]
        findings.append(
            "Denying statements with “not”, at the greatest strength tried, lowers no metric by more than "
            f"{max(row['mean_fall'], 0):.2f} of its standard deviations ({row['metric']})."
        )
    dose = table[table["metric"] == "BERTScore"].pivot_table(
        index="edit", columns="strength", values="mean_fall", sort=False
    )
    return {
        "source": section["source"],
        "n_low": int(table["n"].min()),
        "n_high": int(table["n"].max()),
        "n_edits": int(table["edit"].nunique()),
        "ranking": ranking.sort_values("kept_above_broken", ascending=False).to_dict("records"),
        "strengths": [STRENGTH_NAMES[level] for level in sorted(dose)],
        "dose": [
            {"edit": edit, "falls": [_number(fall) for fall in row[sorted(dose)]]}
            for edit, row in dose.iterrows()
        ],
        "story": EDIT_STORY,
        "edited": [
            {"edit": edit, "effect": effect, "runs": _runs(EDIT_STORY, text)}
            for edit, effect, text in EDITED
        ],
        "findings": findings,
    }


def _runs(before: str, after: str) -> list[tuple[str, bool]]:
    """`after` as runs of words, each with whether it stands in `before` otherwise or not at all."""
    old, new = before.split(), after.split()
    matches = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return [(" ".join(new[i:j]), what != "equal") for what, _, _, i, j in matches if j > i]


def _humans(section: dict) -> dict:
    table, stsb = pd.DataFrame(section["summeval"]), pd.DataFrame(section["stsb"])
    differences = pd.DataFrame(section["coherence_differences"])
    spearman = table[(table["level"] == "summary") & (table["statistic"] == "spearman")]
    shown = spearman[~spearman["metric"].str.startswith("SCS ")]
    rows = []
    for name, group in shown.groupby("metric", sort=False):
        cells = group.set_index("quality").loc[list(QUALITIES)]
        rows.append(
            {
                "metric": name,
                "values": cells[["value", "low", "high"]].map(_number).to_dict("records"),
            }
        )
    scs = spearman[(spearman["metric"] == "SCS") & (spearman["quality"] == "coherence")].iloc[0]
    cosine = stsb[stsb["metric"] == "MiniLM cosine"].iloc[0]
    reached = "reaches" if scs["value"] >= AGREEMENT_TARGET else "misses"
    ahead = [
        row
        for row in section["coherence_differences"]
        if row["statistic"] == "spearman" and (row["low"] or 0) > 0
    ]
    findings = [
        f"SCS agrees with people on coherence by a summary-level Spearman of {scs['value']:.3f} "
        f"[{scs['low']:.3f}, {scs['high']:.3f}] with neither reference nor source; "
        f"this {reached} the target of {AGREEMENT_TARGET:.2f}.",
        (
            f"It is ahead, by an interval above 0, of {', '.join(row['rival'] for row in ahead)}."
            if ahead
            else "It is ahead of no rival."
        )
        + _not_ahead(section["coherence_differences"]),
        f"MiniLM's cosine reaches Spearman {cosine['spearman']:.4f} on the STS Benchmark test (published: 0.8203).",
    ]
    published = spearman[
        spearman["published"].notna() & spearman["metric"].str.endswith("eleven references")
    ]
    single = spearman.set_index(["metric", "quality"])["value"]
    compared = [
        {
            "metric": row["metric"].split(",")[0],
            "quality": row["quality"],
            "eleven": row["value"],
            "one": single.get(
                (row["metric"].replace("eleven references", "one reference"), row["quality"])
            ),
            "published": row["published"],
        }
        for row in published.to_dict("records")
    ]
    system = table[
        (table["level"] == "system")
        & (table["statistic"] == "kendall")
        & ~table["metric"].str.startswith("SCS ")
    ]
    return {
        "rows": rows,
        "system": [
            {
                "metric": name,
                "values": [
                    _number(value)
                    for value in group.set_index("quality").loc[list(QUALITIES), "value"]
                ],
            }
            for name, group in system.groupby("metric", sort=False)
        ],
        "differences": differences.to_dict("records"),
        "stsb": stsb.to_dict("records"),
        "compared": compared,
        "qualities": list(QUALITIES),
        "undefined": section["undefined_scs"],
        "coherence": _coherence_agreement(table),
        "findings": findings,
    }


def _not_ahead(rows: list[dict]) -> str:
    behind = [
        row["rival"] for row in rows if row["statistic"] == "spearman" and not (row["low"] or 0) > 0
    ]
    return (
        f" The interval of the difference does not exclude 0 for {', '.join(behind)}."
        if behind
        else ""
    )


def _coherence_agreement(table: pd.DataFrame) -> dict[str, dict]:
    """Metric -> Spearman with SummEval's coherence, with and without the number of sentences held
    constant.
    """
    rows = table[(table["quality"] == "coherence") & (table["level"] == "summary")]
    values = rows.pivot(index="metric", columns="statistic", values="value")
    return {
        name: {
            "spearman": _number(row["spearman"]),
            "partial": _number(row["spearman without length"]),
        }
        for name, row in values.iterrows()
    }


def _coherence(section: dict) -> dict:
    table = pd.DataFrame(section["table"])
    shares = table.set_index(["metric", "control"])["prefers_original"]
    shuffles = table[table["control"] == "shuffle"].set_index("metric")
    shuffle, few = shuffles.loc["SCS"], shuffles.loc["perplexity"]
    reached = "reaches" if shuffle["prefers_original"] >= SHUFFLE_TARGET else "misses"
    worst = min(
        shares["SCS", control]
        for control in (
            "topic switch",
            "one sentence twice",
            "each sentence twice",
            "whole text twice",
        )
    )
    findings = [
        f"Shuffle test ({section['source']}, {shuffle['versions']} permutations each): SCS prefers the original to "
        f"{_percent(shuffle['prefers_original'], 1)} of permutations [{_percent(shuffle['low'], 1)}, "
        f"{_percent(shuffle['high'], 1)}], which {reached} the target of {_percent(SHUFFLE_TARGET)}; the cosine of neighbours to "
        f"{_percent(shares['adjacent cosine', 'shuffle'], 1)}, perplexity (read on {few['texts']} "
        f"texts × {few['versions']}) to {_percent(few['prefers_original'], 1)}.",
        f"SCS prefers the original to every repetition and topic-switch control in at least {_percent(worst)} of texts, which "
        f"{'reaches' if worst >= CONTROL_TARGET else 'misses'} the target of {_percent(CONTROL_TARGET)}.",
    ]
    return {
        "source": section["source"],
        "texts": int(table["texts"].max()),
        "shuffle": [
            {
                key: row[key]
                for key in ("metric", "prefers_original", "low", "high", "texts", "versions")
            }
            for row in shuffles.reset_index().to_dict("records")
        ],
        "findings": findings,
    }


def _quantization(section: dict) -> dict:
    table = pd.DataFrame(section["table"])
    rows = table[table["scheme"] != BASELINE.key]
    least, most = rows.loc[rows["kl_mean"].idxmin()], rows.loc[rows["kl_mean"].idxmax()]
    findings = [
        f"For the language model quantization costs between {least['kl_mean']:.2g} nats a token ({least['label']}) and "
        f"{most['kl_mean']:.2g} ({most['label']}), whose first choice differs at {_percent(1 - most['top1_agreement'])} "
        "of positions."
    ]
    return {
        "rows": table.to_dict("records"),
        "missing": section["missing"],
        "tokens": int(table["tokens"].max()),
        "findings": findings,
    }


def _number(value) -> float | None:
    return None if value is None or value != value else float(value)


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}%"
