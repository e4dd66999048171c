"""Plots as SVG for embedding in an HTML page, in the colours of the page.

matplotlib draws with a few placeholder colours, which are replaced by variables of the page's style
sheet, so that plots follow the dark or light theme. Texts are not converted to paths and use the
page's font. Legends are HTML, next to the plot.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup, escape

from ccfnet_tf.report.read_evaluation_json import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#0a0b01", "#0a0b02", "#0a0b03"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(0x10, 0x18))
"""Colours of lines; --s0 is the accent colour. Lines also differ by their dashes."""

_VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--s{number})" for number, colour in enumerate(SERIES)},
}
_DASHES = ("-", (0, (6, 2)), (0, (2, 1.6)), (0, (7, 2, 1.5, 2)), (0, (1, 2.4)))
_SIZE = (5.4, 3.5)
_MARGINS = {"left": 0.13, "right": 0.985, "top": 0.97, "bottom": 0.15}
"""As fractions of the figure; fixed, since a layout engine takes as long as the drawing."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


class Entry(NamedTuple):
    """An entry of a legend: index of its colour and dashes, and its name."""

    series: int
    name: str


class Plot(NamedTuple):
    """A plot of a page.

    Attributes:
        title: Title above the plot.
        svg: The drawing.
        legend: Entries of the legend.
        note: Text below the plot, which explains how to read it.
        blocks: Whether the legend shows areas instead of lines.
    """

    title: str
    svg: Markup
    legend: list[Entry]
    note: str
    blocks: bool = False


class Line(NamedTuple):
    """Name and points of a line."""

    name: str
    points: Curve


def line_plot(
    key: str,
    title: str,
    lines: Sequence[Line],
    *,
    axes: tuple[str, str],
    note: str = "",
    diagonal: bool = False,
    marks: bool = False,
    whole: bool = False,
    level: float | None = None,
) -> Plot:
    """Draws lines in one plot.

    Args:
        key: Unique name of the plot on its page, letters and digits.
        title: Title of the plot.
        lines: At most one for each of `SERIES`.
        axes: Labels of the x axis and the y axis.
        note: Explains how to read the plot.
        diagonal: Whether x = y is drawn.
        marks: Whether points are marked.
        whole: Whether x is a whole number, such as an epoch.
        level: y of a horizontal line, such as chance; None for no line.
    """

    def draw(place: Axes) -> None:
        if diagonal:
            place.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        if level is not None:
            place.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
        # The first line is drawn last, above the others.
        for number, line in reversed([*enumerate(lines)]):
            place.plot(
                *line.points,
                color=SERIES[number % len(SERIES)],
                linestyle=_DASHES[number % len(_DASHES)],
                marker="o" if marks else "",
                markersize=4,
            )
        if whole:
            place.locator_params(axis="x", integer=True)
            places = {x for line in lines for x in line.points[0]}
            if len(places) == 1:  # which matplotlib surrounds with fractions
                place.set_xticks([*places])
        place.set_xlabel(axes[0])
        place.set_ylabel(axes[1])

    legend = [Entry(number, line.name) for number, line in enumerate(lines)]
    return Plot(title, _svg(key, title, draw), legend, note)


def histogram(
    key: str,
    title: str,
    bins: Sequence[tuple[int, float, float]],
    *,
    axes: tuple[str, str],
    note: str,
) -> Plot:
    """Draws the histogram of a probability of being wrong, for right and for wrong pixels.

    Args:
        key: Unique name of the plot on its page.
        title: Title of the plot.
        bins: Pixels, mean probability and share of wrong pixels of each bin of equal width that
            is not empty.
        axes: Labels of the x axis and the y axis.
        note: Explains how to read the plot.
    """
    total = sum(pixels for pixels, _, _ in bins)
    width = 1 / 15

    def draw(place: Axes) -> None:
        for pixels, predicted, observed in bins:
            left = min(int(predicted * 15), 14) * width
            shares = (100 * pixels * (1 - observed) / total, 100 * pixels * observed / total)
            for part, share in enumerate(shares):
                x = left + width * (0.08 + 0.42 * part)
                colour = SERIES[(2, 0)[part]]
                place.bar(x, share, width * 0.42, align="edge", color=colour)
        place.set_yscale("log")
        place.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        place.set_xlim(0, 1)
        place.grid(axis="x", visible=False)
        place.set_xlabel(axes[0])
        place.set_ylabel(axes[1])

    legend = [Entry(0, "coarse is wrong"), Entry(2, "coarse is right")]
    return Plot(title, _svg(key, title, draw), legend, note, blocks=True)


def _svg(key: str, title: str, draw: Callable[[Any], None]) -> Markup:
    """Returns a drawing without the parts of SVG that an HTML page must not contain."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot, which keeps figures

    with mpl.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure = Figure(figsize=_SIZE, facecolor="none")
        figure.subplots_adjust(**_MARGINS)
        place = figure.add_subplot(facecolor="none")
        draw(place)
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # Ids are unique only within one SVG file.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1))
