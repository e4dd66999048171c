"""Contact sheet of suspect regions: image, close-up, label and prediction, outlined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ccfnet_tf.evaluation.suspects import Region
from ccfnet_tf.inference.writers import colour_image
from ccfnet_tf.io.draw_sheet import (
    CELL_WIDTH,
    GAP,
    LINE,
    MARGIN,
    SMALL,
    TITLE,
    blank,
    legend,
    paste,
    shown_ids,
)
from ccfnet_tf.io.draw_text import draw_text, shortened
from ccfnet_tf.labels import Taxonomy

CELL_HEIGHT = CELL_WIDTH * 3 // 4
WIDTH = 2 * MARGIN + 4 * CELL_WIDTH + 3 * GAP
"""Width of the sheet in pixels."""

_CONTEXT = 1.8  # Width of a close-up by that of the region.
_NARROWEST = 64  # pixels of a close-up: fewer show too little to recognise anything
_INSET = 4  # pixels between a title of a cell and its left edge
_LINES = ((3, (0, 0, 0)), (1, (255, 255, 0)))  # Width and colour: yellow on black shows everywhere.


class Panel(NamedTuple):
    """One region, drawn without its title.

    Attributes:
        cells: uint8 [H, WIDTH, 3] RGB.
        ids: Class ids that occur in it, `VOID` included.
    """

    cells: np.ndarray
    ids: tuple[int, ...]


def draw_panel(
    image: np.ndarray,
    label: np.ndarray,
    predicted: np.ndarray,
    region: Region,
    taxonomy: Taxonomy,
) -> Panel:
    """Draws the image, and a close-up of image, label and prediction, each with the outline.

    Args:
        image: uint8 [H, W, 3] RGB.
        label: int32 [H, W].
        predicted: Class ids [H, W].
        region: The region.
        taxonomy: Names and colours of the classes.
    """
    mask = np.zeros(label.shape, np.uint8)
    left, top, width, height = region.box
    mask[top : top + height, left : left + width] = region.inside
    near = close_up(region.box, label.shape)
    label, predicted, close_mask = label[near], predicted[near], mask[near]
    cells = [
        _outlined(image, mask),
        _outlined(image[near], close_mask),
        _outlined(colour_image(label, taxonomy), close_mask),
        _outlined(colour_image(predicted, taxonomy), close_mask),
    ]
    strip = blank(LINE + CELL_HEIGHT, WIDTH)
    size = f"{image.shape[1]} x {image.shape[0]}"
    titles: list[str | int] = [f"image, {size}", "region", region.given, region.predicted]
    for column, (cell, title) in enumerate(zip(cells, titles, strict=True)):
        x = MARGIN + column * (CELL_WIDTH + GAP)
        if isinstance(title, str):
            draw_text(strip, title, (x, 0), SMALL)
        else:
            name = "label" if column == 2 else "prediction"
            draw_text(strip, name, (x, 0), SMALL)
            paste(strip, legend([title], taxonomy, 160, margin=_INSET)[:LINE], x + 80, 0)
        paste(strip, cell, x, LINE)
    return Panel(strip, tuple(shown_ids([label, predicted])))


def suspects_sheet(panels: Sequence[tuple[str, Panel]], taxonomy: Taxonomy) -> np.ndarray:
    """Draws titled panels below each other, with a legend of the classes at the bottom.

    Args:
        panels: Title and panel of each region, not empty.
        taxonomy: Names and colours of the classes.

    Returns:
        uint8 [H, WIDTH, 3] RGB on white. Void is black.
    """
    shown = [np.array(panel.ids) for _, panel in panels]
    parts = [blank(MARGIN, WIDTH)]
    for title, panel in panels:
        line = blank(LINE, WIDTH)
        draw_text(line, shortened(title, TITLE, WIDTH - 2 * MARGIN), (MARGIN, 0), TITLE)
        parts += [line, panel.cells, blank(2 * GAP, WIDTH)]
    parts += [legend(shown_ids(shown), taxonomy, WIDTH), blank(MARGIN, WIDTH)]
    return np.vstack(parts)


def close_up(box: tuple[int, int, int, int], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Returns rows and columns of a window around a box, 4 to 3 where the image is large enough.

    Args:
        box: Left, top, width and height in pixels.
        size: Height and width of the image.
    """
    left, top, width, height = box
    wanted = max(_NARROWEST, _CONTEXT * width, _CONTEXT * height * CELL_WIDTH / CELL_HEIGHT)
    columns = min(size[1], max(width, round(wanted)))
    rows = min(size[0], max(height, round(wanted * CELL_HEIGHT / CELL_WIDTH)))
    x = min(max(0, left + width // 2 - columns // 2), size[1] - columns)
    y = min(max(0, top + height // 2 - rows // 2), size[0] - rows)
    return slice(y, y + rows), slice(x, x + columns)


def _outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns a picture [H, W, 3] fitted into a cell, with the outline of a mask [H, W]."""
    height, width = mask.shape
    scale = min(CELL_WIDTH / width, CELL_HEIGHT / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    fitted = np.asarray(cv2.resize(picture, size, interpolation=method))
    small = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    outlines, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for thickness, colour in _LINES:
        cv2.drawContours(fitted, outlines, -1, colour, thickness)
    return fitted
