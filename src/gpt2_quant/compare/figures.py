"""The comparison's figures: scores, costs, the trade-off between them, paired differences, sweep.

A row's colour and marker are its own in every figure; every point has its 95% interval; bars begin
at zero, and where an axis does not, it carries points instead and says so. Names stand on the
vertical axis or in a legend outside the panels and heights grow with the rows, so nothing overlaps.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

from ..measure.figures import confusion_matrix, reliability
from ..style import FAINT, INK, look, save
from .comparison import MIB, MODES, Comparison, Row

SCORES = {
    "accuracy": "accuracy",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "f1_macro": "macro F1",
}
LINES = {"eager": "-", "best": ":"}
SIDE_BY_SIDE = 0.03  # costs closer than this fraction are drawn side by side


def _rows_figure(rows: list[Row], n_panels: int, width: float) -> tuple[Figure, np.ndarray]:
    """Panels side by side with a line for each row, the first on top, named on the left."""
    figure = Figure(figsize=(width, 0.36 * len(rows) + 1.1), layout="constrained")
    panels = figure.subplots(1, n_panels, sharey=True)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    panels[0].set_yticks(range(len(rows)), [row.label for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    return figure, panels


def _legend_figure(
    rows: list[Row], n_panels: int, size: tuple[float, float], line: str, others: list[Line2D]
) -> tuple[Figure, np.ndarray]:
    """Panels with one vertical axis, and a legend of the rows below."""
    width, height = size
    figure = Figure(figsize=(width, height + 0.17 * -(-len(rows) // 4)), layout="constrained")
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=line, label=row.label)
        for row in rows
        for colour, marker in [row.look]
    ]
    handles += others
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure, figure.subplots(1, n_panels, sharey=True, squeeze=False)[0]


def _interval(score: dict, scale: float = 1) -> tuple[float, list[list[float]]]:
    """A score's value, and how far its interval reaches to either side of it."""
    value, low, high = (scale * score[part] for part in ("value", "low", "high"))
    return value, [[max(value - low, 0)], [max(high - value, 0)]]


def _draw_scores(axes: Axes, rows: list[Row], scores: list[dict], scale: float = 1) -> None:
    for y, (row, score) in enumerate(zip(rows, scores, strict=True)):
        value, reach = _interval(score, scale)
        colour, marker = row.look
        axes.errorbar(value, y, xerr=reach, color=colour, fmt=marker, capsize=2.5, markersize=5.5)


def _log_ticks(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each decade, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def performance_comparison(comparison: Comparison) -> Figure:
    """Accuracy and macro precision, recall and F1 with 95% intervals, the baseline's as a line."""
    rows = comparison.rows
    figure, panels = _rows_figure(rows, len(SCORES), 11.5)
    for axes, (name, title) in zip(panels, SCORES.items(), strict=True):
        reference = comparison.baseline.metrics[name]["value"]
        axes.axvline(reference, color=FAINT, linewidth=0.8, linestyle="--")
        _draw_scores(axes, rows, [row.metrics[name] for row in rows])
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(title, loc="left")
    figure.supxlabel("score, 95% interval; axes truncated (they do not begin at 0)", fontsize=9)
    return figure


def efficiency_comparison(comparison: Comparison) -> Figure:
    """Stored size, and eager and best latency with its median's 95% interval, as bars from zero."""
    rows, shape = comparison.rows, comparison.shape
    figure, (sizes, times) = _rows_figure(rows, 2, 10)
    modes = [mode for mode in MODES if any(row.latency.get(mode) for row in rows)]
    for y, row in enumerate(rows):
        size = row.size.get("stored_bytes", 0) / MIB
        compression = row.size.get("compression")
        ratio = f" ({compression:.2f}x)" if compression else ""
        sizes.barh(y, size, height=0.62, color=row.look[0])
        sizes.text(size, y, f"  {size:.2f}{ratio}" if size else " not known", **SMALL)
        if not row.latency:
            times.text(0, y, " not measured", color=FAINT, **SMALL)
        for number, mode in enumerate(modes):
            if time := row.latency.get(mode):
                height = 0.8 / len(modes)
                _draw_time(times, y - 0.4 + (number + 0.5) * height, height, row, time)
    what = f", {shape[0]} texts x {shape[1]} tokens" if shape else ""
    kinds = "solid: eager, hatched: best mode" if "best" in modes else "eager"
    sizes.set_title("stored size", loc="left")
    sizes.set_xlabel("MB (2^20 bytes), and compression")
    times.set_title(f"time of a forward{what}", loc="left")
    times.set_xlabel(f"ms, median and its 95% interval; {kinds}")
    for axes in (sizes, times):
        axes.margins(x=0.24)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure


SMALL = {"va": "center", "fontsize": 8}


def _draw_time(axes: Axes, y: float, height: float, row: Row, time: dict) -> None:
    value, low, high = (time[f"median{end}_ms"] for end in ("", "_low", "_high"))
    colour = row.look[0]
    hatch, fill = ("////", "none") if time["mode"] == "best" else ("", colour)
    axes.barh(y, value, height, facecolor=fill, edgecolor=colour, hatch=hatch)
    reach = [[value - low], [high - value]]
    axes.errorbar(value, y, xerr=reach, fmt="none", elinewidth=0.8, ecolor=INK)
    apart = "" if row.latency["same_session"] else " * other session"
    axes.text(high, y, f"  {value:.2f}{apart}", va="center", fontsize=7)


def pareto(comparison: Comparison) -> Figure | None:
    """Accuracy against stored size and against latency, on logarithmic cost axes; the front joins
    the rows that no row beats in both. None when neither cost is known of any row.
    """
    sized = [(row, row.size["stored_bytes"] / MIB) for row in comparison.rows if row.size]
    timed = [(row, row.fastest["median_ms"]) for row in comparison.timed]
    rows = [row for row in comparison.rows if row.size or row in comparison.timed]
    if not rows:
        return None
    figure, (left, right) = _legend_figure(rows, 2, (10, 3.6), "", [])
    _draw_trade_off(left, sized, "stored size, MB (2^20 bytes), log scale")
    _draw_trade_off(right, timed, "time of a forward, faster mode, ms, log scale")
    left.set_ylabel("accuracy, 95% interval (axis truncated)")
    return figure


def _draw_trade_off(axes: Axes, costs: list[tuple[Row, float]], label: str) -> None:
    axes.set_xlabel(label)
    axes.grid()
    if not costs:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=FAINT)
        return
    points, x = [], 0.0
    for row, cost in sorted(costs, key=lambda pair: pair[1]):
        value, reach = _interval(row.metrics["accuracy"])
        points.append((cost, value))
        x = max(cost, x * (1 + SIDE_BY_SIDE))
        colour, marker = row.look
        axes.errorbar(x, value, yerr=reach, color=colour, fmt=marker, capsize=2.5, markersize=7)
    x_front, y_front = zip(*pareto_front(points), strict=True)
    axes.step(x_front, y_front, ":", where="post", color=FAINT, linewidth=1, zorder=0)
    axes.set_xscale("log")
    _log_ticks(axes.xaxis)
    axes.margins(x=0.12)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value) points those that none of at most their cost reaches in value, by cost."""
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def paired_differences(comparison: Comparison) -> Figure | None:
    """Accuracy and macro F1 minus the baseline's in points, with paired 95% intervals, beside the
    equivalence margin. None when there is no row but the baseline.
    """
    rows = comparison.others
    if not rows:
        return None
    figure, panels = _rows_figure(rows, 2, 10)
    margin = 100 * rows[0].against["margin"]
    for axes, name in zip(panels, ("accuracy", "f1_macro"), strict=True):
        axes.axvspan(-margin, margin, color="#e8eef3", zorder=0)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        _draw_scores(axes, rows, [row.against["difference"][name] for row in rows], scale=100)
        axes.set_title(f"{SCORES[name]} minus {comparison.baseline.label}'s", loc="left")
    caption = "points; 95% interval of the paired bootstrap; shaded: the margin of equivalence"
    figure.supxlabel(caption, fontsize=9)
    return figure


def latency_sweep(comparison: Comparison) -> Figure | None:
    """Time of a forward over batch sizes, one panel per text length. None for one shape only."""
    rows, sweep = comparison.timed, comparison.sweep().sort_values("batch_size", kind="stable")
    if len(sweep[["batch_size", "seq_len"]].drop_duplicates()) < 2:
        return None
    lengths, sizes = sweep["seq_len"].nunique(), sweep["batch_size"].unique()
    looks, both = {row.key: row.look for row in rows}, "best" in set(sweep["mode"])
    modes = [Line2D([], [], linestyle=line, color=INK, label=m) for m, line in LINES.items()]
    size = (3.4 * lengths + 1.2, 3.4)
    figure, panels = _legend_figure(rows, lengths, size, "-", modes if both else [])
    for axes, (length, at_length) in zip(panels, sweep.groupby("seq_len"), strict=True):
        for (key, mode), curve in at_length.groupby(["key", "mode"], sort=False):
            colour, marker = looks[key]
            line = {"color": colour, "marker": marker, "linestyle": LINES[mode]}
            axes.plot("batch_size", "median_ms", data=curve, markersize=4, linewidth=1.1, **line)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, sizes)
        axes.xaxis.set_minor_locator(NullLocator())
        _log_ticks(axes.yaxis)
        axes.set_title(f"{length} tokens", loc="left")
        axes.set_xlabel("texts a batch")
        axes.grid()
    panels[0].set_ylabel("ms a forward, median (log scale)")
    return figure


FIGURES = (
    performance_comparison, efficiency_comparison, pareto, paired_differences, latency_sweep
)  # fmt: skip


def draw_all(comparison: Comparison, results_dir: Path) -> dict[str, Path]:
    """Every figure of the comparison into `results_dir`; figure name -> its PDF, in the order of
    the report. A figure that would be empty is not drawn.
    """
    drawn = {}
    with look():
        for draw in FIGURES:
            if figure := draw(comparison):
                drawn[draw.__name__] = save(figure, results_dir / f"{draw.__name__}.png")[-1]
    calibrated = [{**vars(row), "ece": row.metrics["ece"]["value"]} for row in comparison.rows]
    drawn["reliability"] = reliability(calibrated, results_dir / "reliability.png")[-1]
    for row in comparison.rows:
        name = f"{row.key}_confusion_matrix"
        png, drawn[name] = results_dir / f"{name}.png", results_dir / f"{name}.pdf"
        # Ours are drawn when their predictions are made, and are still of these predictions.
        if not (row.record and png.is_file() and drawn[name].is_file()):
            confusion_matrix(row.labels, row.logits, row.label, png)
    return drawn
