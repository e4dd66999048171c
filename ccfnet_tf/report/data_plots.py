"""Figure of data set statistics: class shares, image sizes, colours."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ccfnet_tf.datasets.audit.stats import Stats
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.draw_sheet import blank
from ccfnet_tf.io.draw_text import draw_text, text_width
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report.data_tables import share_percent

DOTS = 110
"""Resolution in pixels per inch."""

_SIZES = 8
_MAX_LETTERS = 36
_LOG_RATIO = 100
_BAR = 0.27
_PANEL = 2.3
_EDGE = "#8a8a8a"
_GREY = "#7a8a99"
_CHANNELS = {"red": "#c8453b", "green": "#3d9a50", "blue": "#3b6fc8"}


def stats_figure(stats: Stats, taxonomy: Taxonomy, path: Path) -> None:
    """Writes a PNG with bar charts of class shares, image sizes and mean colour.

    The bars of the classes have the colours of the taxonomy. Their axis is logarithmic if the
    largest share is more than 100 times the smallest.

    Args:
        stats: The statistics to draw.
        taxonomy: Names and colours of the classes.
        path: PNG file to write.

    Raises:
        ResourceError: The disk is full or not writable.
    """
    # pyplot is avoided: it keeps figures in a global list and may look for a display.
    from matplotlib.figure import Figure

    names = len(taxonomy.names)
    height = max(_BAR * names + 1.2, 2 * _PANEL)
    figure = Figure(figsize=(11, height), dpi=DOTS, layout="constrained")
    grid = figure.add_gridspec(
        3, 2, width_ratios=(3, 2), height_ratios=(_PANEL, _PANEL, max(height - 2 * _PANEL, 0.01))
    )
    _draw_shares(figure.add_subplot(grid[:, 0]), stats, taxonomy)
    _draw_sizes(figure.add_subplot(grid[0, 1]), stats)
    _draw_colours(figure.add_subplot(grid[1, 1]), stats)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    fix = "free disk space, or choose a writable folder"
    write_atomic(path, lambda f: f.write(buffer.getvalue()), fix=fix, durable=False)


def _draw_shares(axes: Any, stats: Stats, taxonomy: Taxonomy) -> None:
    """Draws one bar per class, the most frequent class on top."""
    shares = stats.census.shares()
    order = np.argsort(-shares, kind="stable")
    percent = 100 * shares[order]
    seen = percent[percent > 0]
    positions = np.arange(len(order))
    colours = [tuple(value / 255 for value in taxonomy.palette[index]) for index in order]
    axes.barh(positions, percent, color=colours, edgecolor=_EDGE, linewidth=0.6)
    if len(seen) and seen.max() > _LOG_RATIO * seen.min():
        low = 10 ** np.floor(np.log10(seen.min() / 2))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(low, seen.max() * 8)  # space for the numbers after the bars
        axis_label = "share of labelled pixels in %, logarithmic"
    else:
        low = 0.0
        axes.set_xlim(0, 1.25 * (seen.max() if len(seen) else 1))
        axis_label = "share of labelled pixels in %"
    for place, (index, value) in enumerate(zip(order, percent, strict=True)):
        images = int(stats.census.pictures[index])
        text = f"{share_percent(value / 100)} ({images})" if value else "absent"
        axes.annotate(text, (max(value, low), place), (4, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    names = [_shortened(taxonomy.names[index]) for index in order]
    # A name may contain $, which must not start a formula.
    supported = [_has_letters(name) for name in names]
    ticks = [name if plain else "" for name, plain in zip(names, supported, strict=True)]
    axes.set_yticks(positions, ticks, parse_math=False, fontsize=9)
    for row, name in enumerate(names):
        if not supported[row]:
            _draw_name(axes, name, row)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlabel(axis_label)
    void = f"void: {share_percent(stats.void_share)} % of all pixels"
    axes.set_title(f"classes (and number of images with them); {void}", fontsize=10, loc="left")
    _style_axes(axes)


def _draw_sizes(axes: Any, stats: Stats) -> None:
    rows = stats.by_count()
    labels = [f"{width} x {height}" for (height, width), _ in rows[:_SIZES]]
    counts = [count for _, count in rows[:_SIZES]]
    if len(rows) > _SIZES:
        labels.append(f"{len(rows) - _SIZES} other sizes")
        counts.append(sum(count for _, count in rows[_SIZES:]))
    positions = np.arange(len(counts))
    axes.barh(positions, counts, color=_GREY, height=0.7)
    for place, count in enumerate(counts):
        axes.annotate(str(count), (count, place), (4, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(positions, labels, fontsize=8)
    axes.set_ylim(max(len(counts), 3) - 0.4, -0.6)
    axes.set_xlim(0, max(counts, default=1) * 1.2)
    axes.set_title(
        f"sizes of {stats.census.samples} images, width x height", fontsize=10, loc="left"
    )
    _style_axes(axes)


def _draw_colours(axes: Any, stats: Stats) -> None:
    positions = np.arange(len(_CHANNELS))
    axes.barh(positions, stats.mean, xerr=stats.deviation, color=list(_CHANNELS.values()),
              height=0.6, error_kw={"ecolor": "#303030", "capsize": 4, "linewidth": 1})  # fmt: skip
    labels = [
        f"{name}\n{mean:.1f} \u00b1 {deviation:.1f}"
        for name, mean, deviation in zip(_CHANNELS, stats.mean, stats.deviation, strict=True)
    ]
    axes.set_yticks(positions, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 255)
    axes.set_xticks([0, 64, 128, 192, 255])
    axes.set_title("mean and standard deviation of all pixels", fontsize=10, loc="left")
    _style_axes(axes)


def _has_letters(text: str) -> bool:
    """Returns whether the font of matplotlib has all characters of a text."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    font = FT2Font(font_manager.findfont("DejaVu Sans"))
    return all(font.get_char_index(ord(letter)) for letter in text)


def _draw_name(axes: Any, name: str, place: int) -> None:
    """Draws a name next to its bar as an image, for scripts that the font of matplotlib lacks."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    # Rendered at twice the size and scaled down by half; an inch has 72 points.
    size = round(2 * 9 * DOTS / 72)
    name_image = blank(round(1.4 * size), text_width(name, size) + 4)
    draw_text(name_image, name, (2, size // 8), size)
    box = OffsetImage(name_image, zoom=0.5 * 72 / DOTS, interpolation="lanczos")
    annotation = AnnotationBbox(
        box,
        (0, place),
        xybox=(-4, 0),
        xycoords=("axes fraction", "data"),
        boxcoords="offset points",
        box_alignment=(1, 0.5),
        frameon=False,
        pad=0,
        annotation_clip=False,
    )
    axes.add_artist(annotation)


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_LETTERS else f"{name[: _MAX_LETTERS - 3]}..."


def _style_axes(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
