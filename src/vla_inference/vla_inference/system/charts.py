"""Charts for files and pages, drawn with matplotlib.

It is imported when a chart is drawn, for that takes half a second. Figures are made without
pyplot: no window, no state that lives on.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, PALE, LINE = "#1f2328", "#6a737d", "#e3e6ea"
BAR, TRUE, PREDICTED = "#5b8def", "#b7c0c9", "#2f6fdf"
DPI = 100


def new_figure(width: float, height: float) -> Figure:
    """width, height: in pixels of a page; a PNG has twice as many, for sharp lines."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / DPI, height / DPI), layout="constrained")


def style(axes: Axes, spines: tuple[str, ...] = ("left", "bottom")) -> None:
    """Light axes on these sides only, with small numbers."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in spines)
        spine.set_color(LINE)
    axes.tick_params(colors=PALE, labelsize=8, length=2)


def png(figure: Figure) -> bytes:
    return _saved(figure, format="png", dpi=2 * DPI)


def svg(figure: Figure) -> str:
    """An <svg> element for a page."""
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    text = _saved(figure, format="svg", metadata=nothing).decode()
    return text[text.index("<svg") :].replace("<svg", '<svg style="max-width:100%"', 1)


def _saved(figure: Figure, **how: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, **how)
    return buffer.getvalue()
