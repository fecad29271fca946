"""Figures: one style, each as PNG and PDF.

Drawn on `Figure` objects, without pyplot: no global state and no display.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .records import atomic_path

INK, FAINT = "#222222", "#8a8f94"
# Inches: in a report, 6.6 of text, letters of 8 points come out at 6, the least that print allows.
WIDEST = 8.8
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
    "pdf.fonttype": 42,  # TrueType, whose letters can be searched and copied
    "savefig.dpi": 160,
}


def look():
    return matplotlib.rc_context(RC)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write .png and .pdf beside `path`; returns both."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # No program name or date: the same results give the same bytes.
    formats = {path.with_suffix(".png"): "Software", path.with_suffix(".pdf"): "CreationDate"}
    for target, changing in formats.items():
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata={changing: None})
    return list(formats)
