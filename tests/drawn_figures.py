"""Figures laid out but not written, and whether their texts cover one another."""

from itertools import combinations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def keep_figures(monkeypatch, *modules) -> list[Figure]:
    """The figures that these modules will hand to `save`, laid out, instead of files."""
    figures: list[Figure] = []

    def keep(figure, path):
        FigureCanvasAgg(figure).draw()
        figures.append(figure)
        return [path, path.with_suffix(".pdf")]

    for module in modules:
        monkeypatch.setattr(module, "save", keep)
    return figures


def texts_of(figure):
    """Every text that a figure shows, with the box it covers in pixels."""
    beyond = set()  # labels of ticks outside the axis, which are kept but not drawn
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            beyond |= {
                id(tick.label1)
                for tick in ticks
                if not min(limits) <= tick.get_loc() <= max(limits)
            }
    renderer = figure.canvas.get_renderer()
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_text().strip()
        and text.get_visible()
        and id(text) not in beyond
        and (not text.axes or text.axes.get_visible())
    ]


def overlaps(figure):
    """Pairs of texts that cover one another by more than a pixel."""
    found = []
    for (one, a), (other, b) in combinations(texts_of(figure), 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        if width > 1 and height > 1:
            found.append((one, other))
    return found


def outside(figure):
    """Texts that reach beyond the figure's edge by more than a pixel."""
    edge = figure.bbox
    return [
        words
        for words, box in texts_of(figure)
        if box.x0 < -1 or box.y0 < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1
    ]
