"""What `report_2.typ` shows: the comparison as plain values, and the sentences that depend on them.

The template holds the words that are true of any run. Whatever depends on this run's numbers is
decided here and in `findings.py`, from the same rows as the tables, so that no sentence can outlive
the result it was written about.
"""

from pathlib import Path

import pandas as pd

from ..compare.claims import claims_scope, published_claims
from ..compare.comparison import Comparison, Row
from ..compare.tables import footnotes, printed_cells
from ..data.labels import LABELS
from ..models.variants import BASELINE
from .findings import choices, findings


def report_data(comparison: Comparison, changed: list[dict], results_dir: Path) -> dict:
    """All values of the report as JSON-able data.

    `changed` are rows of `changed_texts.most_changed`; the error analysis is read from the tables
    that script 2 left in `results_dir`.
    """
    rows = comparison.present
    printed = [printed_cells(row, comparison.baseline) for row in comparison.rows]
    missing = [f"{row.missing}." for row in comparison.rows if row.missing]
    return {
        "baseline": comparison.row(comparison.baseline).label,
        "n": len(comparison.labels),
        "outside": [row.label for row in rows if not row.source.record],
        "classes": list(LABELS) if rows[0].source.logits.shape[1] == len(LABELS) else [],
        "facts": _facts(comparison),
        "experiment": _experiment(comparison),
        "table": {"head": list(printed[0]), "rows": [list(cells.values()) for cells in printed]},
        "notes": [note for note in footnotes(comparison) if note not in missing],
        "missing": missing,
        "findings": findings(comparison),
        "scores": [{"label": row.label, **row.metrics} for row in rows],
        "paired": [{"label": row.label, **row.against} for row in rows if row.against],
        "calibration": [
            {
                "label": row.label,
                "temperature": row.temperature,
                "ece_after": row.ece_after_temperature,
                **row.metrics,
            }
            for row in rows
        ],
        "sizes": [{"label": row.label, **row.size} for row in rows if row.size],
        "latency": [_latency(row) for row in rows if row.latency],
        "sweep": _sweep(comparison),
        "errors": _errors(results_dir),
        "claims": published_claims(comparison) if comparison.row(BASELINE.key) else [],
        "claims_scope": claims_scope(comparison),
        "choices": choices(comparison),
        "changed": changed,
        "provenance": [_provenance(row) for row in rows if row.source.record],
    }


def _facts(comparison: Comparison) -> list[list[str]]:
    """The box under the title."""
    record = comparison.record
    facts = [
        [
            "Rows compared",
            f"{len(comparison.present)}, on the same {len(comparison.labels):,} test texts",
        ]
    ]
    if record:
        data, made = record["data"], record["provenance"]
        revision = f" at {data['revision'][:12]}" if data.get("revision") else ""
        weights = record["checkpoint"]["baseline_sha256"][:16]
        facts += [
            ["Test set", f"{data['name']}{revision}, sha256 {data['sha256'][:16]}"],
            ["Checkpoint", f"from {record['checkpoint']['base_model']}, weights sha256 {weights}"],
            ["Device", str(made.get("device"))],
            ["Preset", record["settings"]["preset"]],
        ]
    return facts


def _experiment(comparison: Comparison) -> dict | None:
    """What the records say of data, settings and training; None when no row has a record."""
    record = comparison.record
    if not record:
        return None
    made = record["provenance"]
    return {
        "settings": record["settings"],
        "data": record["data"],
        "splits": record.get("splits", {}),
        "training": record.get("training"),
        "environment": {
            "device": made.get("device"),
            "driver": made.get("driver"),
            "cuda": made.get("cuda"),
            "python": made.get("python"),
            "packages": {
                name: version for name, version in (made.get("packages") or {}).items() if version
            },
        },
    }


def _latency(row: Row) -> dict:
    return {"label": row.label, **row.latency}


def _sweep(comparison: Comparison) -> dict | None:
    """Median ms of every row at every shape, eager and best: {shapes, rows: [{label, mode,
    values}]}.
    """
    rows = [row for row in comparison.present if row.latency and row.latency["same_session"]]
    shapes = sorted(
        {(e["seq_len"], e["batch_size"]) for row in rows for e in row.source.record["latency"]}
    )
    if len(shapes) < 2:
        return None
    lines = []
    for row in rows:
        for mode in ("eager", "best"):
            found = {
                (e["seq_len"], e["batch_size"]): e["median_ms"]
                for e in row.source.record["latency"]
                if e["mode"] == mode
            }
            if found:
                lines.append(
                    {
                        "label": row.label,
                        "mode": mode,
                        "values": [found.get(shape) for shape in shapes],
                    }
                )
    return {"shapes": [list(shape) for shape in shapes], "rows": lines}


def _errors(results_dir: Path) -> dict | None:
    """Script 2's error analysis, condensed: None when it has not run.

    weights: mean SQNR over layers, scheme by matrix; outliers: the five worst activation channels;
    effects: KL by scheme and part; choices: as the file has them.
    """
    names = (
        "quantization_error",
        "activation_outliers",
        "quantization_effect",
        "quantization_choices",
    )
    paths = [results_dir / f"{name}.csv" for name in names]
    if not all(path.is_file() for path in paths):
        return None
    weights, outliers, effects, refinements = (pd.read_csv(path) for path in paths)
    sqnr = weights.pivot_table(index="scheme", columns="matrix", values="sqnr_db", sort=False)
    bits = weights.groupby("scheme")["bits_per_weight"].mean()
    kl = effects.pivot_table(index="part", columns="scheme", values="kl_nats", sort=False)
    worst = outliers.nlargest(5, "outlier_ratio")
    spread = weights.drop_duplicates(["layer", "matrix"]).nlargest(1, "absmax_over_sigma").iloc[0]
    layer = "" if pd.isna(spread["layer"]) else f" of layer {int(spread['layer'])}"
    return {
        "weights": {
            "matrices": list(sqnr.columns),
            "rows": [
                [scheme, bits[scheme], *values]
                for scheme, values in zip(sqnr.index, sqnr.to_numpy(), strict=True)
            ],
        },
        "spread": f"{spread['matrix']}{layer}: its largest weight is {spread['absmax_over_sigma']:.0f} standard deviations out",
        "outliers": [
            [int(row["layer"]), row["matrix"], int(row["top_channel"]), row["outlier_ratio"]]
            for _, row in worst.iterrows()
        ],
        "effects": {
            "schemes": list(kl.columns),
            "rows": [[part, *values] for part, values in zip(kl.index, kl.to_numpy(), strict=True)],
            "n": int(effects["n"].iloc[0]),
        },
        "choices": refinements.to_dict("records"),
    }


def _provenance(row: Row) -> dict:
    made = row.source.record["provenance"]
    return {
        "label": row.label,
        "key": row.key,
        "commit": made["git_commit"][:12] + (" (changed)" if made.get("git_dirty") else "")
        if made.get("git_commit")
        else None,
        "source": (made.get("source_sha256") or "")[:12],
        "time": made.get("time_utc"),
        "command": made.get("command"),
        "seed": made.get("seed"),
        "device": made.get("device"),
        "packages": made.get("packages"),
        "notes": row.source.record.get("notes") or [],
    }
