"""What `report_2.typ` shows: the comparison as plain values, and the sentences that depend on them.

The template holds the words that are true of any run. Whatever depends on this run's numbers is decided here, from the
same rows as the tables, so that no sentence of the report can outlive the result it was written about.
"""

from pathlib import Path

import pandas as pd

from ..claims import claims_scope, published_claims
from ..comparison import MIB, Comparison, Row
from ..data import LABELS
from ..tables import footnotes, printed_cells


def report_data(comparison: Comparison, changed: list[dict], texts_note: str, results_dir: Path) -> dict:
    """All values of the report as JSON-able data.

    `changed` are rows of `changed_texts.describe`; the error analysis is read from the tables that script 2 left in
    `results_dir`.
    """
    rows = comparison.present
    printed = [printed_cells(row, comparison.baseline) for row in comparison.rows]
    missing = [f"{row.missing}." for row in comparison.rows if row.missing]
    return {
        "baseline": comparison.row(comparison.baseline).label,
        "n": len(comparison.labels),
        "classes": list(LABELS) if rows[0].source.logits.shape[1] == len(LABELS) else [],
        "facts": _facts(comparison),
        "experiment": _experiment(comparison),
        "table": {"head": list(printed[0]), "rows": [list(cells.values()) for cells in printed]},
        "notes": [note for note in footnotes(comparison) if note not in missing],
        "missing": missing,
        "findings": _findings(comparison),
        "scores": [{"label": row.label, **row.metrics} for row in rows],
        "paired": [{"label": row.label, **row.against} for row in rows if row.against],
        "calibration": [
            {"label": row.label, "temperature": row.temperature, "ece_after": row.ece_after_temperature, **row.metrics}
            for row in rows
        ],
        "sizes": [{"label": row.label, **row.size} for row in rows if row.size],
        "latency": [_latency(row) for row in rows if row.latency],
        "sweep": _sweep(comparison),
        "errors": _errors(results_dir),
        "claims": published_claims(comparison) if comparison.row("baseline") else [],
        "claims_scope": claims_scope(comparison),
        "choices": _choices(comparison),
        "changed": changed,
        "texts_note": texts_note,
        "provenance": [_provenance(row) for row in rows if row.source.record],
    }


def _facts(comparison: Comparison) -> list[list[str]]:
    """The box under the title."""
    record = comparison.record
    facts = [["Rows compared", f"{len(comparison.present)}, on the same {len(comparison.labels):,} test texts"]]
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
            "packages": {name: version for name, version in (made.get("packages") or {}).items() if version},
        },
    }


def _findings(comparison: Comparison) -> list[str]:
    """The report's first page: what this run found, a sentence each."""
    rows = [row for row in comparison.present if row.against]
    baseline = comparison.row(comparison.baseline)
    accuracy = baseline.metrics["accuracy"]
    n = len(comparison.labels)
    sentences = [
        f"{baseline.label} reaches an accuracy of {accuracy['value']:.4f} (95% interval {accuracy['low']:.4f} to "
        f"{accuracy['high']:.4f}, n = {n:,})."
    ]
    same = [row for row in rows if row.against["tost_holm_p"] < 0.05]
    worse = [row for row in rows if row.against["mcnemar_holm_p"] < 0.05]
    if same:
        sentences.append(f"Equivalent to it within ±0.5 points of accuracy (two one-sided tests, Holm): {_names(same)}.")
    if worse:
        each = [f"{row.label} ({100 * row.against['difference']['accuracy']['value']:+.2f} points)" for row in worse]
        sentences.append(f"Different from it (exact McNemar, Holm): {', '.join(each)}.")
    open_rows = [row for row in rows if row not in same and row not in worse]
    if open_rows:
        sentences.append(f"Neither a difference nor equivalence is shown for {_names(open_rows)}: more test rows would be needed.")
    if rows:
        most = max(rows, key=lambda row: row.against["flips"])
        sentences.append(
            f"Accuracy hides changes that cancel: {most.label} changes {most.against['flips']:,} of {n:,} answers "
            f"({100 * (1 - most.against['agreement']):.2f}%), {most.against['only_variant_right']} for the better and "
            f"{most.against['only_baseline_right']} for the worse."
        )
    sized = [row for row in rows if row.size and row.size["compression"]]
    if sized:
        small = min(sized, key=lambda row: row.size["stored_bytes"])
        of_half = small.size["compression_fp16"]
        sentences.append(
            f"{small.label} stores least: {small.size['stored_bytes'] / MIB:.2f} MB, {small.size['compression']:.2f} times smaller "
            f"than {baseline.label}" + (f" and {of_half:.2f} times smaller than float16." if of_half else ".")
        )
    return sentences + _speed_findings(comparison)


def _speed_findings(comparison: Comparison) -> list[str]:
    """The fastest row of the baseline's session, and what is faster than float16 alone beyond both medians' intervals."""
    timed = [row for row in comparison.present if row.latency and row.latency["same_session"]]
    baseline, half = comparison.row(comparison.baseline), comparison.row("baseline_fp16")
    if len(timed) < 2:
        return []
    fast = min(timed, key=_fastest_ms)
    texts, tokens = fast.latency["shape"]
    others = "" if fast is baseline else f"; {baseline.label} takes {_fastest_ms(baseline):.2f} ms"
    sentences = [
        f"Fastest at {texts} texts of {tokens} tokens, each row in its faster mode, is {fast.label} with "
        f"{_fastest_ms(fast):.2f} ms{others}."
    ]
    if half in timed and half is not baseline:
        quantized = [row for row in timed if row is not half and row is not baseline]
        beaten = [row for row in quantized if _fastest(row)["median_high_ms"] < _fastest(half)["median_low_ms"]]
        verb = "is" if len(beaten) == 1 else "are"
        what = f"{_names(beaten)} {verb} faster than that" if beaten else "no quantized row is faster than that"
        sentences.append(f"The control, float16 alone, takes {_fastest_ms(half):.2f} ms: {what}, beyond the medians' intervals.")
    return sentences


def _fastest(row: Row) -> dict:
    """The latency entry of a row's faster mode at the table's shape."""
    return min((entry for entry in (row.latency["eager"], row.latency["best"]) if entry), key=lambda entry: entry["median_ms"])


def _fastest_ms(row: Row) -> float:
    """The median of `_fastest`, in ms."""
    return _fastest(row)["median_ms"]


def _names(rows: list[Row]) -> str:
    names = [row.label for row in rows]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _choices(comparison: Comparison) -> list[dict]:
    """What to choose when: {aim, choice, because}, among the rows not shown to be worse than the baseline."""
    baseline = comparison.row(comparison.baseline)
    rows = [row for row in comparison.present if row is baseline or row.against["tost_holm_p"] < 0.05]
    sized = [row for row in rows if row.size]
    timed = [row for row in rows if row.latency and row.latency["same_session"]]
    choices = []
    for aim, field, unit in (
        ("the smallest file", "stored_bytes", "stored"),
        ("the least memory while loaded", "resident_bytes", "resident"),
        ("the least memory at the peak of a forward", "peak_bytes", "at the peak"),
    ):
        having = [row for row in sized if row.size.get(field)]
        if having:
            best = min(having, key=lambda row: row.size[field])
            choices.append({"aim": aim, "choice": best.label, "because": f"{best.size[field] / MIB:.2f} MB {unit}"})
    if timed:
        best = min(timed, key=_fastest_ms)
        shape = best.latency["shape"]
        because = f"{_fastest_ms(best):.2f} ms for {shape[0]} texts of {shape[1]} tokens in its faster mode"
        choices.append({"aim": "the shortest time of a batch", "choice": best.label, "because": because})
        plain = [row for row in timed if row.latency["eager"]]
        best = min(plain, key=lambda row: row.latency["eager"]["median_ms"])
        because = f"{best.latency['eager']['median_ms']:.2f} ms for the same batch, run as transformers runs it"
        choices.append({"aim": "the shortest time without compiling", "choice": best.label, "because": because})
    through = [row for row in timed if row.latency["texts_per_s"]]
    if through:
        best = max(through, key=lambda row: max(row.latency["texts_per_s"].values()))
        rate = max(best.latency["texts_per_s"].values())
        because = f"{rate:,.0f} texts a second over test texts at their real lengths"
        choices.append({"aim": "the most texts a second", "choice": best.label, "because": because})
    frugal = [row for row in timed if row.latency["joules_per_1000_texts"]]
    if frugal:
        best = min(frugal, key=lambda row: min(row.latency["joules_per_1000_texts"].values()))
        because = f"{min(best.latency['joules_per_1000_texts'].values()):.2f} J a thousand texts"
        choices.append({"aim": "the least energy", "choice": best.label, "because": because})
    return choices


def _latency(row: Row) -> dict:
    return {"label": row.label, **row.latency}


def _sweep(comparison: Comparison) -> dict | None:
    """Median ms of every row at every shape, eager and best: {shapes, rows: [{label, mode, values}]}."""
    rows = [row for row in comparison.present if row.latency and row.latency["same_session"]]
    shapes = sorted({(e["seq_len"], e["batch_size"]) for row in rows for e in row.source.record["latency"]})
    if len(shapes) < 2:
        return None
    lines = []
    for row in rows:
        for mode in ("eager", "best"):
            found = {
                (e["seq_len"], e["batch_size"]): e["median_ms"] for e in row.source.record["latency"] if e["mode"] == mode
            }
            if found:
                lines.append({"label": row.label, "mode": mode, "values": [found.get(shape) for shape in shapes]})
    return {"shapes": [list(shape) for shape in shapes], "rows": lines}


def _errors(results_dir: Path) -> dict | None:
    """Script 2's error analysis, condensed: None when it has not run.

    weights: mean SQNR over layers, scheme by matrix; outliers: the five worst activation channels; effects: KL by scheme
    and part; choices: as the file has them.
    """
    names = ("quantization_error", "activation_outliers", "quantization_effect", "quantization_choices")
    paths = [results_dir / f"{name}.csv" for name in names]
    if not all(path.is_file() for path in paths):
        return None
    weights, outliers, effects, choices = (pd.read_csv(path) for path in paths)
    sqnr = weights.pivot_table(index="scheme", columns="matrix", values="sqnr_db", sort=False)
    bits = weights.groupby("scheme")["bits_per_weight"].mean()
    kl = effects.pivot_table(index="part", columns="scheme", values="kl_nats", sort=False)
    worst = outliers.nlargest(5, "outlier_ratio")
    spread = weights.drop_duplicates(["layer", "matrix"]).nlargest(1, "absmax_over_sigma").iloc[0]
    layer = "" if pd.isna(spread["layer"]) else f" of layer {int(spread['layer'])}"
    return {
        "weights": {
            "matrices": list(sqnr.columns),
            "rows": [[scheme, bits[scheme], *values] for scheme, values in zip(sqnr.index, sqnr.to_numpy(), strict=True)],
        },
        "spread": f"{spread['matrix']}{layer}: its largest weight is {spread['absmax_over_sigma']:.0f} standard deviations out",
        "outliers": [
            [int(row["layer"]), row["matrix"], int(row["top_channel"]), row["outlier_ratio"]] for _, row in worst.iterrows()
        ],
        "effects": {
            "schemes": list(kl.columns),
            "rows": [[part, *values] for part, values in zip(kl.index, kl.to_numpy(), strict=True)],
            "n": int(effects["n"].iloc[0]),
        },
        "choices": choices.to_dict("records"),
    }


def _provenance(row: Row) -> dict:
    made = row.source.record["provenance"]
    return {
        "label": row.label,
        "key": row.key,
        "commit": (made.get("git_commit") or "no git")[:12] + (" (changed)" if made.get("git_dirty") else ""),
        "source": (made.get("source_sha256") or "")[:12],
        "time": made.get("time_utc"),
        "command": made.get("command"),
        "seed": made.get("seed"),
        "device": made.get("device"),
        "packages": made.get("packages"),
        "notes": row.source.record.get("notes") or [],
    }
