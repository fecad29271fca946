"""Figures: one look, one colour a variant, each figure as PNG (to glance at) and PDF (vector, for
print).

Colours are from Okabe & Ito's and Paul Tol's palettes, chosen to stay apart for readers with
protanopia, deuteranopia and tritanopia; a variant has the same colour in every figure. Greys are
unquantized, warm colours are written by hand, cool ones are bitsandbytes; and since colour alone
should never carry a message, every variant has a marker too.

Figures are drawn on `Figure` objects, without pyplot: no global state, no display needed, nothing
left open.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..data.datasets import LABELS
from ..records import atomic_path
from .scores import reliability as reliability_bins

INK, FAINT = "#222222", "#8a8f94"
VARIANT_STYLE = {  # key -> colour, marker
    "baseline": ("#222222", "o"),
    "baseline_fp16": ("#9a9a9a", "s"),
    "int8_scratch": ("#e69f00", "^"),
    "int8_scratch_w8a8": ("#d55e00", "D"),
    "nf4_scratch": ("#882255", "v"),
    "int8_bitsandbytes": ("#56b4e9", "P"),
    "nf4_bitsandbytes": ("#0072b2", "X"),
}
_OUTSIDER_STYLES = (
    ("#117733", "<"),
    ("#cc79a7", ">"),
    ("#332288", "h"),
    ("#999933", "d"),
    ("#44aa99", "p"),
)
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#cfe0ee", "#6fa3cc", "#1f4e79"])
_RC = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "grid.color": "#e3e6e9",
    "legend.frameon": False,
    "savefig.dpi": 160,
}


def style(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each variant. Keys that are not ours get the spare styles, by order of
    name.
    """
    outsiders = sorted(set(keys) - set(VARIANT_STYLE))
    spare = {key: _OUTSIDER_STYLES[i % len(_OUTSIDER_STYLES)] for i, key in enumerate(outsiders)}
    return {key: VARIANT_STYLE.get(key) or spare[key] for key in keys}


def look():
    """Context manager that sets the fonts, lines and grid that all figures share."""
    return matplotlib.rc_context(_RC)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as `path` with suffix .png and as .pdf, each atomically; returns both paths.

    No dates go into the files: the same results give the same bytes.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is settled: once for both files
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        target = Path(path).with_suffix(suffix)
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
        written.append(target)
    return written


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


def training_curve(frame: pd.DataFrame, path: Path) -> list[Path]:
    """Loss over training steps, and validation accuracy beside it.

    `frame` has one row a log line, in order: `step`, `train_loss` (nats), and where validation was
    run `validation_loss`, `validation_accuracy`; NaN elsewhere. A fourth column, `learning_rate`,
    is drawn where present.
    """
    validated = frame.dropna(subset=["validation_loss"])
    panels = 3 if "learning_rate" in frame else 2
    with look():
        figure = Figure(figsize=(3.3 * panels, 3.0), layout="constrained")
        loss, accuracy, *rate = figure.subplots(1, panels)
        trained = frame.dropna(subset=["train_loss"])
        loss.plot(
            trained["step"],
            trained["train_loss"],
            color="#b9c2ca",
            linewidth=0.8,
            label="train, each log line",
        )
        window = max(1, len(trained) // 40)
        smooth = trained["train_loss"].rolling(window, min_periods=1).mean()
        loss.plot(
            trained["step"],
            smooth,
            color="#1f4e79",
            linewidth=1.6,
            label=f"train, mean of last {window}",
        )
        loss.plot(
            validated["step"],
            validated["validation_loss"],
            "o",
            color="#d55e00",
            label="validation",
        )
        loss.set_ylim(bottom=0)
        loss.set_title("cross-entropy (nats)", loc="left")
        loss.legend(fontsize=8)
        accuracy.plot(validated["step"], validated["validation_accuracy"], "o-", color="#d55e00")
        accuracy.yaxis.set_major_locator(MaxNLocator(5))
        accuracy.set_title("validation accuracy (axis truncated)", loc="left")
        for axes in rate:
            known = frame.dropna(subset=["learning_rate"])
            axes.plot(known["step"], known["learning_rate"], color="#117733")
            axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            axes.set_ylim(bottom=0)
            axes.set_title("learning rate", loc="left")
            axes.yaxis.offsetText.set_visible(True)
        for axes in figure.axes:
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.grid(axis="y")
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
