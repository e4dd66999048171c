"""Contact sheet of samples: image, label, overlay, and augmented versions as in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.inference.writers import colour_image, overlay_image
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

_PAIR_GAP = 2  # pixels between the image and the label of a version

Row = tuple[tuple[str, ...], list[np.ndarray]]
"""A row of the sheet: titles above the cells (may be empty), and cells, uint8 [H, W, 3] each."""


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
    """Draws samples below each other, with a legend of the classes they contain at the bottom.

    Each sample has a name and three rows: image, coloured label and overlay; the images of its
    augmented versions; the labels of these versions. Four columns fit a page or a screen without
    downscaling. If `samples` is the training split of a run with the same `seed` and `data`,
    version n is the sample as the network sees it in epoch n.

    Args:
        samples: Samples to choose from, not empty.
        load: Reads one sample, as `Parts.load` does.
        taxonomy: Names and colours of the classes.
        data: Augmentation options.
        seed: Seed for the choice of samples and for augmentation.
        count: Number of samples; fewer if `samples` has fewer.
        versions: Number of augmented versions per sample.
        rarity: float [C], sampling weights of the classes for `data.rare_crop`; `None` disables it.

    Returns:
        uint8 [H, W, 3] RGB on white. All columns are 240 pixels wide, regardless of image size.
        Void, including pixels outside the image, is black.

    Raises:
        DataError: A sample cannot be used.
    """
    indices = np.random.default_rng(seed).permutation(len(samples))[:count]
    blocks: list[tuple[str, list[Row]]] = []
    labels: list[np.ndarray] = []
    for place in sorted(indices.tolist()):
        image, label = load(samples[place])
        augmented = [
            version(image, label, data, seed=seed, epoch=n, place=place, rarity=rarity)
            for n in range(versions)
        ]
        name = f"{samples[place].name}   {image.shape[1]} x {image.shape[0]}"
        blocks.append((name, _sample_rows(image, label, augmented, taxonomy)))
        labels += [label, *(each for _, each in augmented)]
    return draw_blocks(blocks, shown_ids(labels), taxonomy)


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
    """Augments a sample as `pipeline.batch.training_batches` does.

    Args:
        image: uint8 [H, W, 3] RGB.
        label: int32 [H, W].
        data: Augmentation options.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        place: Index of the sample in the training split.
        rarity: float [C], sampling weights of the classes for `data.rare_crop`.

    Returns:
        image uint8 [S, S, 3] and label int32 [S, S] with S = `data.crop`.
    """
    key = tf.random.experimental.stateless_fold_in(tf.constant([seed, epoch], tf.int32), place)
    weights = None if rarity is None else tf.constant(rarity, tf.float32)
    augmented = augment(tf.constant(image), tf.constant(label), key, data=data, rarity=weights)
    return augmented[0].numpy(), augmented[1].numpy()


def _sample_rows(
    image: np.ndarray,
    label: np.ndarray,
    augmented: Sequence[tuple[np.ndarray, np.ndarray]],
    taxonomy: Taxonomy,
) -> list[Row]:
    """Returns the rows of a sample."""
    sample = [image, colour_image(label, taxonomy), overlay_image(label, image, taxonomy)]
    rows: list[Row] = [(TITLES, [to_width(cell) for cell in sample])]
    if augmented:
        titles = tuple(f"version {number + 1}" for number in range(len(augmented)))
        rows.append((titles, [to_width(version_image) for version_image, _ in augmented]))
        rows.append(((), [to_width(colour_image(each, taxonomy)) for _, each in augmented]))
    return rows


def draw_blocks(
    blocks: Sequence[tuple[str, list[Row]]],
    ids: Sequence[int],
    taxonomy: Taxonomy,
    *,
    size: int = SMALL,
) -> np.ndarray:
    """Draws named blocks of rows below each other, and a legend of classes at the bottom.

    Args:
        blocks: Name and rows of each block, not empty. Cells are `CELL_WIDTH` pixels wide.
        ids: Class ids of the legend.
        taxonomy: Names and colours of the classes.
        size: Font size of titles and legend in pixels.

    Returns:
        uint8 [H, W, 3] RGB on white.
    """
    columns = max(len(cells) for _, cells in blocks[0][1])
    width = _left(columns - 1) + CELL_WIDTH + MARGIN
    line, large = size + LINE - SMALL, size + TITLE - SMALL
    names = legend(ids, taxonomy, width, size=size)
    heights = [line + sum(_height(row, line) for row in rows) + 2 * GAP for _, rows in blocks]
    sheet = blank(MARGIN + sum(heights) + len(names) + MARGIN, width)
    top = MARGIN
    for name, rows in blocks:
        draw_text(sheet, shortened(name, large, width - 2 * MARGIN), (MARGIN, top), large)
        top += line
        for row in rows:
            _draw_row(sheet, row, top, line, size)
            top += _height(row, line)
        top += 2 * GAP
    paste(sheet, names, 0, top)
    return sheet


def _height(row: Row, line: int) -> int:
    titles, cells = row
    return (line if titles else 0) + max(map(len, cells)) + (GAP if titles == TITLES else _PAIR_GAP)


def _draw_row(sheet: np.ndarray, row: Row, top: int, line: int, size: int) -> None:
    titles, cells = row
    for column, title in enumerate(titles):
        draw_text(sheet, title, (_left(column), top), size)
    for column, cell in enumerate(cells):
        paste(sheet, cell, _left(column), top + (line if titles else 0))


def _left(column: int) -> int:
    return MARGIN + column * (CELL_WIDTH + GAP)
