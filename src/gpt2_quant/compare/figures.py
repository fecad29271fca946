"""The comparison's figures.

A row's colour and marker are its own in every figure; every point has its 95% interval; bars begin
at zero, and an axis that does not carries points and says so.
"""

from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..measure.figures import confusion_matrix, reliability
from ..style import FAINT, INK, WIDEST, look, save
from .comparison import MIB, Comparison, Row
from .timings import MODES

SCORES = {
    "accuracy": "accuracy",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "f1_macro": "macro F1",
}
LINES = {"eager": "-", "best": ":"}


def _rows_figure(
    rows: list[Row], heading: str, titles: list[str], caption: str = ""
) -> tuple[Figure, np.ndarray]:
    """A panel per title, a line per row."""
    figure = Figure(figsize=(WIDEST, 0.36 * len(rows) + 1.4), layout="constrained")
    figure.suptitle(heading)
    panels = figure.subplots(1, len(titles), sharey=True)
    for axes, title in zip(panels, titles, strict=True):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_title(title, loc="left")
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(caption, fontsize=9)
    return figure, panels


def _interval(score: dict, scale: float = 1) -> tuple[float, list[list[float]]]:
    """A score's value, and its distances to the interval's ends."""
    value, low, high = (scale * score[part] for part in ("value", "low", "high"))
    return value, [[max(value - low, 0)], [max(high - value, 0)]]


def _draw_scores(axes: Axes, rows: list[Row], scores: list[dict], scale: float = 1) -> None:
    for y, (row, score) in enumerate(zip(rows, scores, strict=True)):
        value, reach = _interval(score, scale)
        colour, marker = row.look
        axes.errorbar(value, y, xerr=reach, color=colour, fmt=marker, capsize=2.5, markersize=5.5)


def _legend(figure: Figure) -> None:
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    place = "outside lower center"
    figure.legend([*found.values()], [*found], loc=place, ncols=4, fontsize=8)


def _log_ticks(axis: Axis) -> None:
    low, high = axis.get_view_interval()
    # Within a factor of five there may be none of 1, 2, 5.
    axis.set_major_locator(MaxNLocator(3) if high < 5 * low else LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def performance_comparison(comparison: Comparison) -> Figure:
    """Accuracy and macro precision, recall and F1 with 95% intervals."""
    rows, caption = comparison.rows, "score, 95% interval; axes truncated (they do not begin at 0)"
    heading = f"Scores on {len(comparison.labels):,} test texts"
    figure, panels = _rows_figure(rows, heading, [*SCORES.values()], caption)
    for axes, name in zip(panels, SCORES, strict=True):
        reference = comparison.baseline.metrics[name]["value"]
        axes.axvline(reference, color=FAINT, linewidth=0.8, linestyle="--")
        _draw_scores(axes, rows, [row.metrics[name] for row in rows])
    return figure


def paired_differences(comparison: Comparison) -> Figure | None:
    """Accuracy and macro F1 minus the baseline's in points, with paired 95% intervals and the
    equivalence margin. None without another row.
    """
    rows, names = comparison.others, ("accuracy", "f1_macro")
    if not rows:
        return None
    heading = f"Differences from {comparison.baseline.label}, paired"
    caption = "points; 95% interval of the paired bootstrap; shaded: the margin of equivalence"
    figure, panels = _rows_figure(rows, heading, [SCORES[name] for name in names], caption)
    margin = 100 * comparison.margin
    for axes, name in zip(panels, names, strict=True):
        axes.axvspan(-margin, margin, color="#e8eef3", zorder=0)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        _draw_scores(axes, rows, [row.against["difference"][name] for row in rows], scale=100)
    return figure


def efficiency_comparison(comparison: Comparison) -> Figure:
    """Stored size, and eager and best latency with its median's 95% interval."""
    rows, shape = comparison.rows, comparison.shape
    what = f", {shape[0]} texts x {shape[1]} tokens" if shape else ""
    titles = ["stored size", f"time of a forward{what}"]
    figure, (sizes, times) = _rows_figure(rows, "Size and time", titles)
    modes = [mode for mode in MODES if any(row.latency.get(mode) for row in rows)]
    height, small = 0.8 / max(len(modes), 1), {"va": "center", "fontsize": 8}
    for y, row in enumerate(rows):
        size, ratio = row.size.get("stored_bytes", 0) / MIB, row.size.get("compression")
        note = f" ({ratio:.2f}x)" if ratio else ""
        sizes.barh(y, size, height=0.62, color=row.look[0])
        sizes.text(size, y, f"  {size:.2f}{note}" if size else " not known", **small)
        if not row.latency:
            times.text(0, y, " not measured", color=FAINT, **small)
        for number, mode in enumerate(modes):
            if row.latency.get(mode):
                _draw_time(times, y - 0.4 + (number + 0.5) * height, height, row, mode)
    known = any(row.size.get("compression") for row in rows)
    sizes.set_xlabel(f"MB (2^20 bytes){', and compression' * known}")
    kinds = "solid: eager, hatched: fused" if "best" in modes else "eager"
    times.set_xlabel(f"ms, 95% interval; {kinds}")
    for axes in (sizes, times):
        axes.margins(x=0.24)
        axes.set_xlim(left=0)
    return figure


def _draw_time(axes: Axes, y: float, height: float, row: Row, mode: str) -> None:
    value, low, high = (row.latency[mode][f"median{end}_ms"] for end in ("", "_low", "_high"))
    colour = row.look[0]
    hatch, fill = ("////", "none") if mode == "best" else ("", colour)
    axes.barh(y, value, height, facecolor=fill, edgecolor=colour, hatch=hatch)
    axes.hlines(y, low, high, color=INK, linewidth=0.8)
    apart = {"*": "* other session", "†": "† other device"}.get(row.latency["mark"], "")
    axes.text(high, y, f"  {value:.2f}{apart}", va="center", fontsize=8)


def pareto(comparison: Comparison) -> Figure | None:
    """Accuracy against stored size and latency, on logarithmic cost axes; the front joins the rows
    that no row beats in both. None when neither cost is known.
    """
    sized = [(row.size["stored_bytes"] / MIB, row) for row in comparison.rows if row.size]
    timed = [(row.fastest["median_ms"], row) for row in comparison.timed]
    if not (sized or timed):
        return None
    size = (WIDEST, 3.8 + 0.05 * len(comparison.rows))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Accuracy against cost (dotted: the front)")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_trade_off(left, sized, "stored size, MB (2^20 bytes), log scale")
    _draw_trade_off(right, timed, "time of a forward, faster mode, ms, log scale")
    left.set_ylabel("accuracy, 95% interval (axis truncated)")
    _legend(figure)
    return figure


def _draw_trade_off(axes: Axes, costs: list[tuple[float, Row]], label: str) -> None:
    axes.set_xlabel(label)
    axes.grid()
    if not costs:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=FAINT)
        return
    points = []
    for cost, row in costs:
        value, reach = _interval(row.metrics["accuracy"])
        points.append((cost, value))
        colour, marker = row.look
        # Open markers: where two points coincide, both are seen.
        axes.errorbar(
            cost, value, reach, color=colour, fmt=marker, markersize=8, markerfacecolor="none",
            markeredgewidth=1.4, elinewidth=0.8, capsize=2.5, label=row.label,
        )  # fmt: skip
    axes.step(*zip(*pareto_front(points), strict=True), ":", where="post", color=INK, zorder=0)
    axes.set_xscale("log")
    _log_ticks(axes.xaxis)
    axes.margins(x=0.12)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, value) points that none of at most their cost reaches in value, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def latency_sweep(comparison: Comparison) -> Figure | None:
    """Time of a forward by batch size, a panel per text length. None for one shape only."""
    rows, sweep = comparison.timed, comparison.sweep().sort_values("batch_size", kind="stable")
    if len(sweep[["batch_size", "seq_len"]].drop_duplicates()) < 2:
        return None
    lengths, sizes = sorted(sweep["seq_len"].unique()), sweep["batch_size"].unique()
    size = (min(3 * len(lengths) + 1.2, WIDEST), 3.6 + 0.05 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Time of a forward by batch size and text length")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for axes, length in zip(panels, lengths, strict=True):
        for row, (mode, line) in product(rows, LINES.items()):
            of_row = (sweep["key"] == row.key) & (sweep["mode"] == mode)
            curve = sweep[of_row & (sweep["seq_len"] == length)]
            x, y, (colour, marker) = curve["batch_size"], curve["median_ms"], row.look
            name = row.label if mode == "eager" else None
            # The baseline's line is broad, so that one which lies upon it leaves it visible.
            broad = 3.2 if row is comparison.baseline else 1.1
            axes.plot(
                x, y, marker + line, color=colour, markersize=5, linewidth=broad, label=name,
                markerfacecolor=colour if mode == "eager" else "white",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, sizes)
        axes.xaxis.set_minor_locator(NullLocator())
        _log_ticks(axes.yaxis)
        axes.set_title(f"{length} tokens", loc="left")
        axes.set_xlabel("texts a batch")
        axes.grid()
    panels[0].set_ylabel("ms a forward, median (log scale)")
    if "best" in set(sweep["mode"]):
        for line, fill, label in (("-", INK, "eager (filled)"), (":", "white", "fused (open)")):
            panels[0].plot([], [], "o" + line, color=INK, markerfacecolor=fill, label=label)
    _legend(figure)
    return figure


def draw_all(comparison: Comparison, results_dir: Path) -> dict[str, Path]:
    """Draw every figure that is not empty; figure name -> its PDF, in the report's order."""
    drawn = {}
    first = performance_comparison, efficiency_comparison
    # Names are another's: a dollar sign in one begins no formula.
    with look(), rc_context({"text.parse_math": False}):
        for draw in (*first, pareto, paired_differences, latency_sweep):
            if figure := draw(comparison):
                drawn[draw.__name__] = save(figure, results_dir / f"{draw.__name__}.png")[-1]
        calibrated = [{**vars(row), "ece": row.metrics["ece"]["value"]} for row in comparison.rows]
        drawn["reliability"] = reliability(calibrated, results_dir / "reliability.png")[-1]
        for row in comparison.rows:
            png = results_dir / f"{row.key}_confusion_matrix.png"
            pdf = drawn[png.stem] = png.with_suffix(".pdf")
            if not (row.record and png.is_file() and pdf.is_file()):
                confusion_matrix(row.labels, row.logits, row.label, png, comparison.classes)
    return drawn
