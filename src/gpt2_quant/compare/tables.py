"""The comparison as CSV, Markdown, LaTeX and text for the terminal. The CSV begins with the
published columns in their order and spelling; every other figure follows in full precision.
"""

import re
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd

from ..cli import read_toml
from ..errors import UserError
from ..models.variants import FP16
from ..records import write_csv, write_text
from .comparison import MIB, Comparison, Missing, Row
from .experiment import short, short_paths
from .timings import LARGE_SHAPE, MODES

README_MARKS = ("<!-- results:begin -->", "<!-- results:end -->")
PUBLISHED = ["Model", "Accuracy", "F1-Score", "Size (MB)", "Inference (ms)", "Compression"]
FUSED, LARGE = "Fused (ms)", "{} x {} (ms)".format(*LARGE_SHAPE)
DIFFERENCE, EQUIVALENT = "Diff. (points)", "Equivalent"
LABEL_LETTERS = 17  # of a name in the terminal
WORDS = read_toml(__file__)


def _csv_frame(comparison: Comparison) -> pd.DataFrame:
    """Published columns as printed, the others in full; columns without any figure are left out."""
    columns, entries = WORDS["csv"], comparison.entries
    fields = ("metrics", "temperature", "ece_after_temperature", "against", "size", "latency")
    figures = pd.json_normalize([{f: getattr(entry, f, None) for f in fields} for entry in entries])
    figures = figures.reindex(columns=list(columns.values())).set_axis(list(columns), axis=1)
    shape = "latency_shape"
    figures[shape] = figures[shape].map("{0[0]}x{0[1]}".format, na_action="ignore")
    frame = printed_table(comparison)[PUBLISHED]
    for title, beyond in (("Inference (ms)", "*†"), ("Compression", "x")):
        frame[title] = frame[title].str.rstrip(beyond)
    frame["key"] = [entry.key for entry in entries]
    figures["note"] = [getattr(entry, "sentence", None) for entry in entries]
    return frame.join(figures.dropna(axis=1, how="all")).convert_dtypes()


def printed_table(comparison: Comparison) -> pd.DataFrame:
    """The columns that fit a page, as text; "" for no figure."""
    columns = [*PUBLISHED, FUSED, LARGE, DIFFERENCE, "McNemar", EQUIVALENT]
    cells = [_cells(entry) for entry in comparison.entries]
    table = pd.DataFrame(cells, columns=columns, dtype=object).fillna("")
    table.loc[comparison.entries.index(comparison.baseline), DIFFERENCE] = "baseline"
    return table if table[LARGE].any() else table.drop(columns=LARGE)


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
    for title, mode in (("Inference (ms)", "eager"), (FUSED, "best")):
        if latency.get(mode):
            cells[title] = f"{latency[mode]['median_ms']:.2f}{latency['mark']}"
    if latency and (large := latency["large"]):
        cells[LARGE] = " / ".join(f"{large[m]:.2f}" if m in large else "–" for m in MODES)
    if against:
        score, p = against["difference"]["accuracy"], against["mcnemar_holm_p"]
        low, high = 100 * score["low"], 100 * score["high"]
        p_value = "<.001" if p < 0.001 else f"={p:.3f}".replace("=0", "=") if p < 1 else "=1"
        discordant = f"{against['only_variant_right']}:{against['only_baseline_right']}"
        cells[DIFFERENCE] = f"{entry.points:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells["McNemar"] = f"{discordant} p{p_value}"
        cells[EQUIVALENT] = "yes" if entry.equivalent else "not shown"
    return cells


def footnotes(comparison: Comparison) -> list[str]:
    record, accuracy = comparison.record, comparison.baseline.metrics["accuracy"]
    chance = ""
    if majority := record.get("data", {}).get("majority_fraction"):
        guess = 1 / len(comparison.classes)
        chance = WORDS["notes"]["chance"].format(guess=guess, majority=majority)
    applies = {
        "rows": True,
        **dict.fromkeys(("difference", "mcnemar", "equivalent"), comparison.others),
        "size": record,
        "inference": comparison.shape,
        "fused": any(row.latency.get("best") for row in comparison.rows),
        "large": any(row.latency.get("large") for row in comparison.rows),
    }
    values = {
        "n": len(comparison.labels),
        "half_width": 50 * (accuracy["high"] - accuracy["low"]),
        "chance": chance,
        "baseline": comparison.baseline.label,
        "margin": comparison.margin_points,
        "shape": comparison.shape,
        "device": comparison.device,
        "large": LARGE,
    }
    lines = [WORDS["footnotes"][name].format(**values) for name, here in applies.items() if here]
    return lines + notes(comparison) + [f"{gap.sentence}." for gap in comparison.missing]


def notes(comparison: Comparison) -> list[str]:
    """On times that do not compare, and on rows that are one."""
    rows, words, found = comparison.rows, WORDS["notes"], []
    clock = next((row.label for row in comparison.timed), "")
    for mark in ("*", "†"):
        if marked := ", ".join(row.label for row in rows if row.latency.get("mark") == mark):
            found.append(words[mark].format(who=marked, clock=clock, script=FP16.script_path))
    if whole := [row.label for row in rows if row.latency and not row.of_gpt2]:
        found.append(words["whole"].format(who=whole[0]))
    same: dict[bytes, list[str]] = {}
    for row in rows:
        same.setdefault(row.logits.astype(np.float64).tobytes(), []).append(row.label)
    for *labels, last in same.values():
        if labels:
            found.append(words["same"].format(who=", ".join(labels), last=last))
    return found


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Test set, checkpoint and device behind the rows, each with its name; [] without a record."""
    record = comparison.record
    if not record:
        return []
    data, made_from = record["data"], record["checkpoint"]
    revision = f" at {data['revision'][:12]}" if data.get("revision") else ""
    base, weights = short(made_from["base_model"]), made_from["baseline_sha256"][:16]
    tests = f"{short(data['name'])}{revision}, sha256 {data['sha256'][:16]}"
    return [
        ("Test set", tests),
        ("Checkpoint", f"fine-tuned from {base}, weights sha256 {weights}"),
        ("Device", str(record["provenance"].get("device"))),
    ]


def _commands(comparison: Comparison) -> str:
    commands: dict[str, list[str]] = {}
    for row in comparison.rows:
        if row.record:
            command = short_paths(row.record["provenance"]["command"])
            commands.setdefault(command, []).append(row.label)
    made = [f"`python {command}` ({', '.join(labels)})" for command, labels in commands.items()]
    return "; ".join([*made, "this table: `python src/5_compare_all_models.py --write-readme`."])


def markdown(comparison: Comparison) -> str:
    """The printed table with footnotes and what made each row."""
    table = printed_table(comparison).replace("", "–").replace(r"\|", r"\\|", regex=True)
    rule = ["---", *["---:"] * (len(table.columns) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in [table.columns, rule, *table.to_numpy()]]
    notes = [*footnotes(comparison), *(f"{name}: {what}." for name, what in facts(comparison))]
    if comparison.record:
        notes.append(f"Commands: {_commands(comparison)}")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def latex(comparison: Comparison) -> str:
    """The printed table for `\\usepackage{booktabs}`, footnotes as comments."""
    table = printed_table(comparison).replace("", "--")
    columns = "l" + "r" * (len(table.columns) - 1)
    notes = "".join(f"% {note}\n" for note in footnotes(comparison))
    body = table.to_latex(index=False, escape=True, column_format=columns)
    return notes + body.replace("<", "$<$")


def terminal(comparison: Comparison, width: int = 100) -> str:
    """The printed table in at most `width` columns, footnotes wrapped beneath. Long names are cut,
    long times rounded; still too wide, `F1` is left out, then every other space, then `fused`.
    """
    titles = WORDS["terminal"]
    table = printed_table(comparison)[[*titles]]
    table["Model"] = [f"{x[:16]}…" if len(x) > LABEL_LETTERS else x for x in table["Model"]]
    table["Accuracy"] = table["Accuracy"].replace("", "missing")
    for name in ("Inference (ms)", FUSED):
        table[name] = table[name].str.replace(
            r"^\d{3,}\.\d+", lambda found: f"{float(found[0]):.0f}", regex=True
        )
        table[name] = table[name].replace("", "–")
    table = pd.concat([pd.DataFrame([titles]), table])
    for title in titles:
        cells, letters = table[title].str, table[title].str.len().max()
        table[title] = cells.ljust(letters) if title == "Model" else cells.rjust(letters)
    narrow = ["F1-Score"]
    for space, dropped in (("  ", []), ("  ", narrow), (" ", narrow), ("  ", [*narrow, FUSED])):
        head, *body = [space.join(row).rstrip() for row in table.drop(columns=dropped).to_numpy()]
        if max(map(len, [head, *body])) <= width:
            break
    # The column of LARGE does not fit either.
    absent = tuple(title.split(" (")[0] for title in [LARGE, *dropped])
    notes = [note for note in footnotes(comparison) if not note.startswith(absent)]
    notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in notes]
    return "\n".join([head, "-" * len(head), *body, "", *notes])


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
