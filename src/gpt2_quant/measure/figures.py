"""Confusion matrix, reliability, quantization error. Each function returns the PNG and the PDF."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn import metrics

from ..data.labels import LABELS
from ..models.variants import style
from ..style import FAINT, INK, WIDEST, look, save
from .scores import reliability as reliability_bins


def confusion_matrix(
    labels: np.ndarray, logits: np.ndarray, title: str, path: Path, names: Sequence[str] = LABELS
) -> list[Path]:
    """Colour: the fraction of the row. Up to 8 classes a cell holds its count and that fraction, up
    to 20 its count; beyond, classes that are taken for one another stand side by side, and the
    ten most frequent confusions are listed.

    labels [n] in [0, C); logits [n, C].
    """
    n, n_classes = logits.shape
    predicted = logits.argmax(axis=1)
    names = names if len(names) == n_classes else [str(number) for number in range(n_classes)]
    # A dollar sign would begin a formula.
    names = [textwrap.shorten(name, 32, placeholder="…").replace("$", r"\$") for name in names]
    counts = metrics.confusion_matrix(labels, predicted, labels=range(n_classes))
    fraction = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell, worst, words, font = (0.72, 0.6), "", None, None
    if n_classes <= FULL_CELLS:
        words = np.vectorize("{:,}\n{:.1%}".format)(counts, fraction)
    elif n_classes <= MOST_COUNTED:
        cell, words, font = (0.45, 0.36), np.where(counts, counts, "").astype(str), 7.0
    else:
        side = 17 / max(n_classes, 150)  # inches: letters of 6.5 points up to 150 classes
        cell, font, worst = (side, side), 6.5, _worst_pairs(counts, fraction, names)
        order = _similar_together(fraction)
        fraction, names = fraction[np.ix_(order, order)], [names[i] for i in order]
    with look():
        size = (1.6 + cell[0] * n_classes, 1.3 + cell[1] * n_classes + bool(worst) * 1.8)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        every = -(-n_classes // MOST_NAMED)  # beyond, some names stand for their neighbours
        # A square root spreads the small fractions.
        sns.heatmap(
            np.sqrt(fraction), vmin=0, vmax=1, cmap="Blues", annot=words, fmt="", cbar=False,
            xticklabels=False, yticklabels=False, ax=axes,
            annot_kws={"fontsize": font} if words is not None and font else None,
        )  # fmt: skip
        axes.set_xticks(np.arange(0, n_classes, every) + 0.5, names[::every], fontsize=font)
        axes.set_yticks(np.arange(0, n_classes, every) + 0.5, names[::every], fontsize=font)
        axes.tick_params(length=0)
        upright = n_classes > FULL_CELLS or max(map(len, names)) > LONG_NAME
        axes.tick_params(axis="x", rotation=90 * upright)
        axes.tick_params(axis="y", rotation=90 * (not upright))
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(title, loc="left", pad=20)
        note = f"accuracy {metrics.accuracy_score(labels, predicted):.4f}, n = {n:,}"
        note += "; colour: share of the true class" * (n_classes > FULL_CELLS)
        where: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(note, (0, 1), (0, 5), color=FAINT, **where)
        if worst:
            figure.supxlabel(worst, x=0.02, ha="left", fontsize=8)
        return save(figure, path)


FULL_CELLS, MOST_COUNTED, MOST_NAMED = 8, 20, 150
LONG_NAME = 12  # letters, which fill a cell's width


def _similar_together(fraction: np.ndarray) -> list[int]:
    """An order of the classes that keeps the often confused together: average linkage."""
    closeness = (fraction + fraction.T) / 2
    distance = 1 - closeness[np.triu_indices(len(fraction), 1)]
    return leaves_list(linkage(distance, "average")).tolist()


def _worst_pairs(counts: np.ndarray, fraction: np.ndarray, names: list[str], most=10) -> str:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    lines = ["Most frequent confusions (true → predicted: rows, share of the true class)"]
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        row, column = divmod(int(cell), len(counts))
        if wrong[row, column]:
            share = f"{wrong[row, column]:,}, {fraction[row, column]:.0%}"
            lines.append(f"{names[row]} → {names[column]}: {share}")
    return "\n".join(lines)


def reliability(variants: Sequence[dict], path: Path) -> list[Path]:
    """Accuracy against confidence in 15 equal-width bins, one panel per variant.

    Each is {key, label, labels, logits, ece, temperature}; with a temperature (fitted on
    validation) open circles show the rows after it. A circle's area is the fraction of rows.
    """
    columns = min(4, len(variants))
    n_rows = -(-len(variants) // columns)
    colours = style([variant["key"] for variant in variants])
    with look():
        size = (min(2.35 * columns + 0.4, WIDEST), 2.4 * n_rows + 0.8)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("Reliability: accuracy against confidence")
        grid = figure.subplots(n_rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes in grid[len(variants) :]:
            axes.set_visible(False)
        for variant, axes in zip(variants, grid, strict=False):
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
            note, temperature = f"ECE {variant['ece']:.3f}", variant["temperature"]
            colour, _ = colours[variant["key"]]
            _circles(axes, variant, 1.0, facecolors=colour, edgecolors="white", alpha=0.85)
            if temperature is not None:
                note += f"\nT = {temperature:.2f}"
                _circles(axes, variant, temperature, facecolors="none", edgecolors=INK)
            axes.set_title(variant["label"], loc="left", fontsize=9)
            axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top", fontsize=8, color=INK)
            axes.set(xlim=(0, 1.04), ylim=(0, 1.04))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(PercentFormatter(1))
            axes.tick_params(labelbottom=True)
            axes.grid()
        figure.supxlabel("confidence (probability of the predicted class)", fontsize=9)
        figure.supylabel("accuracy of the rows in the bin", fontsize=9)
        return save(figure, path)


def _circles(axes: Axes, variant: dict, temperature: float, **colours) -> None:
    bins = reliability_bins(variant["labels"], variant["logits"], temperature)
    area = 12 + 220 * bins["count"] / bins["count"].sum()
    where = bins["confidence"], bins["accuracy"]
    axes.scatter(*where, s=area, linewidths=0.8, clip_on=False, zorder=3, **colours)


def quantization_error(weights: pd.DataFrame, path: Path) -> list[Path]:
    """SQNR in dB (6 dB are one bit) of every matrix from `error_analysis.weight_errors`: one panel
    per scheme, each with a scale of its own, kinds of matrix across, layers downward.
    """
    layers = weights["layer"].map("{:.0f}".format, na_action="ignore").fillna(weights["matrix"])
    by_scheme = weights.assign(layer=layers).groupby("scheme", sort=False)
    columns = min(4, len(by_scheme))
    n_rows = -(-len(by_scheme) // columns)
    with look():
        size = (min(1.2 + 2.3 * columns, WIDEST), n_rows * (1.5 + 0.2 * layers.nunique()) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        figure.suptitle("Quantization error of the weights: SQNR (dB), more is better")
        panels = figure.subplots(n_rows, columns, sharey=True, squeeze=False)
        for axes in panels.flat[len(by_scheme) :]:
            axes.set_visible(False)
        for (scheme, rows), axes in zip(by_scheme, panels.flat, strict=False):
            grid = rows.pivot_table("sqnr_db", "layer", "matrix", sort=False)
            grid = grid.bfill(axis=1).ffill(axis=1)  # an embedding's one value fills its row
            grid = grid.drop(columns=grid.index.intersection(grid.columns))
            sns.heatmap(grid, cmap="cividis", ax=axes)
            axes.tick_params(length=0)
            axes.tick_params(axis="y", rotation=0)
            axes.set(xlabel="", ylabel="")
            title = str(scheme).replace(" per ", "\nper ").replace(" least", "\nleast")
            axes.set_title(f"{title}\n{rows['sqnr_db'].mean():.1f} dB", fontsize=9)
        for axes in panels[:, 0]:
            axes.set_ylabel("layer")
        return save(figure, path)
