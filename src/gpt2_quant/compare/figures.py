"""The comparison's figures: scores, costs, the trade-off between them, paired differences, the
latency sweep.

Rules that all follow: a row's colour and marker are its own in every figure (`plots.py`); every
point has its 95% interval; bars begin at zero; where an axis does not, it carries points instead of
bars and says so; names stand on the vertical axis or in a legend outside the panels, and heights
grow with the rows, so nothing overlaps at any number of them.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from ..measure.figures import confusion_matrix, reliability
from ..models.variants import style
from ..style import FAINT, INK, look, save
from .comparison import MIB, Comparison, Row

SCORES = {
    "accuracy": "accuracy",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "f1_macro": "macro F1",
}


def _rows_figure(
    count: int, panels: int, width: float, extra: float = 0.9
) -> tuple[Figure, np.ndarray]:
    """A figure of `panels` side by side whose height holds `count` rows, names on the left one
    only.
    """
    figure = Figure(figsize=(width, 0.36 * count + extra), layout="constrained")
    return figure, figure.subplots(1, panels, sharey=True, squeeze=False)[0]


def _name_rows(axes: Axes, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    for panel in axes.figure.axes:
        panel.tick_params(axis="y", length=0)


def _point(axes: Axes, x: tuple[float, float, float], y: float, look_of: tuple[str, str]) -> None:
    """One value with its interval, x = (value, low, high), in a variant's colour and marker."""
    value, low, high = x
    colour, marker = look_of
    interval = [[max(value - low, 0)], [max(high - value, 0)]]
    axes.errorbar(value, y, xerr=interval, fmt=marker, color=colour, capsize=2.5, markersize=5.5)


def _legend_handles(
    axes: Axes, rows: list[Row], looks: dict[str, tuple[str, str]], line: str
) -> list:
    """Empty curves in each row's colour and marker, for a legend outside the panels."""
    return [
        axes.plot([], [], looks[row.key][1] + line, color=looks[row.key][0], label=row.label)[0]
        for row in rows
    ]


def performance_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Accuracy and macro precision, recall and F1 of every row with 95% intervals, the baseline's
    value as a line.
    """
    rows = comparison.present
    looks = style([row.key for row in rows])
    reference = comparison.row(comparison.baseline)
    with look():
        figure, panels = _rows_figure(len(rows), len(SCORES), 11.5)
        for axes, (name, title) in zip(panels, SCORES.items(), strict=True):
            axes.axvline(
                reference.metrics[name]["value"], color=FAINT, linewidth=0.8, linestyle="--"
            )
            for y, row in enumerate(rows):
                score = row.metrics[name]
                _point(axes, (score["value"], score["low"], score["high"]), y, looks[row.key])
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_title(title, loc="left")
            axes.grid(axis="x")
        _name_rows(panels[0], rows)
        figure.supxlabel("score, 95% interval; axes truncated (they do not begin at 0)", fontsize=9)
        return save(figure, path)


def efficiency_comparison(comparison: Comparison, path: Path) -> list[Path]:
    """Stored size, eager and best latency of every row as bars from zero; latency with its median's
    95% interval.
    """
    rows = comparison.present
    looks = style([row.key for row in rows])
    with look():
        figure, (size, time) = _rows_figure(len(rows), 2, 10, extra=1.15)
        for y, row in enumerate(rows):
            colour = looks[row.key][0]
            if row.size:
                megabytes = row.size["stored_bytes"] / MIB
                ratio = row.size["compression"]
                size.barh(y, megabytes, 0.62, color=colour)
                size.text(
                    megabytes,
                    y,
                    f"  {megabytes:.2f}" + (f" ({ratio:.2f}x)" if ratio else ""),
                    va="center",
                    fontsize=8,
                )
            else:
                size.text(0, y, " not known", va="center", fontsize=8, color=FAINT)
            _latency_bars(time, row, y, colour)
        size.set_title("stored size", loc="left")
        size.set_xlabel("MB (2^20 bytes), and compression")
        shape = next((row.latency["shape"] for row in rows if row.latency), None)
        what = f", {shape[0]} texts x {shape[1]} tokens" if shape else ""
        time.set_title(f"time of a forward{what}", loc="left")
        best = any(row.latency and row.latency["best"] for row in rows)
        time.set_xlabel(
            "ms, median and its 95% interval; "
            + ("solid: eager, hatched: best mode" if best else "eager")
        )
        for axes in (size, time):
            axes.margins(x=0.24)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.grid(axis="x")
        _name_rows(size, rows)
        return save(figure, path)


def _latency_bars(axes: Axes, row: Row, y: float, colour: str) -> None:
    """The eager bar and the best mode's below it, each with its median; a row timed apart says so."""
    latency = row.latency
    if not latency:
        axes.text(0, y, " not measured", va="center", fontsize=8, color=FAINT)
        return
    hatched = {"facecolor": "none", "edgecolor": colour, "hatch": "////"}
    both = latency["eager"] and latency["best"]
    for mode, side, fill in (("eager", -0.17, {"color": colour}), ("best", 0.17, hatched)):
        if entry := latency[mode]:
            value, offset, height = entry["median_ms"], *((side, 0.32) if both else (0, 0.62))
            error = [[value - entry["median_low_ms"]], [entry["median_high_ms"] - value]]
            axes.barh(
                y + offset,
                value,
                height,
                xerr=error,
                error_kw={"elinewidth": 0.8, "ecolor": INK},
                **fill,
            )
            apart = "" if latency["same_session"] else " * other session"
            axes.text(
                entry["median_high_ms"],
                y + offset,
                f"  {value:.2f}{apart}",
                va="center",
                fontsize=7,
            )


def pareto(comparison: Comparison, path: Path) -> list[Path]:
    """Accuracy against stored size and against latency; the front is drawn through the rows that no
    row beats in both.

    Only rows timed in the baseline's session take part on the right. Both cost axes are
    logarithmic. Rows whose costs are within 3% are drawn side by side, so that none hides another.
    Draws nothing when neither cost is known of any row.
    """
    rows = comparison.present
    looks = style([row.key for row in rows])
    sized = [(row, row.size["stored_bytes"] / MIB) for row in rows if row.size]
    timed = [
        (
            row,
            min(
                entry["median_ms"] for entry in (row.latency["eager"], row.latency["best"]) if entry
            ),
        )
        for row in rows
        if row.latency and row.latency["same_session"]
    ]
    if not (sized or timed):
        return []
    with look():
        figure = Figure(figsize=(10, 3.6 + 0.17 * -(-len(rows) // 4)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, points, label in (
            (panels[0], sized, "stored size, MB (2^20 bytes), log scale"),
            (panels[1], timed, "time of a forward, faster mode, ms, log scale"),
        ):
            axes.set_xlabel(label)
            axes.grid()
            if not points:
                axes.text(
                    0.5, 0.5, "not measured", ha="center", transform=axes.transAxes, color=FAINT
                )
                continue
            for (row, _), cost in zip(
                points, _side_by_side([cost for _, cost in points]), strict=True
            ):
                accuracy, (colour, marker) = row.metrics["accuracy"], looks[row.key]
                interval = [
                    [accuracy["value"] - accuracy["low"]],
                    [accuracy["high"] - accuracy["value"]],
                ]
                axes.errorbar(
                    cost,
                    accuracy["value"],
                    yerr=interval,
                    fmt=marker,
                    color=colour,
                    capsize=2.5,
                    markersize=7,
                    alpha=0.9,
                )
            front = pareto_front([(cost, row.metrics["accuracy"]["value"]) for row, cost in points])
            axes.step(
                *zip(*front, strict=True),
                where="post",
                color=FAINT,
                linewidth=1,
                linestyle=":",
                zorder=0,
            )
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.margins(x=0.12)
        panels[0].set_ylabel("accuracy, 95% interval (axis truncated)")
        drawn = {row.key for row, _ in sized + timed}
        handles = _legend_handles(panels[0], [row for row in rows if row.key in drawn], looks, "")
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8
        )
        return save(figure, path)


def _side_by_side(costs: list[float], apart: float = 0.03) -> list[float]:
    """Costs for drawing: within a run of costs closer than `apart` (relative), each is set that far
    from the one before.
    """
    drawn = list(costs)
    order = sorted(range(len(costs)), key=lambda i: costs[i])
    for before, after in zip(order, order[1:], strict=False):
        drawn[after] = max(costs[after], drawn[before] * (1 + apart))
    return drawn


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, value) points those that no cheaper or equally cheap point reaches in value, by
    rising cost.
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or value > front[-1][1]:
            front.append((cost, value))
    return front


def paired_differences(comparison: Comparison, path: Path) -> list[Path]:
    """Accuracy and macro F1 minus the baseline's with paired 95% intervals, in points, beside the
    equivalence margin.

    Draws nothing when there is no row but the baseline.
    """
    rows = [row for row in comparison.present if row.against]
    if not rows:
        return []
    looks = style([row.key for row in comparison.present])
    with look():
        figure, panels = _rows_figure(len(rows), 2, 10, extra=1.1)
        for axes, (name, title) in zip(
            panels, (("accuracy", "accuracy"), ("f1_macro", "macro F1")), strict=True
        ):
            margin = 100 * rows[0].against["margin"]
            axes.axvspan(-margin, margin, color="#e8eef3", zorder=0)
            axes.axvline(0, color=FAINT, linewidth=0.8)
            for y, row in enumerate(rows):
                difference = row.against["difference"][name]
                values = tuple(100 * difference[part] for part in ("value", "low", "high"))
                _point(axes, values, y, looks[row.key])
            axes.set_title(
                f"{title} minus {comparison.row(comparison.baseline).label}'s", loc="left"
            )
            axes.grid(axis="x")
        _name_rows(panels[0], rows)
        caption = "points; 95% interval of the paired bootstrap; shaded: the margin of equivalence"
        figure.supxlabel(caption, fontsize=9)
        return save(figure, path)


def latency_sweep(comparison: Comparison, path: Path) -> list[Path]:
    """Time of a forward over batch sizes, a panel a text length; eager and best mode. Empty when
    one shape was timed.
    """
    rows = [row for row in comparison.present if row.latency and row.latency["same_session"]]
    entries = [(row, entry) for row in rows for entry in row.source.record["latency"]]
    lengths = sorted({entry["seq_len"] for _, entry in entries})
    if len({(entry["batch_size"], entry["seq_len"]) for _, entry in entries}) < 2:
        return []
    sizes = sorted({entry["batch_size"] for _, entry in entries})
    looks = style([row.key for row in comparison.present])
    with look():
        figure = Figure(
            figsize=(3.4 * len(lengths) + 1.2, 3.4 + 0.17 * -(-len(rows) // 4)),
            layout="constrained",
        )
        panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
        for axes, length in zip(panels, lengths, strict=True):
            for row in rows:
                colour, marker = looks[row.key]
                for mode, line in (("eager", "-"), ("best", ":")):
                    curve = sorted(
                        (entry["batch_size"], entry["median_ms"])
                        for owner, entry in entries
                        if owner is row and (entry["seq_len"], entry["mode"]) == (length, mode)
                    )
                    if curve:
                        axes.plot(
                            *zip(*curve, strict=True),
                            marker + line,
                            color=colour,
                            markersize=4,
                            linewidth=1.1,
                        )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, sizes)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{length} tokens", loc="left")
            axes.set_xlabel("texts a batch")
            axes.grid()
        panels[0].set_ylabel("ms a forward, median (log scale)")
        handles = _legend_handles(panels[0], rows, looks, "-")
        if any(entry["mode"] == "best" for _, entry in entries):
            for mode, line in (("eager", "-"), ("best mode", ":")):
                handles += panels[0].plot([], [], line, color=INK, label=mode)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8
        )
        return save(figure, path)


def draw_all(comparison: Comparison, results_dir: Path) -> dict[str, Path]:
    """Every figure of the comparison into `results_dir`; figure name -> its PDF, in the order of
    the report.

    Files: the published names, then pareto, paired_differences, latency_sweep and reliability. A
    figure that would be empty is not drawn.
    """
    drawn = {}
    for name, draw in (
        ("performance_comparison", performance_comparison),
        ("efficiency_comparison", efficiency_comparison),
        ("pareto", pareto),
        ("paired_differences", paired_differences),
        ("latency_sweep", latency_sweep),
    ):
        if files := draw(comparison, results_dir / f"{name}.png"):
            drawn[name] = files[-1]
    calibrated = [
        {
            "key": row.key,
            "label": row.label,
            "labels": row.source.labels,
            "logits": row.source.logits,
            "ece": row.metrics["ece"]["value"],
            "temperature": row.temperature,
        }
        for row in comparison.present
    ]
    drawn["reliability"] = reliability(calibrated, results_dir / "reliability.png")[-1]
    for row in comparison.present:
        name = f"{row.key}_confusion_matrix"
        drawn[name] = results_dir / f"{name}.pdf"
        # Ours are drawn when the predictions are made (evaluation.py), and are still of these
        # predictions.
        if row.source.record is None or not (
            drawn[name].is_file() and drawn[name].with_suffix(".png").is_file()
        ):
            confusion_matrix(
                row.source.labels, row.source.logits, row.label, results_dir / f"{name}.png"
            )
    return drawn
