"""Samples as training sees them: image, label, both, and versions that augmentation makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.base import Load
from ccfnet_tf.inference.writers import colour_picture, overlay_picture
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
    to_width,
)
from ccfnet_tf.io.draw_text import draw_text, shortened
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.pipeline.augment import augment

TITLES = ("image", "label", "label over image")

_PAIR_GAP = 2  # between the image and the label of a version

Line = tuple[tuple[str, ...], list[np.ndarray]]
"""Titles above a line of cells, if it has any, and the cells, uint8 [H, W, 3] each."""


def contact_sheet(
    samples: Sequence[Sample],
    load: Load,
    taxonomy: Taxonomy,
    data: DataConfig,
    seed: int,
    *,
    count: int = 6,
    versions: int = 4,
    rarity: np.ndarray | None = None,
) -> np.ndarray:
    """Draws some samples below each other, and the classes they show at the bottom.

    A sample takes three lines below its name: image, label in colours and label over image; the
    images of its versions; their labels. Four columns are as wide as a page or a screen shows
    without making it smaller. Where `samples` is the training part of a run with this seed and this
    `data`, version n is what epoch n shows the network.

    Args:
        samples: What to choose from, never empty.
        load: Reads one, `Parts.load`.
        taxonomy: Names and colours of the classes.
        data: Augmentation.
        seed: Chooses the samples and how they are varied.
        count: Number of samples, if there are as many.
        versions: Number of versions of each.
        rarity: float [C], how much `data.rare_crop` seeks each class; `None` turns it off.

    Returns:
        uint8 [H, W, 3] RGB on white; all columns are 240 pixels wide, whatever the sizes of the
        images. Void is black, beside the image too.

    Raises:
        DataError: A sample that cannot be used.
    """
    places = np.random.default_rng(seed).permutation(len(samples))[:count]
    blocks: list[tuple[str, list[Line]]] = []
    labels: list[np.ndarray] = []
    for place in sorted(places.tolist()):
        image, label = load(samples[place])
        varied = [
            version(image, label, data, seed=seed, epoch=n, place=place, rarity=rarity)
            for n in range(versions)
        ]
        name = f"{samples[place].name}   {image.shape[1]} x {image.shape[0]}"
        blocks.append((name, _lines(image, label, varied, taxonomy)))
        labels += [label, *(each for _, each in varied)]
    return _draw(blocks, shown_ids(labels), taxonomy)


def version(
    image: np.ndarray,
    label: np.ndarray,
    data: DataConfig,
    *,
    seed: int,
    epoch: int,
    place: int,
    rarity: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Varies a sample as `pipeline.batch.training_batches` does.

    Args:
        image: uint8 [H, W, 3] RGB.
        label: int32 [H, W].
        data: Augmentation.
        seed: The run's.
        epoch: The epoch, from 0.
        place: The sample's index in the training split.
        rarity: float [C], how much `data.rare_crop` seeks each class.

    Returns:
        image uint8 [S, S, 3] and label int32 [S, S] with S = `data.crop`.
    """
    key = tf.random.experimental.stateless_fold_in(tf.constant([seed, epoch], tf.int32), place)
    sought = None if rarity is None else tf.constant(rarity, tf.float32)
    varied = augment(tf.constant(image), tf.constant(label), key, data=data, rarity=sought)
    return varied[0].numpy(), varied[1].numpy()


def _lines(
    image: np.ndarray,
    label: np.ndarray,
    varied: Sequence[tuple[np.ndarray, np.ndarray]],
    taxonomy: Taxonomy,
) -> list[Line]:
    """Returns the lines of a sample."""
    sample = [image, colour_picture(label, taxonomy), overlay_picture(label, image, taxonomy)]
    lines: list[Line] = [(TITLES, [to_width(cell) for cell in sample])]
    if varied:
        titles = tuple(f"version {number + 1}" for number in range(len(varied)))
        lines.append((titles, [to_width(picture) for picture, _ in varied]))
        lines.append(((), [to_width(colour_picture(each, taxonomy)) for _, each in varied]))
    return lines


def _draw(
    blocks: Sequence[tuple[str, list[Line]]], ids: Sequence[int], taxonomy: Taxonomy
) -> np.ndarray:
    columns = max(len(cells) for _, cells in blocks[0][1])
    width = _left(columns - 1) + CELL_WIDTH + MARGIN
    names = legend(ids, taxonomy, width)
    heights = [LINE + sum(map(_height, lines)) + 2 * GAP for _, lines in blocks]
    sheet = blank(MARGIN + sum(heights) + len(names) + MARGIN, width)
    top = MARGIN
    for name, lines in blocks:
        draw_text(sheet, shortened(name, TITLE, width - 2 * MARGIN), (MARGIN, top), TITLE)
        top += LINE
        for line in lines:
            _draw_line(sheet, line, top)
            top += _height(line)
        top += 2 * GAP
    paste(sheet, names, 0, top)
    return sheet


def _height(line: Line) -> int:
    titles, cells = line
    return (LINE if titles else 0) + max(map(len, cells)) + (GAP if titles == TITLES else _PAIR_GAP)


def _draw_line(sheet: np.ndarray, line: Line, top: int) -> None:
    titles, cells = line
    for column, title in enumerate(titles):
        draw_text(sheet, title, (_left(column), top), SMALL)
    for column, cell in enumerate(cells):
        paste(sheet, cell, _left(column), top + (LINE if titles else 0))


def _left(column: int) -> int:
    return MARGIN + column * (CELL_WIDTH + GAP)
