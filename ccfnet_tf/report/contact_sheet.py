"""Samples as training sees them: image, label, both, and versions that augmentation makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.listing import Load
from ccfnet_tf.inference.sheet import (
    CELL_WIDTH,
    GAP,
    INK,
    LINE,
    MARGIN,
    WHITE,
    draw_legend,
    font,
    legend_places,
    to_width,
)
from ccfnet_tf.inference.writers import colour_picture, overlay_picture
from ccfnet_tf.labels import VOID, Sample, Taxonomy
from ccfnet_tf.pipeline.augment import augment

TITLES = ("image", "label", "label over image")

_PAIR_GAP = 2


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

    A row is a sample, its name on top: image, label in colours, label over image, then image and
    label of each version. Where `samples` is the training part of a run with this seed and this
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
        pictures. Void is black, beside the picture too.

    Raises:
        DataError: A sample that cannot be used.
    """
    places = np.random.default_rng(seed).permutation(len(samples))[:count]
    rows: list[list[np.ndarray]] = []
    names: list[str] = []
    ids: set[int] = set()
    for place in sorted(places.tolist()):
        image, label = load(samples[place])
        varied = [
            version(image, label, data, seed=seed, epoch=n, place=place, rarity=rarity)
            for n in range(versions)
        ]
        names.append(f"{samples[place].name}   {image.shape[1]} x {image.shape[0]}")
        rows.append(_cells([(image, label), *varied], taxonomy))
        ids.update(*(np.unique(each).tolist() for _, each in ((image, label), *varied)))
    return _draw(rows, names, sorted(ids - {VOID}) + ([VOID] if VOID in ids else []), taxonomy)


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
        place: The sample's index in the training part.
        rarity: float [C], how much `data.rare_crop` seeks each class.

    Returns:
        image uint8 [S, S, 3] and label int32 [S, S] with S = `data.crop`.
    """
    key = tf.random.experimental.stateless_fold_in(tf.constant([seed, epoch], tf.int32), place)
    sought = None if rarity is None else tf.constant(rarity, tf.float32)
    varied = augment(tf.constant(image), tf.constant(label), key, data=data, rarity=sought)
    return varied[0].numpy(), varied[1].numpy()


def _cells(pairs: Sequence[tuple[np.ndarray, np.ndarray]], taxonomy: Taxonomy) -> list[np.ndarray]:
    """Returns the columns, uint8 [H, W, 3] each: the sample in three, then two a version."""
    columns: list[np.ndarray] = []
    for number, (image, label) in enumerate(pairs):
        columns += [image, colour_picture(label, taxonomy)]
        if number == 0:
            columns.append(overlay_picture(label, image, taxonomy))
    return [to_width(column) for column in columns]


def _draw(
    rows: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    ids: Sequence[int],
    taxonomy: Taxonomy,
) -> np.ndarray:
    columns = len(rows[0])
    width = _left(columns - 1) + CELL_WIDTH + MARGIN
    legend = legend_places(ids, taxonomy, width)
    legend_height = LINE * (1 + legend[-1][1] // LINE) if legend else 0
    pictures_height = sum(LINE + max(map(len, row)) + GAP for row in rows)
    height = MARGIN + LINE + pictures_height + GAP + legend_height + MARGIN

    sheet = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(sheet)
    titles = [*TITLES, *(f"version {n + 1}" for n in range((columns - len(TITLES)) // 2))]
    for number, title in enumerate(titles):
        column = number if number < len(TITLES) else 2 * number - len(TITLES)
        draw.text((_left(column), MARGIN - 4), title, fill=INK, font=font(16))
    top = MARGIN + LINE
    for name, row in zip(names, rows, strict=True):
        draw.text((MARGIN, top), name, fill=INK, font=font(14))
        top += LINE
        for column, cell in enumerate(row):
            sheet.paste(Image.fromarray(cell), (_left(column), top))
        top += max(map(len, row)) + GAP
    draw_legend(draw, legend, taxonomy, top + GAP)
    return np.asarray(sheet)


def _left(column: int) -> int:
    """Returns where a column begins; image and label of a version lie close together."""
    gaps = column * GAP
    if column > len(TITLES):
        gaps -= ((column - len(TITLES) + 1) // 2) * (GAP - _PAIR_GAP)
    return MARGIN + column * CELL_WIDTH + gaps
