"""Confusion matrix, reliability, quantization error. Each function returns the PNG and the PDF."""

from collections.abc import Sequence
from pathlib import Path

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
    """Colour: the fraction of the row; labels [n] in [0, C), logits [n, C].

    Up to 8 classes a cell holds its count and that fraction, up to 20 its count; beyond, confused
    classes stand side by side, and the ten most frequent confusions are listed.
    """
    n, n_classes = logits.shape
    predicted = logits.argmax(axis=1)
    names = names if len(names) == n_classes else [str(number) for number in range(n_classes)]
    # Cut in mid-word, too: a name may be one word. A dollar sign would begin a formula.
    names = [" ".join(name.split()) for name in names]
    names = [(x if len(x) <= 32 else f"{x[:31]}…").replace("$", r"\$") for x in names]
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
        # Inches: the note below the title, upright names and the list of confusions want theirs.
        width = max(1.6 + cell[0] * n_classes, 6.5 if worst else 4)
        below = 1.9 + 0.05 * max(map(len, names)) if worst else 0
        size = (width, 1.3 + cell[1] * n_classes + below)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        every = -(-n_classes // MOST_NAMED)  # beyond, some names stand for their neighbours
        # A square root spreads the small fractions.
        sns.heatmap(
            np.sqrt(fraction), vmin=0, vmax=1, cmap="Blues", annot=words, fmt="", cbar=False,
            xticklabels=False, yticklabels=False, ax=axes, annot_kws={"fontsize": font},
        )  # fmt: skip
        ticks = np.arange(0, n_classes, every) + 0.5
        upright = n_classes > FULL_CELLS or max(map(len, names)) > LONG_NAME
        axes.set_xticks(ticks, names[::every], fontsize=font, rotation=90 * upright)
        axes.set_yticks(ticks, names[::every], fontsize=font, rotation=90 * (not upright))
        axes.tick_params(length=0)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(title, loc="left", pad=20)
        note = f"accuracy {metrics.accuracy_score(labels, predicted):.4f}, n = {n:,}"
        note += "; colour: share of the true class" * (n_classes > FULL_CELLS)
        axes.annotate(note, (0, 1), (0, 5), "axes fraction", "offset points", color=FAINT)
        if worst:
            figure.supxlabel(f"\n{worst}", x=0.02, ha="left", fontsize=8)
        return save(figure, path)


FULL_CELLS, MOST_COUNTED, MOST_NAMED = 8, 20, 150
LONG_NAME = 12  # letters, which fill a cell's width


def _similar_together(fraction: np.ndarray) -> list[int]:
    """An order of the classes that keeps the often confused together: average linkage."""
    distance = 1 - (fraction + fraction.T)[np.triu_indices(len(fraction), 1)] / 2
    return leaves_list(linkage(distance, "average")).tolist()


def _worst_pairs(counts: np.ndarray, fraction: np.ndarray, names: list[str]) -> str:
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    lines = ["Most frequent confusions (true → predicted: rows, share of the true class)"]
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:10]:
        row, column = np.unravel_index(cell, wrong.shape)
        if n := wrong[row, column]:
            lines.append(f"{names[row]} → {names[column]}: {n:,}, {fraction[row, column]:.0%}")
    return "\n".join(lines)


def _panels(n: int, height: float, sharex=False) -> tuple[Figure, np.ndarray]:
    """A figure with `n` panels, `height` inches each, in rows of four: Axes [rows, columns]."""
    columns = min(4, n)
    n_rows = -(-n // columns)
    size = (min(2.35 * columns + 0.8, WIDEST), height * n_rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(n_rows, columns, squeeze=False, sharex=sharex, sharey=True)
    for axes in panels.flat[n:]:
        axes.set_visible(False)
    return figure, panels


def reliability(variants: Sequence[dict], path: Path) -> list[Path]:
    """Accuracy against confidence in 15 equal-width bins, one panel per variant.

    Each is {key, label, labels, logits, ece, temperature}; with a temperature (fitted on
    validation) open circles show the rows after it. A circle's area is the fraction of rows.
    """
    colours = style([variant["key"] for variant in variants])
    with look():
        figure, panels = _panels(len(variants), 2.4, sharex=True)
        figure.suptitle(
            "Reliability: accuracy against confidence\n(area: share of texts; open: after T)"
        )
        for variant, axes in zip(variants, panels.flat, strict=False):
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
            note, temperature = f"ECE {variant['ece']:.3f}", variant["temperature"]
            colour, _ = colours[variant["key"]]
            _circles(axes, variant, 1.0, facecolors=colour, edgecolors="white", alpha=0.85)
            if temperature is not None:
                note += f"\nT = {temperature:.2f}"
                _circles(axes, variant, temperature, facecolors="none", edgecolors=INK)
            axes.set_title(variant["label"], loc="left", fontsize=9)
            # Where confidence is high and accuracy low there are hardly ever circles.
            corner = {"ha": "right", "va": "bottom", "transform": axes.transAxes}
            axes.text(0.97, 0.04, note, fontsize=8, color=INK, **corner)
            axes.set(xlim=(0, 1.04), ylim=(0, 1.04))
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
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
    """SQNR in dB (6 dB are one bit) of every matrix from `error_analysis.weight_errors`: a panel
    per scheme, with a scale of its own, kinds of matrix across, layers downward.
    """
    layers = weights["layer"].map("{:.0f}".format, na_action="ignore").fillna(weights["matrix"])
    by_scheme = weights.assign(layer=layers).groupby("scheme", sort=False)
    with look():
        figure, panels = _panels(len(by_scheme), 1.4 + 0.2 * layers.nunique())
        figure.suptitle("Quantization error of the weights: SQNR (dB), more is better")
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
