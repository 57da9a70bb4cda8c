"""Curves and bars as SVG text that goes straight into the page and takes its text colour from it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on white and on near-black alike.
COLOURS = ("#3d8bd6", "#e0812b", "#3aa66a", "#c4569f", "#8d74d8", "#b09a2a", "#d5544f", "#2fa3ab")
# A colour nothing else uses: turned into the page's text colour after drawing.
INK = "#010203"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#8888884d",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def line_plot(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    salt: str,
    marks: Mapping[str, tuple[float, float]] | None = None,
    smooth: bool = False,
    size: tuple[float, float] = (4.2, 2.8),
) -> str:
    """One SVG of named lines (x, y).

    `marks` gives the point of a line to circle, named in the legend. With `smooth`, a line of many points is drawn
    faint under its running mean. `salt` keeps the element names of several plots in one page apart. `size` is in
    units of ten letters or so: a smaller plot has larger text on the page.
    """

    def draw(axes: Axes) -> None:
        for index, (name, (x, y)) in enumerate(lines.items()):
            colour = COLOURS[index % len(COLOURS)]
            point = marks.get(name) if marks else None
            if point is not None:
                axes.plot(*point, marker="o", markersize=8, markerfacecolor="none", markeredgecolor=colour)
                name = f"{name}: {point[1]:.1f} at {point[0]:.2f}"
            x_values, y_values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            mean = running_mean(y_values) if smooth else None
            if mean is None:
                axes.plot(x_values, y_values, color=colour, label=name, marker="o" if len(x_values) == 1 else None)
            else:
                axes.plot(x_values, y_values, color=colour, alpha=0.28, linewidth=0.8)
                axes.plot(x_values, mean, color=colour, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True)
        if len(lines) > 1:
            axes.legend(fontsize=9)

    return _svg(draw, size, salt)


def bar_plot(values: Mapping[str, float], *, x_label: str, texts: Sequence[str], salt: str) -> str:
    """Horizontal bars, first on top, each followed by its text from `texts`."""

    def draw(axes: Axes) -> None:
        names = list(values)
        lengths = [float(values[name]) for name in names]
        axes.barh(range(len(names)), lengths, color=COLOURS[0], height=0.62)
        for row, (length, text) in enumerate(zip(lengths, texts, strict=True)):
            axes.annotate(text, (length, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, max([*lengths, 1e-9]) * 1.15)
        axes.set_xlabel(x_label)
        axes.grid(True, axis="x")
        axes.set_axisbelow(True)

    return _svg(draw, (7.2, 0.75 + 0.36 * max(len(values), 1)), salt)


def running_mean(values: np.ndarray, *, windows: int = 25) -> np.ndarray | None:
    """Centred mean over about 1/`windows` of the points, shorter at the ends; None for fewer than 4 x `windows`."""
    if len(values) < 4 * windows:
        return None
    half = max(1, len(values) // windows // 2)
    known = np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    count = np.concatenate([[0], np.cumsum(known)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total[stop] - total[start]) / (count[stop] - count[start])


def _svg(draw: Any, size: tuple[float, float], salt: str) -> str:
    # Figure without pyplot: no global state, no window system.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        figure: Figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), salt)


def _for_page(svg: str, salt: str) -> str:
    """Only the <svg> element, scalable, in the page's font and text colour, with names no other plot uses."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r'\sid="(figure|axes|patch|line2d|text|matplotlib|legend|xtick|ytick)[^"]*"', "", svg)
    return svg.replace(INK, "currentColor").strip()
