"""The comparison as tables: CSV for programs, Markdown and LaTeX for papers, text for the terminal.

The CSV begins with the published columns in their order and spelling; every other figure follows
in full precision. The printed tables have the columns that fit a page.
"""

import textwrap
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..records import write_csv, write_text
from .comparison import MIB, MODES, Comparison, Missing, Row

README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")
PUBLISHED = ["Model", "Accuracy", "F1-Score", "Size (MB)", "Inference (ms)", "Compression"]
DIFFERENCE, EQUIVALENT = "Diff. (points)", "Equivalent"
SHAPE = "Latency batch x tokens"
SCORES = "accuracy f1_macro precision_macro recall_macro nll brier ece ece_adaptive"
TERMINAL_TITLES = {
    "Model": "Model", "Accuracy": "Acc.", "F1-Score": "F1", "Size (MB)": "MB",
    "Compression": "compr.", "Inference (ms)": "ms", "Best (ms)": "best",
    DIFFERENCE: "diff. [95%] points", "McNemar": "McNemar", EQUIVALENT: "equiv.",
}  # fmt: skip


def _csv_columns() -> dict[str, str]:
    """Title of each CSV column behind the published ones -> its path in a row's dicts."""
    columns: dict[str, str] = {}

    def add(path: str, names: str, title: str = "") -> None:
        columns.update({title + name: f"{path}.{name}" for name in names.split()})

    def add_interval(path: str, title: str) -> None:
        for part, suffix in (("value", ""), ("low", " low"), ("high", " high")):
            columns[title + suffix] = f"{path}.{part}"

    for name in SCORES.split():
        add_interval(f"metrics.{name}", name)
    columns |= {"Temperature": "temperature", "ece after temperature": "ece_after_temperature"}
    for name in ("accuracy", "f1_macro", "nll", "brier"):
        add_interval(f"against.difference.{name}", f"{name} minus baseline")
    add("against", "only_variant_right only_baseline_right mcnemar_p mcnemar_holm_p tost_p")
    add("against", "tost_holm_p agreement flips kl_mean kl_p99 kl_max")
    add("size", "stored_bytes file_bytes resident_bytes peak_bytes compression_fp16")
    columns[SHAPE] = "latency.shape"
    for mode in MODES:
        add(f"latency.{mode}", "median_ms median_low_ms median_high_ms p95_ms", f"{mode} ")
    columns["Timed with the baseline"] = "latency.same_session"
    for mode in MODES:
        columns[f"{mode} texts/s"] = f"latency.texts_per_s.{mode}"
        columns[f"{mode} J per 1000 texts"] = f"latency.joules_per_1000_texts.{mode}"
    return columns


def _csv_frame(comparison: Comparison) -> pd.DataFrame:
    """All columns: the published ones as text, the others as numbers, NaN where there is none."""
    columns, entries = _csv_columns(), comparison.entries
    fields = ("metrics", "temperature", "ece_after_temperature", "against", "size", "latency")
    figures = pd.json_normalize([{f: getattr(entry, f, None) for f in fields} for entry in entries])
    figures = figures.reindex(columns=list(columns.values())).set_axis(list(columns), axis=1)
    figures[SHAPE] = figures[SHAPE].map("{0[0]} x {0[1]}".format, na_action="ignore")
    frame = printed_table(comparison)[PUBLISHED]
    frame["Inference (ms)"] = frame["Inference (ms)"].str.rstrip("*")
    frame["Key"] = [entry.key for entry in entries]
    frame = frame.join(figures)
    frame["Note"] = [getattr(entry, "sentence", None) for entry in entries]
    return frame.convert_dtypes()


def printed_table(comparison: Comparison) -> pd.DataFrame:
    """The printed columns as text: the published six, best latency, difference and tests; empty
    where a figure does not exist.
    """
    columns = [*PUBLISHED, "Best (ms)", DIFFERENCE, "McNemar", EQUIVALENT]
    cells = [_cells(entry) for entry in comparison.entries]
    table = pd.DataFrame(cells, columns=columns, dtype=object).fillna("")
    table.loc[comparison.entries.index(comparison.baseline), DIFFERENCE] = "baseline"
    return table


def _cells(entry: Row | Missing) -> dict[str, str]:
    """The printed cells of an entry, as far as there is something to print."""
    cells = {"Model": entry.label}
    if isinstance(entry, Missing):
        return cells
    for title, name in (("Accuracy", "accuracy"), ("F1-Score", "f1_macro")):
        cells[title] = f"{entry.metrics[name]['value']:.4f}"
    size, latency, against = entry.size, entry.latency, entry.against
    if size:
        cells["Size (MB)"] = f"{size['stored_bytes'] / MIB:.2f}"
    if size.get("compression"):
        cells["Compression"] = f"{size['compression']:.2f}x"
    if latency.get("eager"):
        mark = "" if latency["same_session"] else "*"
        cells["Inference (ms)"] = f"{latency['eager']['median_ms']:.2f}{mark}"
    if latency.get("best"):
        cells["Best (ms)"] = f"{latency['best']['median_ms']:.2f}"
    if against:
        value, low, high = (
            100 * against["difference"]["accuracy"][part] for part in ("value", "low", "high")
        )
        p = against["mcnemar_holm_p"]
        p_value = "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
        discordant = f"{against['only_variant_right']}:{against['only_baseline_right']}"
        cells[DIFFERENCE] = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells["McNemar"] = f"{discordant} p={p_value}"
        cells[EQUIVALENT] = "yes" if entry.equivalent else "not shown"
    return cells


def footnotes(comparison: Comparison) -> list[str]:
    """What a reader of the printed table must know, then what is marked or missing."""
    record, accuracy = comparison.record, comparison.baseline.metrics["accuracy"]
    half_width = 50 * (accuracy["high"] - accuracy["low"])
    lines = [
        f"Test rows: {len(comparison.labels):,}. Accuracy is known to about ±{half_width:.2f} "
        "points (95%); rows are compared pairwise, not by their intervals.",
        f"Diff.: accuracy minus {comparison.baseline.label}'s, with its paired-bootstrap 95% "
        "interval. McNemar: rows only this model gets right : rows only the baseline gets right, "
        "exact p after Holm. Equivalent: two one-sided tests within ±0.5 points reject at 5% "
        "after Holm.",
    ]
    if record:
        lines.append(
            "Size (MB): bytes of all stored tensors, scales included, over 2^20. "
            "Compression: the baseline's size over it."
        )
    if comparison.shape:
        texts, tokens = comparison.shape
        device = record["provenance"].get("device", "an unnamed device")
        lines.append(
            f"Inference: median of one eager forward, {texts} texts x {tokens} tokens, {device}; "
            "Best: compiled and captured where the layers allow it, else eager once more."
        )
    return lines + comparison.notes + [f"{gap.sentence}." for gap in comparison.missing]


def _origins(comparison: Comparison) -> list[str]:
    """Checkpoint, test set, device and commands behind the rows; empty without a record."""
    record = comparison.record
    if not record:
        return []
    data, checkpoint = record["data"], record["checkpoint"]
    commands: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.record:
            commands.setdefault(row.record["provenance"]["command"], []).append(row.label)
    made = [f"`python {command}` ({', '.join(labels)})" for command, labels in commands.items()]
    made.append("this table: `python src/5_compare_all_models.py --write-readme`.")
    return [
        f"Checkpoint: fine-tuned from `{checkpoint['base_model']}` (weights sha256 "
        f"`{checkpoint['baseline_sha256'][:16]}`); test set: `{data['name']}`, {data['n']:,} rows "
        f"(sha256 `{data['sha256'][:16]}`); made on {record['provenance'].get('device')}.",
        f"Commands: {'; '.join(made)}",
    ]


def markdown(comparison: Comparison) -> str:
    """The printed table as a GitHub table with its footnotes and what made each row."""
    table = printed_table(comparison).replace("", "–").replace(r"\|", r"\\|", regex=True)
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [table.columns, rule, *table.to_numpy()]]
    notes = [f"- {note}" for note in footnotes(comparison) + _origins(comparison)]
    return "\n".join([*lines, "", *notes]) + "\n"


def latex(comparison: Comparison) -> str:
    """The printed table for `\\usepackage{booktabs}`, footnotes as comments."""
    signs = {sign: f"\\{sign}" for sign in "%_&#$"} | {"<": "$<$", "^": r"\^{}"}
    escape = str.maketrans(signs)
    table = printed_table(comparison).replace("", "--").map(lambda cell: cell.translate(escape))
    table.columns = table.columns.str.translate(escape)
    columns = "l" + "r" * (len(table.columns) - 1)
    notes = "".join(f"% {note}\n" for note in footnotes(comparison))
    return notes + table.to_latex(index=False, escape=False, column_format=columns)


def terminal(comparison: Comparison, width: int = 100) -> str:
    """The printed table in at most `width` columns, footnotes wrapped beneath.

    Names are cut at 17 letters and times to three digits; where that is still too wide, `best` and
    then `F1` are left out (the files have them).
    """
    table = printed_table(comparison)[[*TERMINAL_TITLES]]
    table["Model"] = table["Model"].str[:17]
    table[EQUIVALENT] = table[EQUIVALENT].replace("not shown", "no")
    table["Accuracy"] = table["Accuracy"].replace("", "missing")
    for name in ("Inference (ms)", "Best (ms)"):
        # Three digits before the point need none behind it; a mark stays.
        table[name] = table[name].str.replace(r"^(\d{3,})\.\d+", r"\1", regex=True)
    table = pd.concat([pd.DataFrame([TERMINAL_TITLES]), table])
    for dropped in ([], ["Best (ms)"], ["Best (ms)", "F1-Score"]):
        shown = table.drop(columns=dropped)
        widths = shown.apply(lambda column: column.str.len().max())
        total = widths.sum() + len(widths) - 1
        if total <= width:
            break
    for name, wide in widths.items():
        shown[name] = shown[name].str.pad(wide, side="right" if name == "Model" else "left")
    head, *body = shown.agg(" ".join, axis=1).str.rstrip()
    notes = [textwrap.fill(n, width, subsequent_indent="  ") for n in footnotes(comparison)]
    return "\n".join([head, "-" * total, *body, "", *notes])


FORMATS = {"terminal": terminal, "markdown": markdown, "latex": latex}


def write_tables(comparison: Comparison, results_dir: Path) -> list[Path]:
    """Write comparison_table.csv, .md and .tex into `results_dir`; returns their paths."""
    csv, md, tex = (results_dir / f"comparison_table.{kind}" for kind in ("csv", "md", "tex"))
    write_csv(csv, _csv_frame(comparison))
    write_text(md, markdown(comparison))
    write_text(tex, latex(comparison))
    return [csv, md, tex]


def write_readme(comparison: Comparison, readme: Path) -> bool:
    """Put the Markdown table between README's two marks; returns whether the file changed.

    Raises UserError when the marks are not there, so that nothing is written in a wrong place.
    """
    text = readme.read_text(encoding="utf-8")
    begin, end = (text.find(mark) for mark in README_MARKS)
    if begin < 0 or end < begin:
        raise UserError(
            f"{readme} lacks the lines {' and '.join(README_MARKS)}: "
            "put them where the table belongs"
        )
    new = f"{text[:begin]}{README_MARKS[0]}\n{markdown(comparison)}{text[end:]}"
    if new != text:
        write_text(readme, new)
    return new != text
