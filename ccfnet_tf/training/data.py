"""The data of a run: looked at before step 1, counted, cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ccfnet_tf.config import DataConfig, RunConfig
from ccfnet_tf.datasets.absent_classes import absent, allowed, explain
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.scan import Checked, check
from ccfnet_tf.datasets.base import Load, bands_note
from ccfnet_tf.datasets.cache import Cache, in_gigabytes
from ccfnet_tf.datasets.layouts.shards import files_of, of_worker
from ccfnet_tf.datasets.splits import Parts, all_of_them, read_parts, without_damage
from ccfnet_tf.errors import ConfigError, DamagedRecordError, DataError
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.worker_sharding import Share, by_example, by_file
from ccfnet_tf.training.distribution.collectives import Collectives

_MUCH_PADDING = 0.5
"""Share of a crop of the middle zoom that may be padding without a word."""


@dataclass(frozen=True)
class RunData:
    """The data of a run after every label was looked at.

    Attributes:
        parts: The parts.
        train: What the training split was seen to hold.
        val: What the validation split was seen to hold.
    """

    parts: Parts
    train: Checked
    val: Checked


def check_data(config: RunConfig, console: Console) -> RunData:
    """Reads every image and label of training and validation before step 1.

    Raises:
        CCFNetError: A file, a part or a key does not allow training.
    """
    parts = read_parts(config.data, config.seed)
    for note in parts.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    classes = len(parts.taxonomy.names)
    by_example(parts.train, config.train.batch)  # refuses a part smaller than a batch

    with new_progress(console) as bar:
        task = bar.add_task("checking labels", total=len(parts.train) + len(parts.val))

        def look(samples: Sequence[Sample]) -> Checked:
            return check(
                samples,
                parts.load,
                classes,
                leave_out=config.data.damaged_records == "skip",
                workers=config.data.workers,
                advance=lambda: bar.advance(task),
            )

        try:
            data = RunData(parts, look(parts.train), look(parts.val))
        except DataError as error:
            raise DataError(f"{error}{all_of_them(config.data)}", kind=error.kind) from error
    left_out = [*data.train.damaged, *data.val.damaged]
    if left_out:
        parts = replace(parts, load=without_damage(parts.load))
        data = replace(data, parts=parts)
        say_left_out(left_out, console)
    _refuse_void(data)
    refuse_absent(config.data, parts, data.train.census, data.val.census)
    pictures = "image" if len(parts.train) == 1 else "images"
    console.print(
        f"{parts.format}: {len(parts.train)} {pictures} to train on, {len(parts.val)} to validate, "
        f"{len(parts.test)} to test, {classes} classes; every "
        f"{'other ' if left_out else ''}label is fit to use"
    )
    if band := bands_note((*parts.train, *parts.val)):
        console.print(band, markup=False)
    _say_unused(config.data, parts, console)
    _say_one_sided(parts, data, console)
    _refuse_padding(config.data, data.train.sizes)
    _warn_padding(config.data, data.train.sizes, console)
    return data


def _say_unused(config: DataConfig, parts: Parts, console: Console) -> None:
    """Names keys that were set and have no effect on these data."""
    default = DataConfig()
    if parts.own_val and config.val_share != default.val_share:
        console.print(
            f"data.val_share {config.val_share} is not used: the set has a validation split"
        )
    if parts.format != "folder" and config.void_value != default.void_value:
        console.print(
            f"data.void_value {config.void_value} is not used: it is of format 'folder', and the "
            f"format is '{parts.format}'"
        )


def say_left_out(damaged: Sequence[DamagedRecordError], console: Console) -> None:
    """Names the records that count nowhere."""
    for error in damaged:
        console.print(f"left out: {error}")
    if damaged:
        console.print("(data.damaged_records stop makes a damaged record an error)")


def share_of(parts: Parts, batch: int, workers: Collectives, console: Console) -> Share:
    """Returns what this worker reads: shards of its own where there are enough, else by example.

    Raises:
        ConfigError: A worker's shards hold less than its part of a batch.
    """
    if workers.count == 1:
        return by_example(parts.train, batch)
    files = len(files_of(parts.train)) if parts.format == "shards" else 0
    if files < workers.count:
        console.print(f"{workers.count} workers: each reads its part of every batch")
        return by_example(parts.train, batch, workers.index, workers.count)
    console.print(f"{workers.count} workers: each reads its own of {files} shards")
    return by_file(
        lambda worker: of_worker(parts.train, worker, workers.count),
        batch,
        workers.index,
        workers.count,
    )


def training_load(
    config: DataConfig, data: RunData, console: Console, share: Share | None = None
) -> Load:
    """Returns what reads a training sample: the layout's loader, or a cache before it.

    Of several workers each caches what it reads, in a file of its own.

    Raises:
        ConfigError: There is not enough room for the cache.
    """
    parts = data.parts
    if config.cache == "none":
        return parts.load
    classes = len(parts.taxonomy.names)
    mine = range(len(parts.train)) if share is None or share.members is None else share.members
    sizes = [data.train.sizes[i] for i in mine]
    cache = Cache([parts.train[i] for i in mine], sizes, parts.load, classes=classes)
    where = "in memory" if config.cache == "memory" else f"in {config.cache} until the run ends"
    console.print(f"cache of decoded images: will take {in_gigabytes(cache.size)} {where}")
    if config.cache == "memory":
        return cache.in_memory().load
    own = f".{share.worker}" if share is not None and share.workers > 1 else ""
    return cache.in_file(Path(f"{config.cache}{own}")).load


def class_weights(setting: str | Sequence[float], census: Census) -> list[float] | None:
    """Returns a weight for each class, or None where all count the same.

    Args:
        setting: `train.class_weights`.
        census: Counts over the training split; `auto` is its median frequency.

    Raises:
        ConfigError: As many weights as classes are needed.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return [float(weight) for weight in census.median_frequency()]
    if len(setting) != len(census.pixels):
        raise ConfigError(
            f"train.class_weights has {len(setting)} values: the data have {len(census.pixels)} "
            "classes; give one for each"
        )
    return [float(weight) for weight in setting]


def rarity(config: DataConfig, census: Census) -> np.ndarray | None:
    """Returns how much crops seek each class, float64 [C], or None where they seek none."""
    return census.median_frequency() if config.rare_crop > 0 else None


def _refuse_void(data: RunData) -> None:
    if not data.train.census.pixels.any():
        raise ConfigError("the training split: every pixel is void: check data.void_value")


def refuse_absent(config: DataConfig, parts: Parts, train: Census, val: Census) -> None:
    """Refuses data whose training split lacks a class, unless the user allows it.

    A class that only the validation share shows, which was taken at random from the training split,
    is no fault of the labels and passes.

    Args:
        config: Says whether a class may lack.
        parts: The parts.
        train: Counts over the training split.
        val: Counts over the validation split.

    Raises:
        DataError: A class is absent.
    """
    names = parts.taxonomy.names
    seen = train.pixels if parts.own_val else train.pixels + val.pixels
    missing = absent(names, seen)
    if missing and not allowed(config):
        where = "nowhere in the training split"
        line = explain(missing, where, train.void, parts.mask_values)
        raise DataError(f"{config.root}: {line}", kind="value")


def _say_one_sided(parts: Parts, data: RunData, console: Console) -> None:
    """Names classes that are not learned, and a validation split that cannot choose."""
    missing = absent(parts.taxonomy.names, data.train.census.pixels)
    if missing:
        named = ", ".join(missing)
        console.print(f"no image to train on shows: {named}: not learned", markup=False)
    shown = int((data.val.census.pixels > 0).sum())
    if parts.val and shown == 1:
        index = int(data.val.census.pixels.argmax())
        console.print(
            f"the labels to validate show '{parts.taxonomy.names[index]}' alone: figures over one "
            "class say nothing about the others",
            markup=False,
        )


def _refuse_padding(config: DataConfig, sizes: Sequence[tuple[int, int]]) -> None:
    """Refuses crops with more than twice the sides of every image."""
    height, width = max(sizes, key=max)
    zoom = config.scale[1]
    if config.crop > 2 * zoom * max(height, width):
        raise ConfigError(
            f"data.crop is {config.crop}: the largest image is {width}x{height}, at most "
            f"{round(zoom * width)}x{round(zoom * height)} after data.scale: more than three "
            "quarters of every crop would be padding; lower data.crop"
        )


def _warn_padding(config: DataConfig, sizes: Sequence[tuple[int, int]], console: Console) -> None:
    """Warns where more than half of a usual crop is padding."""
    height, width = (int(side) for side in np.median(np.array(sizes), axis=0))
    middle = (config.scale[0] + config.scale[1]) / 2
    shown = [min(1.0, middle * side / config.crop) for side in (height, width)]
    padding = 1 - shown[0] * shown[1]
    if padding > _MUCH_PADDING:
        fitting = max(33, 8 * round(middle * max(height, width) / 8) + 1)
        console.print(
            f"warning: data.crop is {config.crop} and images are {width}x{height} (the median), "
            f"{middle:g} times that after data.scale: {padding:.0%} of a crop is padding, which "
            f"costs time and teaches nothing; --data.crop {fitting} fits"
        )
