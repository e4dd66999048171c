"""Evaluates coarse and fine of a trained run at several scales of the image, and averages of two.

    python -m benchmarks.scale_pairs RUN [--scales 0.5 1 1.25 1.5 2]

The image, and then the outputs, are resized as by `--tta`; averages are of probabilities. The
figures are those of the validation split. Nothing is trained: another scale may gain more with
training.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, DataError
from ccfnet_tf.evaluation.confusion import Confusion
from ccfnet_tf.inference.test_time import SCALES, Augmentation, AugmentedCascade
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:  # TensorFlow starts after the arguments are parsed
    from rich.console import Console

    from ccfnet_tf.inference.segmenter_protocol import CascadeSegmenter

View = tuple[str, float]  # `coarse` or `fine`, and the scale at which it reads the image
Counts = dict[tuple[View, ...], Confusion]  # of single views, and of the averages of two


def main(args: Sequence[str]) -> int:
    """Prints the tables and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.scale_pairs",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run folder")
    default = [0.5, 1, 1.25, 1.5, 2]
    parser.add_argument("--scales", type=float, nargs="+", default=default, help="(%(default)s)")
    given = parser.parse_args(args)
    scales, (low, high) = sorted(set(given.scales)), SCALES
    if not all(low <= scale <= high for scale in scales):
        raise ConfigError(f"--scales is {given.scales}: expected numbers from {low:g} to {high:g}")
    start_tensorflow()
    console = new_console()
    for line in tables(evaluate(given.run, scales, console), scales):
        console.print(line)
    return EXIT_DONE


def evaluate(run: Path, scales: Sequence[float], console: Console) -> Counts:
    """Counts the validation split; raises CCFNetError if the run or its data cannot be used."""
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.runs.run_data import read_run_parts
    from ccfnet_tf.runs.run_folder import read_run

    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    if not parts.val:
        raise DataError(f"{run}: has no validation split: give a run with data.val_share above 0")
    total: Counts = {}
    with new_progress(console) as progress:
        for sample in progress.track(parts.val, description="validation"):
            found = count(*parts.load(sample), network, scales)
            total = {views: total[views].merge(found[views]) for views in found} if total else found
    return total


def count(
    image: np.ndarray, label: np.ndarray, network: CascadeSegmenter, scales: Sequence[float]
) -> Counts:
    """Counts one image, uint8 [H, W, 3], with label [H, W]."""
    seen: dict[View, np.ndarray] = {}
    for scale in scales:
        outputs = AugmentedCascade(network, Augmentation((scale,))).head_outputs(image)
        seen["coarse", scale], seen["fine", scale] = np.exp(outputs.coarse), np.exp(outputs.fine)
    coarse, fine = ([(head, scale) for scale in scales] for head in ("coarse", "fine"))

    def counted(views: tuple[View, ...]) -> Confusion:
        labels = np.sum([seen[view] for view in views], axis=0).argmax(axis=-1)
        return Confusion.of(label, labels, classes=len(network.taxonomy.names))

    averaged = [*product(seen), *product(coarse, fine), *combinations(fine, 2)]
    return {views: counted(views) for views in averaged}


def tables(counts: Counts, scales: Sequence[float]) -> Iterator[str]:
    """Yields the lines of three tables: single views, coarse with fine, and fine with fine."""
    from ccfnet_tf.report.evaluation_tables import percent

    def cell(*views: View) -> str:
        if views not in counts:  # an average of two views is counted once
            return ""
        state = counts[views]
        return f"{percent(state.pixel_accuracy)} / {percent(state.mean_iou_present)}"

    yield "| validation, pixel accuracy / mean IoU, % | coarse | fine |"
    yield "|---|---|---|"
    for scale in scales:
        yield f"| {scale:g} | {cell(('coarse', scale))} | {cell(('fine', scale))} |"
    for head in ("coarse", "fine"):
        yield ""
        yield f"| {head} at, averaged with fine at | {' | '.join(f'{x:g}' for x in scales)} |"
        yield f"|---|{'---|' * len(scales)}"
        for scale in scales:
            cells = [cell((head, scale), ("fine", other)) for other in scales]
            yield f"| {scale:g} | {' | '.join(cells)} |"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"scale_pairs: {error}\n")
        sys.exit(EXIT_USER_ERROR)
