"""The figures of one classifier: confusion matrix, reliability."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..data.labels import LABELS
from ..models.variants import style
from ..style import FAINT, INK, look, save
from .scores import reliability as reliability_bins

_COUNTS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#cfe0ee", "#6fa3cc", "#1f4e79"])


def confusion_matrix(
    labels: np.ndarray, logits: np.ndarray, title: str, path: Path, names: Sequence[str] = LABELS
) -> list[Path]:
    """Confusion matrix: counts, and beneath each the share of its row (of the texts that are of
    that class).

    labels [n] in [0, C); logits [n, C]. The colour is the row's share, so that classes of different
    size compare.
    """
    n_classes = logits.shape[1]
    names = names if len(names) == n_classes else [str(number) for number in range(n_classes)]
    pairs = np.asarray(labels) * n_classes + np.asarray(logits).argmax(axis=1)
    counts = np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with look():
        figure = Figure(
            figsize=(1.6 + 0.95 * n_classes, 1.3 + 0.8 * n_classes), layout="constrained"
        )
        axes = figure.subplots()
        # A square root spreads the small shares, where the mistakes are.
        axes.imshow(np.sqrt(share), cmap=_COUNTS, vmin=0, vmax=1, aspect="auto")
        for row, column in np.ndindex(counts.shape):
            dark = np.sqrt(share[row, column]) > 0.65
            text = f"{counts[row, column]:,}\n{share[row, column]:.1%}"
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else INK)
        axes.set_xticks(range(n_classes), names)
        axes.set_yticks(range(n_classes), names, rotation=90, va="center")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        accuracy = counts.trace() / max(counts.sum(), 1)
        axes.set_title(title, loc="left", pad=20)
        axes.text(
            0,
            1.02,
            f"accuracy {accuracy:.4f}, n = {counts.sum():,}",
            transform=axes.transAxes,
            color=FAINT,
        )
        return save(figure, path)


def reliability(variants: Sequence[dict], path: Path) -> list[Path]:
    """Reliability diagrams, a panel a variant: accuracy against confidence in 15 equal-width bins.

    Each variant is {key, label, labels, logits, ece, temperature}; with a temperature (fitted on
    validation) the open circles show the same test rows after it. On the diagonal a classifier is
    as often right as it claims to be. The area of a circle is the bin's share of rows: most bins of
    a good classifier are nearly empty, and noisy.
    """
    columns = min(4, len(variants))
    rows = -(-len(variants) // columns)
    looks = style([variant["key"] for variant in variants])
    with look():
        figure = Figure(figsize=(2.35 * columns + 0.4, 2.55 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.ravel()[len(variants) :]:
            axes.set_visible(False)
        for variant, axes in zip(variants, grid.ravel(), strict=False):
            colour = looks[variant["key"]][0]
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8)
            drawn = [(1.0, {"facecolors": colour, "edgecolors": "white", "alpha": 0.85})]
            if variant["temperature"] is not None:
                drawn.append((variant["temperature"], {"facecolors": "none", "edgecolors": INK}))
            for temperature, colours in drawn:
                bins = reliability_bins(variant["labels"], variant["logits"], temperature)
                area = 12 + 220 * bins["count"] / bins["count"].sum()
                axes.scatter(
                    bins["confidence"],
                    bins["accuracy"],
                    s=area,
                    linewidths=0.8,
                    clip_on=False,
                    zorder=3,
                    **colours,
                )
            axes.set_title(variant["label"], loc="left", fontsize=9)
            note = f"ECE {variant['ece']:.3f}"
            if variant["temperature"] is not None:
                note += f"\nT = {variant['temperature']:.2f}"
            axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top", fontsize=8, color=INK)
            axes.set_xlim(0, 1.04)
            axes.set_ylim(0, 1.04)
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.tick_params(labelbottom=True)
            axes.grid()
        figure.supxlabel("confidence (probability of the predicted class)", fontsize=9)
        figure.supylabel("accuracy of the rows in the bin", fontsize=9)
        return save(figure, path)
