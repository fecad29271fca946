"""The comparison as tables: CSV for programs, Markdown and LaTeX for papers, plain text for the
terminal.

All four come from one list of cells, so they cannot disagree. The CSV begins with the published
columns in their order and spelling (`Model,Accuracy,F1-Score,Size (MB),Inference
(ms),Compression`); everything else follows. The printed tables show fewer columns: what fits a
page.
"""

import textwrap
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..records import write_csv, write_text
from .comparison import MIB, Comparison, Row

PUBLISHED = ["Model", "Accuracy", "F1-Score", "Size (MB)", "Inference (ms)", "Compression"]
README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")


def _fixed(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / MIB:.2f}"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0") if value < 1 else "1"


def published_cells(row: Row) -> dict[str, str]:
    """The six published columns of one row, as text; empty where a figure does not exist."""
    eager = row.latency.get("eager")
    ratio = row.size.get("compression")
    return {
        "Model": row.label,
        "Accuracy": _fixed(row.metrics["accuracy"]["value"], 4) if row.metrics else "",
        "F1-Score": _fixed(row.metrics["f1_macro"]["value"], 4) if row.metrics else "",
        "Size (MB)": _megabytes(row.size.get("stored_bytes")),
        "Inference (ms)": _fixed(eager["median_ms"], 2) if eager else "",
        "Compression": f"{ratio:.2f}x" if ratio else "",
    }


def all_cells(row: Row) -> dict[str, str | float | None]:
    """Every column of the CSV for one row: the published ones as text, the others as numbers in
    full precision.
    """
    cells: dict[str, str | float | None] = {**published_cells(row), "Key": row.key}
    for name in (
        "accuracy",
        "f1_macro",
        "precision_macro",
        "recall_macro",
        "nll",
        "brier",
        "ece",
        "ece_adaptive",
    ):
        score = row.metrics.get(name, {})
        cells |= {
            name: score.get("value"),
            f"{name} low": score.get("low"),
            f"{name} high": score.get("high"),
        }
    cells |= {"Temperature": row.temperature, "ece after temperature": row.ece_after_temperature}
    against = row.against or {}
    difference = against.get("difference", {})
    for name in ("accuracy", "f1_macro", "nll", "brier"):
        for part, title in (("value", ""), ("low", " low"), ("high", " high")):
            cells[f"{name} minus baseline{title}"] = difference.get(name, {}).get(part)
    for name in (
        "only_variant_right", "only_baseline_right", "mcnemar_p", "mcnemar_holm_p", "tost_p", "tost_holm_p", "agreement",
        "flips", "kl_mean", "kl_p99", "kl_max",
    ):  # fmt: skip
        cells[name] = against.get(name)
    for name in ("stored_bytes", "file_bytes", "resident_bytes", "peak_bytes", "compression_fp16"):
        cells[name] = row.size.get(name)
    latency = row.latency
    cells["Latency batch x tokens"] = "{} x {}".format(*latency["shape"]) if latency else None
    for mode in ("eager", "best"):
        entry = latency.get(mode) or {}
        for name in ("median_ms", "median_low_ms", "median_high_ms", "p95_ms"):
            cells[f"{mode} {name}"] = entry.get(name)
    cells["Timed with the baseline"] = latency.get("same_session")
    for mode in ("eager", "best"):
        cells[f"{mode} texts/s"] = latency.get("texts_per_s", {}).get(mode)
        cells[f"{mode} J per 1000 texts"] = latency.get("joules_per_1000_texts", {}).get(mode)
    cells["Note"] = row.missing or "; ".join(row.notes) or None
    return cells


def printed_cells(row: Row, baseline: str) -> dict[str, str]:
    """The columns of the printed tables: the published six, the difference with its interval,
    tests, best latency.
    """
    cells = published_cells(row)
    latency = row.latency
    if latency and not latency["same_session"]:
        cells["Inference (ms)"] += "*"
    cells["Best (ms)"] = _fixed(latency["best"]["median_ms"], 2) if latency.get("best") else ""
    if row.missing or row.against is None:
        reference = "baseline" if row.key == baseline and not row.missing else ""
        return cells | {"Diff. (points)": reference, "McNemar": "", "Equivalent": ""}
    difference = row.against["difference"]["accuracy"]
    value, low, high = (100 * difference[part] for part in ("value", "low", "high"))
    won, lost = row.against["only_variant_right"], row.against["only_baseline_right"]
    return cells | {
        "Diff. (points)": f"{value:+.2f} [{low:+.2f}, {high:+.2f}]",
        "McNemar": f"{won}:{lost} p={_p(row.against['mcnemar_holm_p'])}",
        "Equivalent": "yes" if row.against["tost_holm_p"] < 0.05 else "not shown",
    }


def footnotes(comparison: Comparison) -> list[str]:
    """What a reader of the printed table must know, then what is missing or marked."""
    record = comparison.record
    n = len(comparison.labels)
    lines = [
        f"Test rows: {n:,}. Accuracy is known to about ±{_half_width(comparison):.2f} points (95%); rows are compared "
        "pairwise, not by their intervals.",
        f"Diff.: accuracy minus {comparison.row(comparison.baseline).label}'s, with its paired-bootstrap 95% interval. "
        "McNemar: rows only this model gets right : rows only the baseline gets right, exact p after Holm. "
        "Equivalent: two one-sided tests within ±0.5 points reject at 5% after Holm.",
    ]
    shape = next((row.latency["shape"] for row in comparison.present if row.latency), None)
    if record:
        lines.append(
            "Size (MB): bytes of all stored tensors, scales included, over 2^20. Compression: the baseline's size over it."
        )
    if shape:
        device = record["provenance"].get("device", "an unnamed device")
        lines.append(
            f"Inference: median of one eager forward, {shape[0]} texts x {shape[1]} tokens, {device}; "
            "Best: compiled and captured where the layers allow it, else eager once more."
        )
    return lines + comparison.notes + [row.missing + "." for row in comparison.rows if row.missing]


def origins(comparison: Comparison) -> list[str]:
    """Checkpoint, test set, device and commands behind the rows, from the records; empty when no
    row has one.
    """
    record = comparison.record
    if record is None:
        return []
    data, checkpoint, made = record["data"], record["checkpoint"], record["provenance"]
    commands: dict[str, list[str]] = {}
    for row in comparison.present:
        if row.source.record:
            commands.setdefault(row.source.record["provenance"]["command"], []).append(row.label)
    return [
        f"Checkpoint: fine-tuned from `{checkpoint['base_model']}` (weights sha256 `{checkpoint['baseline_sha256'][:16]}`); "
        f"test set: `{data['name']}`, {data['n']:,} rows (sha256 `{data['sha256'][:16]}`); made on {made.get('device')}.",
        "Commands: "
        + "; ".join(
            f"`python {command}` ({', '.join(labels)})" for command, labels in commands.items()
        )
        + "; this table: `python src/5_compare_all_models.py --write-readme`.",
    ]


def _half_width(comparison: Comparison) -> float:
    """Half the width of the baseline's 95% interval of accuracy, in points."""
    accuracy = comparison.row(comparison.baseline).metrics["accuracy"]
    return 50 * (accuracy["high"] - accuracy["low"])


def markdown(comparison: Comparison) -> str:
    """The printed table as a GitHub table with its footnotes and what made each row."""
    rows = [printed_cells(row, comparison.baseline) for row in comparison.rows]
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| --- |" + " ---: |" * (len(names) - 1)]
    lines += [
        "| " + " | ".join((row[name] or "–").replace("|", "\\|") for name in names) + " |"
        for row in rows
    ]
    return (
        "\n".join(lines)
        + "\n\n"
        + "\n".join(f"- {note}" for note in footnotes(comparison) + origins(comparison))
        + "\n"
    )


def latex(comparison: Comparison) -> str:
    """The printed table for `\\usepackage{booktabs}`, footnotes as comments."""
    rows = [printed_cells(row, comparison.baseline) for row in comparison.rows]
    names = list(rows[0])
    escapes = str.maketrans(
        {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "<": r"$<$", "^": r"\^{}", "$": r"\$"}
    )
    lines = [f"% {note}" for note in footnotes(comparison)]
    lines += [r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}", r"\toprule"]
    lines += [" & ".join(name.translate(escapes) for name in names) + r" \\", r"\midrule"]
    lines += [
        " & ".join((row[name] or "--").translate(escapes) for name in names) + r" \\"
        for row in rows
    ]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def terminal(comparison: Comparison, width: int = 100) -> str:
    """The printed table in at most `width` columns, footnotes wrapped beneath.

    Names are cut at 17 letters and times to three digits; where that is still too wide, `best` and
    then `F1` are left out (the files have them).
    """
    titles = {
        "Model": "Model", "Accuracy": "Acc.", "F1-Score": "F1", "Size (MB)": "MB", "Compression": "compr.",
        "Inference (ms)": "ms", "Best (ms)": "best", "Diff. (points)": "diff. [95%] points", "McNemar": "McNemar",
        "Equivalent": "equiv.",
    }  # fmt: skip
    table = [titles]
    for row in comparison.rows:
        cells = printed_cells(row, comparison.baseline)
        cells["Model"] = cells["Model"][:17]
        cells["Equivalent"] = cells["Equivalent"].replace("not shown", "no")
        cells["Accuracy"] = "missing" if row.missing else cells["Accuracy"]
        for name in ("Inference (ms)", "Best (ms)"):
            cells[name] = _three_digits(cells[name])
        table.append(cells)
    names = list(titles)
    for dropped in (None, "Best (ms)", "F1-Score"):
        names = [name for name in names if name != dropped]
        widths = [max(len(cells[name]) for cells in table) for name in names]
        if sum(widths) + len(widths) - 1 <= width:
            break
    lines = []
    for cells in table:
        numbers = [
            cells[name].rjust(wide) for name, wide in zip(names[1:], widths[1:], strict=True)
        ]
        lines.append(" ".join([cells["Model"].ljust(widths[0]), *numbers]).rstrip())
    lines.insert(1, "-" * (sum(widths) + len(widths) - 1))
    notes = [
        line
        for note in footnotes(comparison)
        for line in textwrap.wrap(note, width, subsequent_indent="  ")
    ]
    return "\n".join([*lines, "", *notes])


def _three_digits(cell: str) -> str:
    """A number with two decimals, written shorter once it has three digits before them; a mark
    behind it stays.
    """
    whole, point, _ = cell.partition(".")
    return whole + "*" * cell.endswith("*") if point and len(whole) >= 3 else cell


FORMATS = {"terminal": terminal, "markdown": markdown, "latex": latex}


def write_tables(comparison: Comparison, results_dir: Path) -> list[Path]:
    """Write comparison_table.csv, .md and .tex into `results_dir`; returns their paths."""
    paths = [results_dir / f"comparison_table.{suffix}" for suffix in ("csv", "md", "tex")]
    write_csv(paths[0], pd.DataFrame([all_cells(row) for row in comparison.rows]).convert_dtypes())
    write_text(paths[1], markdown(comparison))
    write_text(paths[2], latex(comparison))
    return paths


def write_readme(comparison: Comparison, readme: Path) -> bool:
    """Put the Markdown table between README's two marks; returns whether the file changed.

    Raises UserError when the marks are not there, so that nothing is written in a wrong place.
    """
    text = readme.read_text(encoding="utf-8")
    begin, end = (text.find(mark) for mark in README_MARKS)
    if begin < 0 or end < begin:
        raise UserError(
            f"{readme} lacks the lines {README_MARKS[0]} and {README_MARKS[1]}: put them where the table belongs"
        )
    new = f"{text[: begin + len(README_MARKS[0])]}\n{markdown(comparison)}{text[end:]}"
    if new != text:
        write_text(readme, new)
    return new != text
