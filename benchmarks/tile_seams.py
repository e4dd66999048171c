"""Measures what is seen of the tiles in a run's attention, by their overlap.

    python -m benchmarks.tile_seams RUN [--images 8] [--enlarge 5] [--tile 512]
        [--overlaps 0 0.25 0.375 0.5]

Images of the validation split are enlarged, predicted in tiles as by `--tile`, and compared with
the prediction for the whole image. A seam is a difference in the bands of 64 pixels around the
lines where tiles are joined that does not exist elsewhere, or a step across these lines. Pyramid
pooling averages over a tile instead of the image, which makes a difference everywhere.

Shapes: image H x W.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, DataError
from ccfnet_tf.inference.tiles import RAMP, TiledCascade, Tiling, cut, parse_tiling
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.inference.segmenter_protocol import CascadeSegmenter, HeadOutputs

BAND = 32
"""Pixels on each side of a join that count as near it."""


class Seams(NamedTuple):
    """What tiles change in the prediction of one image.

    Attributes:
        tiles: Number of tiles.
        other_labels: Share of the pixels with another label, 0..1.
        at_joins: Mean absolute difference of attention, 0..1, within `BAND` pixels of a join.
        elsewhere: The same of all other pixels; NaN if there are none.
        steps: Mean absolute difference of attention between neighbours across a join, within the
            ramp, divided by the one of the whole image there; 1 without seams, NaN if that is 0.
    """

    tiles: int
    other_labels: float
    at_joins: float
    elsewhere: float
    steps: float


def main(args: Sequence[str]) -> int:
    """Prints the table and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.tile_seams",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--images", type=int, default=8, help="how many (%(default)s)")
    parser.add_argument("--enlarge", type=int, default=5, help="factor of sides (%(default)s)")
    parser.add_argument("--tile", default="512", help="side of a tile (%(default)s)")
    overlaps = ["0", "0.25", "0.375", "0.5"]
    parser.add_argument("--overlaps", nargs="+", default=overlaps, help="shares (%(default)s)")
    given = parser.parse_args(args)
    for name in ("images", "enlarge"):
        if (value := getattr(given, name)) < 1:
            raise ConfigError(f"--{name} is {value}: expected a number from 1")
    tilings = [tiling for each in given.overlaps if (tiling := parse_tiling(given.tile, each))]
    start_tensorflow()
    console = new_console()
    for line in table(measure(given.run, given.images, given.enlarge, tilings, console)):
        console.print(line)
    return EXIT_DONE


def measure(
    run: Path, count: int, factor: int, tilings: Sequence[Tiling], console: Console
) -> dict[Tiling, list[Seams]]:
    """Returns the seams of every image, by tiling.

    Raises:
        CCFNetError: The run or its data cannot be used, or no image is larger than a tile.
    """
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.runs.run_data import read_run_parts
    from ccfnet_tf.runs.run_folder import read_run

    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    if not parts.val:
        raise DataError(f"{run}: has no validation split: give a run with data.val_share above 0")
    samples = parts.val[:: -(-len(parts.val) // count)]
    found: dict[Tiling, list[Seams]] = {tiling: [] for tiling in tilings}
    with new_progress(console) as progress:
        for sample in progress.track(samples, description="images"):
            image = parts.load(sample)[0]
            size = (factor * image.shape[1], factor * image.shape[0])
            image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
            whole = network.head_outputs(image)
            for tiling in tilings:
                if max(size) <= tiling.side:
                    raise ConfigError(
                        f"--tile is {tiling.side}: an image has {size[0]}x{size[1]} pixels and is "
                        "not cut: make --tile smaller or --enlarge larger"
                    )
                found[tiling].append(seams(image, network, tiling, whole))
    return found


def seams(
    image: np.ndarray, network: CascadeSegmenter, tiling: Tiling, whole: HeadOutputs
) -> Seams:
    """Compares tiles with the outputs for the whole image, uint8 [H, W, 3]."""
    tiled = TiledCascade(network, tiling).head_outputs(image)
    one, exact = (_attention(outputs) for outputs in (tiled, whole))
    axes = [cut(length, tiling) for length in image.shape[:2]]
    joins = [[span.begin + span.before // 2 for span in spans[1:]] for spans in axes]
    near = np.zeros(one.shape, bool)
    steps = np.zeros(2)
    for axis, lines in enumerate(joins):
        across = [np.moveaxis(each, axis, 0) for each in (one, exact)]
        for line in lines:
            np.moveaxis(near, axis, 0)[max(0, line - BAND) : line + BAND] = True
            ramp = slice(max(0, line - RAMP // 2), line + RAMP // 2)
            steps += [np.abs(np.diff(each[ramp], axis=0)).sum() for each in across]
    difference = np.abs(one - exact)
    return Seams(
        tiles=len(axes[0]) * len(axes[1]),
        other_labels=float((tiled.refine.argmax(-1) != whole.refine.argmax(-1)).mean()),
        at_joins=_mean(difference[near]),
        elsewhere=_mean(difference[~near]),
        steps=float(steps[0] / steps[1]) if steps[1] else math.nan,
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _attention(outputs: HeadOutputs) -> np.ndarray:
    """Returns P(coarse is wrong), float64 [H, W]."""
    return np.asarray(np.exp(-np.logaddexp(0, -outputs.attention.astype(np.float64))))


def table(found: dict[Tiling, list[Seams]]) -> Iterator[str]:
    """Yields the lines of the table, in Markdown: means over images."""
    yield (
        "| tile | overlap | tiles | other labels | attention, difference at joins | elsewhere | "
        "steps at joins, tiled / whole |"
    )
    yield "|---" * 7 + "|"
    for tiling, images in found.items():
        tiles, labels, at_joins, elsewhere, steps = np.mean(images, axis=0)
        yield (
            f"| {tiling.side} | {tiling.overlap:g} | {tiles:.0f} | {100 * labels:.2f} % | "
            f"{at_joins:.4f} | {elsewhere:.4f} | {steps:.2f} |"
        )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"tile_seams: {error}\n")
        sys.exit(EXIT_USER_ERROR)
