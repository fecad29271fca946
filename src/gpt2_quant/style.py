"""Figures: one look, each as PNG (to glance at) and PDF (vector, for print).

Figures are drawn on `Figure` objects, without pyplot: no global state and no display.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .records import atomic_path

INK, FAINT = "#222222", "#8a8f94"
RC = {
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


def look():
    """Context manager with the settings that all figures share."""
    return matplotlib.rc_context(RC)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as .png and .pdf beside `path`, each atomically; returns both paths."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is settled: once for both files
    # No program's name and no date go into the files: the same results give the same bytes.
    formats = {path.with_suffix(".png"): "Software", path.with_suffix(".pdf"): "CreationDate"}
    for target, changing in formats.items():
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata={changing: None})
    return list(formats)
