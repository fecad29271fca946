"""The figures of the metrics study, as wide as the report's page, so that letters keep their size.

In both heat maps green means that a metric sees the damage, brown that it prefers the damaged text.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...models import variants
from ...style import FAINT, INK, look, save
from .edits import EDITS

WIDTH = 6.6  # inches
# Points; print needs six.
LETTERS = {"font.size": 7, "axes.titlesize": 8.5, "axes.labelsize": 8, "figure.titlesize": 9}


def draw(figure_of: Callable[[pd.DataFrame], Figure], table: pd.DataFrame, path: Path):
    """Save `figure_of(table)` beside `path`; returns the files."""
    with look(), matplotlib.rc_context(LETTERS):
        return save(figure_of(table), path)


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


def _heatmap(values: pd.DataFrame, height: float, low: float, high: float, meaning: str) -> Figure:
    figure = _figure(height)
    axes = figure.subplots()
    numbers = values.map("{:z.2f}".format).replace("-", "−", regex=True)
    style = {"annot": numbers, "fmt": "", "annot_kws": {"size": 6.2}, "linewidths": 0.4}
    bar = {"label": meaning, "fraction": 0.03, "pad": 0.015}
    sns.heatmap(values, vmin=low, vmax=high, cmap="BrBG", ax=axes, cbar_kws=bar, **style)
    axes.tick_params(length=0)
    axes.set_xticks(axes.get_xticks(), values.columns, rotation=40, ha="right")
    return figure


def _pivot(table: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """Metric x `columns`, both in the order of `table`."""
    return table.pivot_table(values, "metric", columns, sort=False)


def edit_heatmap(table: pd.DataFrame) -> Figure:
    """Metric x edit at its greatest strength: mean fall in standard deviations."""
    strongest = table.groupby(["metric", "edit"])["strength"].transform("max")
    chosen = _pivot(table[table["strength"] == strongest], "edit", "mean_fall")
    effects = {edit.name: edit.effect for edit in EDITS if edit.name in chosen}
    height = 0.24 * len(chosen) + 1.7
    figure = _heatmap(chosen[list(effects)], height, -1.5, 1.5, "mean fall (std. dev.)")
    axes = figure.axes[0]
    axes.set_title("How far each metric falls after an edit", loc="left", pad=24)
    # EDITS come by effect.
    previous = None
    for column, effect in enumerate(effects.values()):
        if effect != previous:
            axes.axvline(column, color=INK, linewidth=1.2 * (column > 0))
            axes.text(column + 0.08, -0.2, effect, color=INK, style="italic", rotation=20)
        previous = effect
    return figure


def human_agreement(table: pd.DataFrame) -> Figure:
    """Summary-level Spearman with its interval."""
    rows = table.query("level == 'summary' and statistic == 'spearman'")
    rows = rows[~rows["metric"].str.startswith("SCS ")][::-1]
    figure = _figure(0.17 * rows["metric"].nunique() + 1)
    panels = figure.subplots(1, rows["quality"].nunique(), sharey=True)
    for axes, (quality, here) in zip(panels, rows.groupby("quality"), strict=True):
        colours = [INK if name == "SCS" else FAINT for name in here["metric"]]
        axes.hlines(here["metric"], here["low"], here["high"], colours, linewidth=1.4)
        axes.scatter(here["value"], here["metric"], 14, colours, zorder=2)
        axes.plot(here["published"], here["metric"], "x", color=INK, markersize=4, zorder=3)
        axes.axvline(0, color=FAINT, linewidth=0.8)
        axes.set_title(quality)
        axes.grid(axis="x")
    panels[0].set_ylabel("metric, and what it reads")
    figure.suptitle("Agreement with people's ratings (SummEval)", weight="bold")
    what = "summary-level Spearman, 95% interval over documents; black: SCS; ×: published"
    figure.supxlabel(what)
    return figure


def coherence_controls(table: pd.DataFrame) -> Figure:
    """Metric x control: fraction of damaged versions put below the original."""
    shown = _pivot(table, "control", "prefers_original")
    figure = _heatmap(shown, 0.22 * len(shown) + 1.5, 0, 1, "fraction put below")
    figure.axes[0].set_title("Damaged versions put below the original", loc="left")
    return figure


def quantization_cost(table: pd.DataFrame) -> Figure:
    rows = table[table["scheme"] != variants.BASELINE.key].iloc[::-1]
    rows = rows.assign(other=1 - rows["top1_agreement"])
    styles = variants.style(rows["scheme"])
    panels = (
        ("perplexity, times FP32", "ratio", ["ratio_low", "ratio_high"]),
        ("KL from FP32, nats per token", "kl_mean", ["kl_low", "kl_high"]),
        ("other first choice, fraction", "other", ["other", "other"]),
    )
    figure = _figure(0.26 * len(rows) + 1.1)
    all_axes = figure.subplots(1, 3, sharey=True)
    for axes, (title, value, interval) in zip(all_axes, panels, strict=True):
        for _, row in rows.iterrows():
            colour, marker = styles[row["scheme"]]
            axes.plot(row[interval], [row["label"]] * 2, color=colour, linewidth=1.6)
            axes.plot(row[value], row["label"], marker, color=colour, markersize=5)
        axes.set_xlabel(title)
        axes.margins(x=0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.grid(axis="x")
    title = "What each variant costs the language model, 95% interval over texts"
    figure.suptitle(title, weight="bold")
    return figure
