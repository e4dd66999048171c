"""Measures the input pipeline in images per second and compares it with training: `make bench`.

    python -m benchmarks.input_pipeline [SRC ...] [--json FILE]

Every SRC is the folder of a data set. Compare only figures of the same run: other load on the
machine reduces all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ccfnet_tf.benchmark import memory
from ccfnet_tf.benchmark.machine import write_json
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import list_set, read_parts, with_format
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import CCFNetError
from ccfnet_tf.io.console import new_console
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

IMAGES = 192
"""Number of images of a data set that are read for a measurement."""

BATCH = 8
STEP_BATCH = 4
STEPS = 3
RATIO = 5
"""Goal: throughput of the pipeline over that of training."""

DECODED = 300
"""Goal: images per second of 256x256 from shards without augmentation."""


@dataclass(frozen=True)
class Speed:
    """Images per second of one data set.

    Attributes:
        name: Name of the data set.
        plain: Sequential in Python: decoded.
        eager: Sequential in Python: decoded and augmented.
        files: tf.data from the original files: decoded, augmented, batched.
        shards: tf.data from shards of the same images: decoded, augmented, batched.
        shards_decoded: tf.data from shards: decoded, not augmented.
    """

    name: str
    plain: float
    eager: float
    files: float
    shards: float
    shards_decoded: float


def main(argv: Sequence[str]) -> None:
    """Measures every layout and every data set given, then prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.input_pipeline")
    parser.add_argument("sources", nargs="*", metavar="SRC", help="folders of data sets")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file")
    options = parser.parse_args(argv)
    start_tensorflow()
    console = new_console()
    with tempfile.TemporaryDirectory(prefix="ccfnet-bench-") as scratch:
        speeds = [_measure(*row, Path(scratch), console) for row in _sets(options.sources, scratch)]
    step = training_rate(241)
    memory = [_epoch(Path(source), console) for source in options.sources]
    console.print(_table(speeds, step))
    for line in _verdicts(speeds, step) + memory:
        console.print(line)
    if options.json:
        tree = {"speeds": [asdict(speed) for speed in speeds], "step": step, "memory": memory}
        write_json(Path(options.json), tree)


def training_rate(crop: int) -> float:
    """Returns the images per second that training of ResNet-50 consumes on this machine."""
    import tensorflow as tf

    from ccfnet_tf.network.ccfnet import build_ccfnet
    from ccfnet_tf.training.distribution.devices import resolve_precision

    model = build_ccfnet(
        8, backbone_weights=None, head_channels=128, precision=resolve_precision("auto")
    )
    model.compile(optimizer="adamw")
    image = tf.zeros([STEP_BATCH, crop, crop, 3], tf.uint8)
    label = tf.zeros([STEP_BATCH, crop, crop], tf.int32)
    batches = tf.data.Dataset.from_tensors((image, label)).repeat()
    model.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)  # traces
    began = time.perf_counter()
    model.fit(batches, steps_per_epoch=STEPS, verbose=0, shuffle=False)
    return STEPS * STEP_BATCH / (time.perf_counter() - began)


def _sets(sources: Sequence[str], scratch: str) -> list[tuple[str, Path]]:
    """Returns (name, folder) of each data set: those given, and synthetic copies of the layouts."""
    from benchmarks.write_layouts import COPIES, scenes

    sets = [(f"{with_format(DataConfig(root=s)).format}: {s}", Path(s)) for s in sources]
    samples = scenes(IMAGES)
    for name, write in COPIES.items():
        root = Path(scratch) / name.replace(", ", "_")
        root.mkdir()
        write(root, samples)
        sets.append((name, root))
    return sets


def _measure(name: str, root: Path, scratch: Path, console: Console) -> Speed:
    from ccfnet_tf.pipeline.convert_data_set import write_shards

    console.print(f"reading {name}")
    data = DataConfig(root=str(root), crop=241, val_share=0.0)
    listing = _first(list_set(data, 0))
    out = scratch / f"shards{len(list(scratch.glob('shards*')))}"
    write_shards(listing, out, 2)
    shards = list_set(replace(data, root=str(out)), 0)
    return Speed(
        name.split(": ", maxsplit=1)[0],
        _rate(_decode_each(listing), IMAGES),
        _rate(_augment_each(listing, data), IMAGES // 4),
        _rate(_batches(listing, data), IMAGES),
        _rate(_batches(shards, data), IMAGES),
        _rate(_decoded(shards), IMAGES),
    )


def _first(listing: Listing) -> Listing:
    return replace(listing, train=listing.train[:IMAGES], val=None, test=())


def _rate(images: Any, count: int) -> float:
    """Returns images per second over `count` images, after a warm-up batch."""
    stream = iter(images)
    for _ in range(BATCH):
        next(stream)
    began = time.perf_counter()
    for _ in range(count):
        next(stream)
    return count / (time.perf_counter() - began)


def _decode_each(listing: Listing) -> Any:
    while True:
        yield from (listing.load(sample) for sample in listing.train)


def _augment_each(listing: Listing, data: DataConfig) -> Any:
    import tensorflow as tf

    from ccfnet_tf.pipeline.augment import augment

    for seed, (image, label) in enumerate(_decode_each(listing)):
        yield augment(tf.constant(image), tf.constant(label), tf.constant([0, seed]), data=data)


def _batches(listing: Listing, data: DataConfig) -> Any:
    from ccfnet_tf.pipeline.batch import training_batches

    for image, _ in training_batches(listing.train, listing.load, data, batch=BATCH, seed=0):
        yield from range(len(image))


def _decoded(listing: Listing) -> Any:
    import tensorflow as tf

    from ccfnet_tf.pipeline.batch import reader

    read = reader(listing.train, listing.load)
    indices = tf.data.Dataset.range(len(listing.train)).repeat()
    yield from indices.map(read, tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _epoch(root: Path, console: Console) -> str:
    """Returns a line with the resident memory during an epoch of training batches."""
    from ccfnet_tf.pipeline.batch import training_batches
    from ccfnet_tf.pipeline.worker_sharding import by_example

    data = DataConfig(root=str(root), crop=225)
    parts = read_parts(data, 0)
    steps = by_example(parts.train, BATCH).steps
    marks = {1: 0.0, max(1, steps // 10): 0.0, steps: 0.0}
    console.print(f"memory over an epoch of {parts.format}")
    batches = training_batches(parts.train, parts.load, data, batch=BATCH, seed=0)
    for number, _ in enumerate(batches.take(steps), start=1):
        if number in marks:
            marks[number] = memory.resident()
    readings = ", ".join(f"{resident:.0f} MB at step {step}" for step, resident in marks.items())
    return f"{parts.format}, an epoch of {len(parts.train)} images: resident memory {readings}"


def _table(speeds: list[Speed], step: float) -> Table:
    table = Table(title="images per second", title_justify="left", title_style="bold")
    table.add_column("layout")
    for name in (
        "decode, sequential",
        "decode and augment, sequential",
        "tf.data from files",
        "tf.data from shards",
        "shards, not augmented",
    ):
        table.add_column(name, justify="right")
    for speed in speeds:
        table.add_row(*[f"{v:.0f}" if isinstance(v, float) else v for v in vars(speed).values()])
    table.caption = f"training of ResNet-50 consumes {step:.2f} images of 241x241 per second"
    return table


def _verdicts(speeds: list[Speed], step: float) -> list[str]:
    slowest = min(min(s.files, s.shards) for s in speeds)
    decoded = min(s.shards_decoded for s in speeds if s.name == "folder")
    return [
        f"slowest pipeline: {slowest / step:.1f} times the rate of training (goal: {RATIO})",
        f"256x256 JPEG shards, not augmented: {decoded:.0f} per second (goal: {DECODED})",
    ]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except CCFNetError as error:
        sys.exit(f"benchmark: {error}")
