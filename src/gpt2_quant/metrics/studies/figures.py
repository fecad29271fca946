"""The figures of the metrics study."""

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ...models import variants
from ...style import FAINT, INK, look, save
from .edits import EDITS

RED, BLUE = "#b5452c", "#1f4e79"


def _heatmap(axes: Axes, values: pd.DataFrame, low: float, high: float, colours: str) -> None:
    numbers = values.map("{:z.2f}".format).replace("-", "−", regex=True)
    style = {"annot": numbers, "fmt": "", "annot_kws": {"size": 7.5}, "cbar": False}
    sns.heatmap(values, vmin=low, vmax=high, cmap=colours, ax=axes, **style)
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0)
    axes.set_xticks(axes.get_xticks(), values.columns, rotation=40, ha="right")


def _pivot(table: pd.DataFrame, columns: str, values: str) -> pd.DataFrame:
    """Metric x `columns`, both in the order of `table`."""
    return table.pivot_table(values, "metric", columns, sort=False)


def edit_heatmap(table: pd.DataFrame, path: Path) -> list[Path]:
    """Metric x edit at its greatest strength: mean fall in standard deviations."""
    strongest = table.groupby(["metric", "edit"])["strength"].transform("max")
    chosen = _pivot(table[table["strength"] == strongest], "edit", "mean_fall")
    effects = {edit.name: edit.effect for edit in EDITS if edit.name in chosen}
    with look():
        figure = Figure(figsize=(9.6, 0.34 * len(chosen) + 1.7), layout="constrained")
        axes = figure.subplots()
        _heatmap(axes, chosen[list(effects)], -1.5, 1.5, "vlag")
        # EDITS come by effect.
        previous = None
        for column, effect in enumerate(effects.values()):
            if effect != previous:
                axes.axvline(column, color=INK, linewidth=1.2 * (column > 0))
                axes.text(column + 0.08, -0.22, effect, fontsize=8.5, color=INK, style="italic")
            previous = effect
        return save(figure, path)


def human_agreement(table: pd.DataFrame, path: Path) -> list[Path]:
    """Summary-level Spearman with its interval."""
    rows = table.query("level == 'summary' and statistic == 'spearman'")
    rows = rows[~rows["metric"].str.startswith("SCS ")][::-1]
    qualities = list(table["quality"].unique())
    with look():
        figure = Figure(figsize=(9.6, 0.24 * rows["metric"].nunique() + 1), layout="constrained")
        panels = figure.subplots(1, len(qualities), sharey=True)
        for axes, quality in zip(panels, qualities, strict=True):
            here = rows[rows["quality"] == quality]
            colours = [RED if name == "SCS" else BLUE for name in here["metric"]]
            axes.hlines(here["metric"], here["low"], here["high"], colours, linewidth=1.4)
            axes.scatter(here["value"], here["metric"], 16, colours, zorder=2)
            axes.plot(here["published"], here["metric"], "x", color=FAINT, markersize=5, zorder=0)
            axes.axvline(0, color=FAINT, linewidth=0.8)
            axes.set_title(quality)
            axes.grid(axis="x")
        title = "Spearman with human ratings, mean over documents, 95% interval; × published"
        figure.supxlabel(title, fontsize=9)
        return save(figure, path)


def coherence_controls(table: pd.DataFrame, path: Path) -> list[Path]:
    """Metric x control: fraction of damaged versions put below the original."""
    shown = _pivot(table, "control", "prefers_original")
    with look():
        figure = Figure(figsize=(9.6, 0.27 * len(shown) + 1.3), layout="constrained")
        _heatmap(figure.subplots(), shown, 0, 1, "vlag_r")
        return save(figure, path)


def quantization_cost(table: pd.DataFrame, path: Path) -> list[Path]:
    rows = table[table["scheme"] != variants.BASELINE.key].iloc[::-1]
    rows = rows.assign(other=1 - rows["top1_agreement"])
    styles = variants.style(rows["scheme"])
    panels = (
        ("perplexity, times FP32", "ratio", ["ratio_low", "ratio_high"]),
        ("KL from FP32 (nats per token)", "kl_mean", ["kl_low", "kl_high"]),
        ("other first choice (fraction of tokens)", "other", ["other", "other"]),
    )
    with look():
        figure = Figure(figsize=(9.6, 0.32 * len(rows) + 1), layout="constrained")
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
        return save(figure, path)
