"""Figures: one look, each as PNG (to glance at) and PDF (vector, for print).

Figures are drawn on `Figure` objects, without pyplot: no global state, no display needed, nothing
left open.
"""

from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from .records import atomic_path

INK, FAINT = "#222222", "#8a8f94"
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
