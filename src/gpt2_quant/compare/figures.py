"""The comparison's figures: scores, costs, the trade-off between them, paired differences, sweep.

A row's colour and marker are its own in every figure; every point has its 95% interval; bars begin
at zero, and where an axis does not, it carries points instead and says so. Names stand on the
vertical axis or in a legend outside the panels and heights grow with the rows, so nothing overlaps.
"""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
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
PARTS = ("value", "low", "high")
SIDE_BY_SIDE = 0.03  # costs closer than this fraction are drawn side by side


def _rows_figure(rows: list[Row], n_panels: int, width: float) -> tuple[Figure, np.ndarray]:
    """A figure of panels side by side, a line for each row; the names are on the left one only."""
    figure = Figure(figsize=(width, 0.36 * len(rows) + 1.1), layout="constrained")
    panels = figure.subplots(1, n_panels, sharey=True)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
    return figure, panels


def _name_rows(axes: Axes, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set(ylim=(len(rows) - 0.4, -0.6), ylabel=None)  # the first row on top


def _draw_scores(axes: Axes, rows: list[Row], scores: list[dict], scale: float = 1) -> None:
    """One point with its interval for each row; values are multiplied by `scale`."""
    for y, (row, score) in enumerate(zip(rows, scores, strict=True)):
        value, low, high = (scale * score[part] for part in PARTS)
        interval = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar(
            value, y, xerr=interval, color=row.look[0], fmt=row.look[1], capsize=2.5, markersize=5.5
        )


def _row_handle(row: Row, line: str) -> Line2D:
    return Line2D([], [], color=row.look[0], marker=row.look[1], linestyle=line, label=row.label)


def _legend_below(figure: Figure, handles: list[Line2D], n_columns: int) -> None:
    n_columns = min(n_columns, len(handles))
    figure.legend(handles=handles, loc="outside lower center", ncols=n_columns, fontsize=8)


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
    _name_rows(panels[0], rows)
    figure.supxlabel("score, 95% interval; axes truncated (they do not begin at 0)", fontsize=9)
    return figure


def efficiency_comparison(comparison: Comparison) -> Figure:
    """Stored size, and eager and best latency with its median's 95% interval, as bars from zero."""
    rows, shape = comparison.rows, comparison.shape
    figure, (size, time) = _rows_figure(rows, 2, 10)
    _draw_sizes(size, rows)
    size.set_title("stored size", loc="left")
    size.set_xlabel("MB (2^20 bytes), and compression")
    modes = _draw_times(time, rows, comparison.timed)
    what = f", {shape[0]} texts x {shape[1]} tokens" if shape else ""
    time.set_title(f"time of a forward{what}", loc="left")
    kinds = "solid: eager, hatched: best mode" if "best" in modes else "eager"
    time.set_xlabel(f"ms, median and its 95% interval; {kinds}")
    for axes in (size, time):
        axes.margins(x=0.24)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    _name_rows(size, rows)
    return figure


def _draw_sizes(axes: Axes, rows: list[Row]) -> None:
    labels = []
    for row in rows:
        ratio = row.size.get("compression")
        note = f" ({ratio:.2f}x)" if ratio else ""
        labels.append(f"{row.size['stored_bytes'] / MIB:.2f}{note}" if row.size else "not known")
    bars = axes.barh(
        [row.key for row in rows],
        [row.size.get("stored_bytes", 0) / MIB for row in rows],
        height=0.62,
        color=[row.look[0] for row in rows],
    )
    axes.bar_label(bars, labels, padding=5, fontsize=8)


def _draw_times(axes: Axes, rows: list[Row], timed: list[Row]) -> list[str]:
    """Bars of the modes that were timed, which are returned; a row timed apart says so."""
    times = pd.DataFrame(
        {"key": row.key, "colour": row.look[0], "apart": row not in timed, **row.latency[mode]}
        for row in rows
        for mode in MODES
        if row.latency.get(mode)
    )
    for y, row in enumerate(rows):
        if not row.latency:
            axes.text(0, y, " not measured", va="center", fontsize=8, color=FAINT)
    if times.empty:
        return []
    modes = [mode for mode in MODES if mode in set(times["mode"])]
    sns.barplot(
        times, x="median_ms", y="key", order=[row.key for row in rows], hue="mode",
        hue_order=modes, errorbar=None, legend=False, ax=axes,
    )  # fmt: skip
    for mode, bars in zip(modes, list(axes.containers), strict=True):
        of_mode = times[times["mode"] == mode].to_dict("records")
        for bar, time in zip(bars, of_mode, strict=True):
            value, high, colour = time["median_ms"], time["median_high_ms"], time["colour"]
            bar.set(facecolor=colour, edgecolor=colour)
            if mode == "best":
                bar.set(facecolor="none", hatch="////")
            y = bar.get_y() + bar.get_height() / 2
            error = [[value - time["median_low_ms"]], [high - value]]
            axes.errorbar(value, y, xerr=error, fmt="none", elinewidth=0.8, ecolor=INK)
            note = f"  {value:.2f}" + " * other session" * time["apart"]
            axes.text(high, y, note, va="center", fontsize=7)
    return modes


def pareto(comparison: Comparison) -> Figure | None:
    """Accuracy against stored size and against latency, on logarithmic cost axes; the front joins
    the rows that no row beats in both. None when neither cost is known of any row.
    """
    sized = [(row, row.size["stored_bytes"] / MIB) for row in comparison.rows if row.size]
    timed = [(row, row.fastest["median_ms"]) for row in comparison.timed]
    if not (sized or timed):
        return None
    rows = [row for row in comparison.rows if row.size or row in comparison.timed]
    figure = Figure(figsize=(10, 3.6 + 0.17 * -(-len(rows) // 4)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_trade_off(left, sized, "stored size, MB (2^20 bytes), log scale")
    _draw_trade_off(right, timed, "time of a forward, faster mode, ms, log scale")
    left.set_ylabel("accuracy, 95% interval (axis truncated)")
    _legend_below(figure, [_row_handle(row, "") for row in rows], 4)
    return figure


def _draw_trade_off(axes: Axes, costs: list[tuple[Row, float]], label: str) -> None:
    axes.set_xlabel(label)
    axes.grid()
    if not costs:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=FAINT)
        return
    points, x = [], 0.0
    for row, cost in sorted(costs, key=lambda pair: pair[1]):
        value, low, high = (row.metrics["accuracy"][part] for part in PARTS)
        points.append((cost, value))
        interval = [[value - low], [high - value]]
        x = max(cost, x * (1 + SIDE_BY_SIDE))
        axes.errorbar(
            x, value, yerr=interval, color=row.look[0], fmt=row.look[1], capsize=2.5,
            markersize=7, alpha=0.9,
        )  # fmt: skip
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
    _name_rows(panels[0], rows)
    caption = "points; 95% interval of the paired bootstrap; shaded: the margin of equivalence"
    figure.supxlabel(caption, fontsize=9)
    return figure


def latency_sweep(comparison: Comparison) -> Figure | None:
    """Time of a forward over batch sizes, one panel per text length. None for one shape only."""
    rows, sweep = comparison.timed, comparison.sweep()
    if len(sweep[["batch_size", "seq_len"]].drop_duplicates()) < 2:
        return None
    lengths, sizes = np.unique(sweep["seq_len"]), np.unique(sweep["batch_size"])
    size = (3.4 * len(lengths) + 1.2, 3.4 + 0.17 * -(-len(rows) // 4))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    lines = dict(zip(MODES, ("-", ":"), strict=True))
    for axes, length in zip(panels, lengths, strict=True):
        at_length = sweep[sweep["seq_len"] == length].sort_values("batch_size")
        for row, mode in product(rows, MODES):
            curve = at_length[(at_length["key"] == row.key) & (at_length["mode"] == mode)]
            x, y = curve["batch_size"], curve["median_ms"]
            colour, marker = row.look
            axes.plot(x, y, marker + lines[mode], color=colour, markersize=4, linewidth=1.1)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, sizes)
        axes.xaxis.set_minor_locator(NullLocator())
        _log_ticks(axes.yaxis)
        axes.set_title(f"{length} tokens", loc="left")
        axes.set_xlabel("texts a batch")
        axes.grid()
    panels[0].set_ylabel("ms a forward, median (log scale)")
    handles = [_row_handle(row, "-") for row in rows]
    if "best" in set(sweep["mode"]):
        handles += [Line2D([], [], linestyle=lines[m], color=INK, label=m) for m in MODES]
    _legend_below(figure, handles, 5)
    return figure


def draw_all(comparison: Comparison, results_dir: Path) -> dict[str, Path]:
    """Every figure of the comparison into `results_dir`; figure name -> its PDF, in the order of
    the report. A figure that would be empty is not drawn.
    """
    drawn = {}
    with look():
        for draw in (
            performance_comparison, efficiency_comparison, pareto, paired_differences, latency_sweep
        ):  # fmt: skip
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
