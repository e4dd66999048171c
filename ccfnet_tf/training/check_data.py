"""Checks, counts and caches the data of a run before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from ccfnet_tf.config import DataConfig, RunConfig
from ccfnet_tf.datasets.absent_classes import absent, allowed, explain
from ccfnet_tf.datasets.audit.check_split import Checked, check
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.cache import Cache, in_gigabytes
from ccfnet_tf.datasets.layouts.shards import files_of, of_worker
from ccfnet_tf.datasets.open_data_set import Parts, all_of_them, read_parts, without_damage
from ccfnet_tf.datasets.samples import Load, bands_note
from ccfnet_tf.errors import ConfigError, DamagedRecordError, DataError
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.worker_sharding import Share, by_example, by_file
from ccfnet_tf.training.distribution.collectives import Collectives

_MUCH_PADDING = 0.5
"""Fraction of a crop at the middle scale that may be padding without a warning."""


@dataclass(frozen=True)
class RunData:
    """The data of a run, after every label was checked.

    Attributes:
        parts: The splits of the data set.
        train: Results of the check of the training split.
        val: Results of the check of the validation split.
    """

    parts: Parts
    train: Checked
    val: Checked


def check_data(config: RunConfig, console: Console) -> RunData:
    """Reads and checks every image and label of all splits.

    Those of the test split are not used in training, but an error in them is better known before
    hours of training than after.

    Raises:
        CCFNetError: A file, a split or a configuration key does not allow training.
    """
    parts = read_parts(config.data, config.seed)
    for note in parts.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    classes = len(parts.taxonomy.names)
    by_example(parts.train, config.train.batch)  # raises if the split is smaller than a batch

    with new_progress(console) as bar:
        total = sum(map(len, (parts.train, parts.val, parts.test)))
        task = bar.add_task("checking labels", total=total)

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
            test = look(parts.test)
        except DataError as error:
            raise DataError(f"{error}{all_of_them(config.data)}", kind=error.kind) from error
    skipped = [*data.train.damaged, *data.val.damaged, *test.damaged]
    if skipped:
        parts = replace(parts, load=without_damage(parts.load))
        data = replace(data, parts=parts)
        say_left_out(skipped, console)
    _refuse_void(data)
    refuse_absent(config.data, parts, data.train.census, data.val.census)
    images = "image" if len(parts.train) == 1 else "images"
    console.print(
        f"{parts.format}: {len(parts.train)} training {images}, {len(parts.val)} validation, "
        f"{len(parts.test)} test, {classes} classes; all "
        f"{'other ' if skipped else ''}labels are valid"
    )
    if band := bands_note((*parts.train, *parts.val)):
        console.print(band, markup=False)
    _report_unused_keys(config.data, parts, console)
    _report_absent_classes(parts, data, console)
    _refuse_padding(config.data, data.train.sizes)
    _warn_padding(config.data, data.train.sizes, console)
    return data


def _report_unused_keys(config: DataConfig, parts: Parts, console: Console) -> None:
    """Reports configuration keys that were set but have no effect on these data."""
    default = DataConfig()
    if parts.own_val and config.val_share != default.val_share:
        console.print(
            f"data.val_share {config.val_share} is not used: the data set has a validation split"
        )
    if parts.format != "folder" and config.void_value != default.void_value:
        console.print(
            f"data.void_value {config.void_value} is not used: it applies only to format 'folder', "
            f"and the format is '{parts.format}'"
        )


def say_left_out(damaged: Sequence[DamagedRecordError], console: Console) -> None:
    """Reports the damaged records that are skipped."""
    for error in damaged:
        console.print(f"skipped: {error}")
    if damaged:
        console.print("(set data.damaged_records to stop to make a damaged record an error)")


def share_of(parts: Parts, batch: int, workers: Collectives, console: Console) -> Share:
    """Returns the data that this worker reads: whole shards if there are enough, else examples.

    Raises:
        ConfigError: The shards of a worker contain fewer examples than its part of a batch.
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
    """Returns the function that reads a training sample: the layout's loader, or a cache of it.

    With several workers, each caches the samples that it reads, in a separate file.

    Raises:
        ConfigError: There is not enough memory or disk space for the cache.
    """
    parts = data.parts
    if config.cache == "none":
        return parts.load
    classes = len(parts.taxonomy.names)
    mine = range(len(parts.train)) if share is None or share.members is None else share.members
    sizes = [data.train.sizes[i] for i in mine]
    cache = Cache([parts.train[i] for i in mine], sizes, parts.load, classes=classes)
    where = "of memory" if config.cache == "memory" else f"in {config.cache} until the run ends"
    console.print(f"cache of decoded images: needs {in_gigabytes(cache.size)} {where}")
    if config.cache == "memory":
        return cache.in_memory().load
    own = f".{share.worker}" if share is not None and share.workers > 1 else ""
    return cache.in_file(Path(f"{config.cache}{own}")).load


def class_weights(setting: str | Sequence[float], census: Census) -> list[float] | None:
    """Returns a weight for each class, or None if all classes have the same weight.

    Args:
        setting: `train.class_weights`.
        census: Counts over the training split. `auto` is median frequency balancing.

    Raises:
        ConfigError: The number of weights is not the number of classes.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return [float(weight) for weight in census.median_frequency()]
    if len(setting) != len(census.pixels):
        raise ConfigError(
            f"train.class_weights has {len(setting)} values: the data have {len(census.pixels)} "
            "classes; set one value per class"
        )
    return [float(weight) for weight in setting]


def rarity(config: DataConfig, census: Census) -> np.ndarray | None:
    """Returns the class weights for `data.rare_crop`, float64 [C], or None if it is 0."""
    return census.median_frequency() if config.rare_crop > 0 else None


def _refuse_void(data: RunData) -> None:
    if not data.train.census.pixels.any():
        raise ConfigError("the training split: every pixel is void: check data.void_value")


def refuse_absent(config: DataConfig, parts: Parts, train: Census, val: Census) -> None:
    """Checks that the training split contains every class, unless absent classes are allowed.

    A class that occurs only in a validation split drawn at random from the training split is
    accepted, because it does not indicate an error in the labels.

    Args:
        config: Configuration of the data.
        parts: The splits of the data set.
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


def _report_absent_classes(parts: Parts, data: RunData, console: Console) -> None:
    """Reports classes without training data, and a validation split with a single class."""
    missing = absent(parts.taxonomy.names, data.train.census.pixels)
    if missing:
        named = ", ".join(missing)
        console.print(f"no training image contains: {named}: not learned", markup=False)
    present = int((data.val.census.pixels > 0).sum())
    if parts.val and present == 1:
        index = int(data.val.census.pixels.argmax())
        console.print(
            f"the validation labels contain only the class '{parts.taxonomy.names[index]}': "
            "validation metrics do not cover the other classes",
            markup=False,
        )


def _refuse_padding(config: DataConfig, sizes: Sequence[tuple[int, int]]) -> None:
    """Checks that crops are at most twice as large as the largest image."""
    height, width = max(sizes, key=max)
    zoom = config.scale[1]
    if config.crop > 2 * zoom * max(height, width):
        raise ConfigError(
            f"data.crop is {config.crop}: the largest image is {width}x{height}, at most "
            f"{round(zoom * width)}x{round(zoom * height)} after data.scale, so more than three "
            "quarters of every crop would be padding; lower data.crop"
        )


def _warn_padding(config: DataConfig, sizes: Sequence[tuple[int, int]], console: Console) -> None:
    """Warns if more than half of a typical crop is padding."""
    height, width = (int(side) for side in np.median(np.array(sizes), axis=0))
    middle = (config.scale[0] + config.scale[1]) / 2
    covered = [min(1.0, middle * side / config.crop) for side in (height, width)]
    padding = 1 - covered[0] * covered[1]
    if padding > _MUCH_PADDING:
        fitting = max(33, 8 * round(middle * max(height, width) / 8) + 1)
        console.print(
            f"warning: data.crop is {config.crop} and the median image size is {width}x{height}, "
            f"{middle:g} times that after data.scale: {padding:.0%} of a crop is padding, which "
            f"wastes computation; use --data.crop {fitting}"
        )
