"""What `report_2.typ` shows: the comparison as plain values. Sentences that depend on this run's
numbers are decided here and in `findings.py`; the template holds the rest.
"""

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from ..cli import generated
from ..compare.claims import claims_scope, published_claims
from ..compare.comparison import Comparison, Row
from ..compare.experiment import claims_apply, departures, short, short_paths
from ..compare.tables import facts, footnotes, printed_table
from ..errors import UserError
from . import compile_report
from .findings import answer, choices, findings

MOST_COLUMNS = 8  # of a table with a column per class
CHECKS = "best_check", "batch_invariance"  # the best mode against eager, batch 1 against 16


def write_report(
    comparison: Comparison, changed: pd.DataFrame, drawn: dict[str, Path], results_dir: Path
) -> Path:
    """Typeset `results_dir/report_2.pdf` with the figures `drawn` and those of scripts 1 and 2."""
    earlier = ("training_curve", "quantization_error_heatmap")
    images = drawn | {name: results_dir / f"{name}.pdf" for name in earlier}
    data = report_data(comparison, changed, results_dir)
    compile_report("report_2.typ", data, images, results_dir / "report_2.pdf")
    return results_dir / "report_2.pdf"


def report_data(comparison: Comparison, changed: pd.DataFrame, results_dir: Path) -> dict:
    """All values of the report as JSON-able data; `changed` is of `changed_texts.most_changed`, the
    error analysis of script 2's tables in `results_dir`.
    """
    # McNemar's figures stand in the paired section; here they would not fit the page.
    rows, printed = comparison.rows, printed_table(comparison).drop(columns="McNemar")
    missing = [f"{gap.sentence}." for gap in comparison.missing]
    claims = published_claims(comparison) if claims_apply(comparison) else []
    return {
        "baseline": comparison.baseline.label,
        "margin": comparison.margin_points,
        "demo": bool(comparison.record) and all(generated(comparison.record["settings"]).values()),
        "departures": departures(comparison),
        "n": len(comparison.labels),
        "outside": [row.label for row in rows if not row.record],
        "classes": comparison.classes if len(comparison.classes) <= MOST_COLUMNS else [],
        "facts": [
            ("Rows compared", f"{len(rows)}, on the same {len(comparison.labels):,} test texts"),
            *facts(comparison),
        ],
        "experiment": comparison.record or None,
        "dataset": short(comparison.record["data"]["name"]) if comparison.record else None,
        "table": {"head": list(printed), "rows": printed.values.tolist()},
        "notes": [
            note
            for note in footnotes(comparison)
            if note not in missing and not note.startswith("McNemar")
        ],
        "missing": missing,
        "findings": findings(comparison),
        "scores": [_scores(row) for row in rows],
        "paired": [{"label": row.label, **row.against} for row in comparison.others],
        "read_back": _read_back(comparison),
        "sizes": [{"label": row.label, **row.size} for row in rows if row.size],
        "latency": [{"label": row.label, **row.latency} for row in rows if row.latency],
        "sweep": _sweep(comparison.sweep()),
        "errors": _errors(results_dir),
        "claims": [asdict(claim) for claim in claims],
        "claims_scope": claims_scope(comparison),
        "choices": choices(comparison),
        "answer": answer(comparison),
        "checks": [
            {"label": row.label, **{name: row.record.get(name) for name in CHECKS}}
            for row in rows
            if any(map(row.record.get, CHECKS))
        ],
        "changed": changed.to_dict("records"),
        "provenance": [_provenance(row) for row in rows if row.record],
    }


def _scores(row: Row) -> dict:
    after = {"temperature": row.temperature, "ece_after": row.ece_after_temperature}
    return {"label": row.label, **after, **row.metrics}


def _read_back(comparison: Comparison) -> list[str]:
    """Rows that store less than the baseline, but hold no less once loaded."""
    smaller = [row for row in comparison.others if (row.size.get("compression") or 0) > 1]
    whole = comparison.baseline.size.get("resident_bytes")
    return [row.label for row in smaller if row.size["resident_bytes"] >= whole]


def _sweep(times: pd.DataFrame) -> dict:
    """Median ms by row, mode and shape (tokens, texts)."""
    shape, row = ["seq_len", "batch_size"], ["label", "key", "mode"]
    table = times.pivot_table("median_ms", row, shape, aggfunc="last", sort=False)
    table = table.sort_index(axis=1)
    found = zip(table.index, table.to_numpy().tolist(), strict=True)
    rows = [{"label": label, "mode": mode, "values": ms} for (label, _, mode), ms in found]
    return {"shapes": list(table.columns), "rows": rows}


def _errors(results_dir: Path) -> dict | None:
    """Script 2's error analysis, condensed: None when it has not run.

    weights: mean SQNR over layers, scheme by matrix; outliers: the five worst activation channels;
    effects: KL by scheme and part; choices: as the file has them.
    """
    paths = [results_dir / f"{name}.csv" for name in _NUMBERS]
    if not all(path.exists() for path in paths):
        return None
    weights, outliers, effects, refinements = map(_table, paths)
    sqnr = weights.pivot_table(index="scheme", columns="matrix", values="sqnr_db", sort=False)
    matrices = list(sqnr)
    sqnr.insert(0, "bits", weights.groupby("scheme")["bits_per_weight"].mean())
    kl = effects.pivot_table(index="part", columns="scheme", values="kl_nats", sort=False)
    worst = outliers.nlargest(5, "outlier_ratio")
    spread = weights.nlargest(1, "absmax_over_sigma").iloc[0]
    layer = "" if pd.isna(spread["layer"]) else f" of layer {spread['layer']:.0f}"
    kl_rows = kl.reset_index().values.tolist()
    least = refinements.loc[refinements.groupby("scheme", sort=False)["kl_nats"].idxmin()]
    by_rule = least[least["taken"].astype(bool)]["scheme"].tolist()
    return {
        "weights": {"matrices": matrices, "rows": sqnr.reset_index().values.tolist()},
        "spread": f"{spread['matrix']}{layer}: its largest weight is "
        f"{spread['absmax_over_sigma']:.0f} standard deviations out",
        "outliers": worst[["layer", "matrix", "top_channel", "outlier_ratio"]].values.tolist(),
        "effects": {"schemes": list(kl), "rows": kl_rows, "n": int(effects["n"].iloc[0])},
        "choices": refinements.to_dict("records"),
        "by_rule": by_rule,
        "against_rule": [scheme for scheme in least["scheme"] if scheme not in by_rule],
    }


# What the report reads of script 2's tables, beside names.
_NUMBERS = {
    "quantization_error": ("sqnr_db", "bits_per_weight", "absmax_over_sigma"),
    "activation_outliers": ("outlier_ratio", "top_channel", "layer"),
    "quantization_effect": ("kl_nats", "n"),
    "quantization_choices": ("accuracy", "agreement", "kl_nats"),
}


def _table(path: Path) -> pd.DataFrame:
    """One of script 2's tables. Raises UserError where it is damaged."""
    try:
        table = pd.read_csv(path)
        whole = table[[*_NUMBERS[path.stem]]].astype(float).notna().to_numpy()
        if not (len(table) and whole.all()):
            raise ValueError("a number is missing")
    except (OSError, ValueError, KeyError) as fault:
        mend = "run python src/2_quantization_scratch.py --overwrite"
        raise UserError(f"{path} is damaged ({str(fault).splitlines()[0]:.60}): {mend}") from fault
    return table


def _provenance(row: Row) -> dict:
    made = row.record["provenance"]
    return {
        "label": row.label,
        "key": row.key,
        **made,
        "commit": (made.get("git_commit") or "")[:12],
        "source": made["source_sha256"][:12],
        "command": short_paths(made["command"]),
        "notes": row.record.get("notes") or [],
    }
