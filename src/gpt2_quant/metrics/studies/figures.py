"""The figures of the metrics study, in the look of `plots.py`."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...models.variants import BASELINE, style
from ...style import FAINT, INK, look, save
from .edits import EDITS

_FALL = LinearSegmentedColormap.from_list("fall", ["#2b6ca3", "#ffffff", "#b5452c"])
_SHARE = LinearSegmentedColormap.from_list("share", ["#b5452c", "#ffffff", "#2b6ca3"])


def _grid(
    axes,
    values: np.ndarray,
    rows: list[str],
    columns: list[str],
    limits: tuple[float, float],
    cmap,
    form: str,
) -> None:
    """A labelled heat map with its numbers written in."""
    axes.imshow(values, cmap=cmap, vmin=limits[0], vmax=limits[1], aspect="auto")
    middle, half = sum(limits) / 2, (limits[1] - limits[0]) / 2
    for row, column in np.ndindex(values.shape):
        value = values[row, column]
        strong = np.isfinite(value) and abs(value - middle) > 0.7 * half
        text = (
            form.format(value).replace("-0.00", "0.00").replace("-", "−")
            if np.isfinite(value)
            else "–"
        )
        axes.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            color="white" if strong else INK,
            fontsize=7.5,
        )
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def edit_heatmap(table: pd.DataFrame, path: Path) -> list[Path]:
    """Metric x edit, each at its greatest strength: mean fall in standard deviations; red means
    noticed.
    """
    chosen = table[
        table["strength"] == table.groupby(["metric", "edit"])["strength"].transform("max")
    ]
    edits = [edit.name for edit in EDITS if edit.name in set(chosen["edit"])]
    metrics = list(dict.fromkeys(chosen["metric"]))
    values = (
        chosen.pivot(index="metric", columns="edit", values="mean_fall")
        .reindex(metrics)[edits]
        .to_numpy()
    )
    effect = dict(zip(chosen["edit"], chosen["effect"], strict=True))
    with look():
        figure = Figure(figsize=(9.6, 0.34 * len(metrics) + 1.7), layout="constrained")
        axes = figure.subplots()
        _grid(axes, values, metrics, edits, (-1.5, 1.5), _FALL, "{:.2f}")
        previous = None
        for column, edit in enumerate(edits):
            if effect[edit] != previous:
                if previous is not None:
                    axes.axvline(column - 0.5, color=INK, linewidth=1.2)
                axes.text(
                    column - 0.42,
                    -0.72,
                    effect[edit],
                    fontsize=8.5,
                    color=INK,
                    style="italic",
                    ha="left",
                )
                previous = effect[edit]
        return save(figure, path)


def human_agreement(table: pd.DataFrame, path: Path) -> list[Path]:
    """Summary-level Spearman with its interval, a panel a quality, a line a metric; the published
    value as a cross.
    """
    rows = table[(table["level"] == "summary") & (table["statistic"] == "spearman")]
    rows = rows[~rows["metric"].str.startswith("SCS ")]
    qualities, metrics = (
        list(dict.fromkeys(rows["quality"])),
        list(dict.fromkeys(rows["metric"]))[::-1],
    )
    with look():
        figure = Figure(figsize=(9.6, 0.24 * len(metrics) + 1.0), layout="constrained")
        for axes, quality in zip(
            figure.subplots(1, len(qualities), sharey=True), qualities, strict=True
        ):
            here = rows[rows["quality"] == quality].set_index("metric").loc[metrics]
            for y, name in enumerate(metrics):
                colour = "#b5452c" if name == "SCS" else "#1f4e79"
                axes.plot(
                    [here["low"].iloc[y], here["high"].iloc[y]], [y, y], color=colour, linewidth=1.4
                )
                axes.plot(here["value"].iloc[y], y, "o", color=colour, markersize=4)
            axes.plot(
                here["published"], range(len(metrics)), "x", color=FAINT, markersize=5, zorder=0
            )
            axes.axvline(0, color=FAINT, linewidth=0.8)
            axes.set_title(quality)
            axes.set_yticks(range(len(metrics)), metrics)
            axes.grid(axis="x")
        figure.supxlabel(
            "Spearman with human ratings, mean over documents, 95% interval; × published",
            fontsize=9,
        )
        return save(figure, path)


def coherence_controls(table: pd.DataFrame, path: Path) -> list[Path]:
    """Metric x control: share of damaged versions put below the original; 0.5 is white, blue is
    right, red is wrong.
    """
    shown = table.pivot(index="metric", columns="control", values="prefers_original")
    shown = shown.reindex(list(dict.fromkeys(table["metric"])))[
        list(dict.fromkeys(table["control"]))
    ]
    with look():
        figure = Figure(figsize=(9.6, 0.27 * len(shown) + 1.3), layout="constrained")
        _grid(
            figure.subplots(),
            shown.to_numpy(),
            list(shown.index),
            list(shown.columns),
            (0, 1),
            _SHARE,
            "{:.2f}",
        )
        return save(figure, path)


def quantization_cost(table: pd.DataFrame, path: Path) -> list[Path]:
    """Scheme against what it costs the language model: perplexity ratio, mean KL, disagreement of
    the first choice.
    """
    rows = table[table["scheme"] != BASELINE.key].iloc[::-1]
    styles = style(list(table["scheme"]))
    panels = (
        ("perplexity, times FP32", rows["ratio"], rows["ratio_low"], rows["ratio_high"]),
        ("KL from FP32 (nats a token)", rows["kl_mean"], rows["kl_low"], rows["kl_high"]),
        ("other first choice (share of tokens)", 1 - rows["top1_agreement"], None, None),
    )
    with look():
        figure = Figure(figsize=(9.6, 0.32 * len(rows) + 1.0), layout="constrained")
        for axes, (title, values, low, high) in zip(
            figure.subplots(1, 3, sharey=True), panels, strict=True
        ):
            for y, key in enumerate(rows["scheme"]):
                colour, marker = styles[key]
                if low is not None:
                    axes.plot([low.iloc[y], high.iloc[y]], [y, y], color=colour, linewidth=1.6)
                axes.plot(values.iloc[y], y, marker, color=colour, markersize=5)
            axes.set_yticks(range(len(rows)), rows["label"])
            axes.set_xlabel(title)
            axes.margins(x=0.08)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="x")
        return save(figure, path)
