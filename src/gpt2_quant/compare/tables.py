"""The comparison as CSV, Markdown, LaTeX and text for the terminal. The CSV begins with the
published columns in their order and spelling; every other figure follows in full precision.
"""

import re
import textwrap
from itertools import product
from pathlib import Path

import pandas as pd

from ..errors import UserError
from ..records import write_csv, write_text
from .comparison import MIB, MODES, Comparison, Missing, Row

README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")
PUBLISHED = ["Model", "Accuracy", "F1-Score", "Size (MB)", "Inference (ms)", "Compression"]
DIFFERENCE, EQUIVALENT = "Diff. (points)", "Equivalent"
SHAPE = "Latency batch x tokens"
TERMINAL_TITLES = {
    "Model": "Model", "Accuracy": "Acc.", "F1-Score": "F1", "Size (MB)": "MB",
    "Compression": "compr.", "Inference (ms)": "ms", "Best (ms)": "best",
    DIFFERENCE: "diff. [95%] points", "McNemar": "McNemar", EQUIVALENT: "equiv.",
}  # fmt: skip


def _csv_columns() -> dict[str, str]:
    """CSV column behind the published ones -> its path in a row's dicts."""

    def plain(path: str, names: str, title: str = "") -> dict[str, str]:
        return {title + name: f"{path}.{name}" for name in names.split()}

    def intervals(path: str, names: str, title: str = "") -> dict[str, str]:
        pairs = product(names.split(), (("", "value"), (" low", "low"), (" high", "high")))
        return {f"{name}{title}{end}": f"{path}.{name}.{part}" for name, (end, part) in pairs}

    scores = "accuracy f1_macro precision_macro recall_macro nll brier ece ece_adaptive"
    tests = "only_variant_right only_baseline_right mcnemar_p mcnemar_holm_p tost_p tost_holm_p"
    sizes = "stored_bytes file_bytes resident_bytes peak_bytes compression_fp16"
    columns = intervals("metrics", scores)
    columns |= {"Temperature": "temperature", "ece after temperature": "ece_after_temperature"}
    columns |= intervals("against.difference", "accuracy f1_macro nll brier", " minus baseline")
    columns |= plain("against", f"{tests} agreement flips kl_mean kl_p99 kl_max")
    columns |= plain("size", sizes) | {SHAPE: "latency.shape"}
    times = "median_ms median_low_ms median_high_ms p95_ms"
    for mode in MODES:
        columns |= plain(f"latency.{mode}", times, f"{mode} ")
    columns["Timed with the baseline"] = "latency.same_session"
    for mode in MODES:
        columns[f"{mode} texts/s"] = f"latency.texts_per_s.{mode}"
        columns[f"{mode} J per 1000 texts"] = f"latency.joules_per_1000_texts.{mode}"
    return columns


def _csv_frame(comparison: Comparison) -> pd.DataFrame:
    """Published columns as text, the others as numbers or NaN."""
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
    """The columns that fit a page, as text; "" for no figure."""
    columns = [*PUBLISHED, "Best (ms)", DIFFERENCE, "McNemar", EQUIVALENT]
    cells = [_cells(entry) for entry in comparison.entries]
    table = pd.DataFrame(cells, columns=columns, dtype=object).fillna("")
    table.loc[comparison.entries.index(comparison.baseline), DIFFERENCE] = "baseline"
    return table


def _cells(entry: Row | Missing) -> dict[str, str]:
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
    for title, mode in (("Inference (ms)", "eager"), ("Best (ms)", "best")):
        if latency.get(mode):
            cells[title] = f"{latency[mode]['median_ms']:.2f}"
            if mode == "eager" and not latency["same_session"]:
                cells[title] += "*"
    if against:
        score, p = against["difference"]["accuracy"], against["mcnemar_holm_p"]
        low, high = 100 * score["low"], 100 * score["high"]
        p_value = "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0") if p < 1 else "1"
        discordant = f"{against['only_variant_right']}:{against['only_baseline_right']}"
        cells[DIFFERENCE] = f"{entry.points:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells["McNemar"] = f"{discordant} p={p_value}"
        cells[EQUIVALENT] = "yes" if entry.equivalent else "not shown"
    return cells


def footnotes(comparison: Comparison) -> list[str]:
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
    """Checkpoint, test set, device and commands behind the rows."""
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
    """The printed table with footnotes and what made each row."""
    table = printed_table(comparison).replace("", "–").replace(r"\|", r"\\|", regex=True)
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [table.columns, rule, *table.to_numpy()]]
    notes = [f"- {note}" for note in footnotes(comparison) + _origins(comparison)]
    return "\n".join([*lines, "", *notes]) + "\n"


def latex(comparison: Comparison) -> str:
    """The printed table for `\\usepackage{booktabs}`, footnotes as comments."""
    table = printed_table(comparison).replace("", "--")
    columns = "l" + "r" * (len(table.columns) - 1)
    notes = "".join(f"% {note}\n" for note in footnotes(comparison))
    body = table.to_latex(index=False, escape=True, column_format=columns)
    return notes + body.replace("<", "$<$")


def terminal(comparison: Comparison, width: int = 100) -> str:
    """The printed table in at most `width` columns, footnotes wrapped beneath. Names are cut at 17
    letters and times to three digits; still too wide, `best` and then `F1` are left out.
    """
    table = printed_table(comparison)[[*TERMINAL_TITLES]]
    table["Model"] = table["Model"].str[:17]
    table[EQUIVALENT] = table[EQUIVALENT].replace("not shown", "no")
    table["Accuracy"] = table["Accuracy"].replace("", "missing")
    for name in ("Inference (ms)", "Best (ms)"):
        table[name] = table[name].str.replace(r"^(\d{3,})\.\d+", r"\1", regex=True)
    table = pd.concat([pd.DataFrame([TERMINAL_TITLES]), table])
    table["Model"] = table["Model"].str.ljust(table["Model"].str.len().max())
    for dropped in ([], ["Best (ms)"], ["Best (ms)", "F1-Score"]):
        text = table.drop(columns=dropped).to_string(index=False, header=False)
        head, *body = text.splitlines()
        if len(head) <= width:
            break
    notes = [textwrap.fill(n, width, subsequent_indent="  ") for n in footnotes(comparison)]
    return "\n".join([head, "-" * len(head), *map(str.rstrip, body), "", *notes])


FORMATS = {"terminal": terminal, "markdown": markdown, "latex": latex}


def write_tables(comparison: Comparison, results_dir: Path) -> list[Path]:
    csv, md, tex = (results_dir / f"comparison_table.{kind}" for kind in ("csv", "md", "tex"))
    write_csv(csv, _csv_frame(comparison))
    write_text(md, markdown(comparison))
    write_text(tex, latex(comparison))
    return [csv, md, tex]


def write_readme(comparison: Comparison, readme: Path) -> bool:
    """Put the Markdown table between README's two marks; returns whether the file changed.

    Raises UserError without the marks.
    """
    text, (begin, end) = readme.read_text(encoding="utf-8"), README_MARKS
    table = f"{begin}\n{markdown(comparison)}{end}"
    new, found = re.subn(f"(?s){begin}.*?{end}", lambda _: table, text)
    if not found:
        mend = "put them where the table belongs"
        raise UserError(f"{readme} lacks the lines {begin} and {end}: {mend}")
    if new != text:
        write_text(readme, new)
    return new != text
