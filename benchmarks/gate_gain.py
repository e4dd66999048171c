"""Compares ways to combine coarse and fine of a trained run: attention, affine gate, hard switch.

    python -m benchmarks.gate_gain RUN

What has to be chosen is chosen on the validation split: the two numbers of an affine gate, which
minimise the negative log-likelihood of its pixels, and the threshold of a hard switch. The table is
of the test split. Nothing is trained, so it shows what a gate can gain without training for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError
from ccfnet_tf.io.console import new_console
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.labels import VOID

if TYPE_CHECKING:  # TensorFlow starts after the arguments are parsed
    from rich.console import Console

    from ccfnet_tf.evaluation.evaluation import Evaluation
    from ccfnet_tf.inference.segmenter_protocol import HeadOutputs

EVERY = 7
"""One pixel in so many is used to fit the gate; neighbours say nearly the same."""


class Pixels(NamedTuple):
    """Labelled pixels, float64 [N] each.

    Attributes:
        coarse: Coarse's log-probability of the true class.
        fine: Fine's.
        attention: Attention's logit.
    """

    coarse: np.ndarray
    fine: np.ndarray
    attention: np.ndarray


def main(args: Sequence[str]) -> int:
    """Prints the table and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.gate_gain",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run folder")
    given = parser.parse_args(args)
    start_tensorflow()
    console = new_console()
    for line in table(given.run, console):
        console.print(line)
    return EXIT_DONE


def affine_loss(pixels: Pixels, scale: float, bias: float) -> float:
    """Returns the mean negative log-likelihood of the blend by sigmoid(scale a + bias), in nats."""
    gate = scale * pixels.attention + bias
    by_coarse = pixels.coarse - np.logaddexp(0, gate)
    by_fine = pixels.fine - np.logaddexp(0, -gate)
    return float(-np.logaddexp(by_coarse, by_fine).mean())


def fit_affine_gate(pixels: Pixels) -> tuple[float, float]:
    """Returns the scale and bias with the smallest loss, by a grid that is refined three times."""
    (scale, bias), (width, height) = (0.5, 1.0), (1.5, 5.0)
    steps = np.linspace(-1, 1, 11)
    for _ in range(4):
        scales, biases = scale + width * steps, bias + height * steps
        losses = [(affine_loss(pixels, s, b), s, b) for s in scales for b in biases]
        _, scale, bias = min(losses)
        width, height = width / 5, height / 5
    return float(scale), float(bias)


def blended(outputs: HeadOutputs, scale: float, bias: float) -> HeadOutputs:
    """Returns the outputs with refine as the blend by sigmoid(scale a + bias)."""
    gate = (scale * outputs.attention + bias)[..., np.newaxis].astype(np.float32)
    refine = np.logaddexp(
        outputs.coarse - np.logaddexp(0, gate), outputs.fine - np.logaddexp(0, -gate)
    )
    return outputs._replace(refine=refine)


def table(run: Path, console: Console) -> Iterator[str]:
    """Yields the lines of the table, in Markdown.

    Raises:
        CCFNetError: The run or its data are invalid.
    """
    from ccfnet_tf.evaluation.evaluation import Evaluation
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.io.console import new_progress
    from ccfnet_tf.runs.run_data import read_run_parts
    from ccfnet_tf.runs.run_folder import read_run

    network, parts = KerasNetwork(run), read_run_parts(read_run(run), None)
    chosen, own, affine = (Evaluation.empty(network.taxonomy) for _ in range(3))
    collected = []

    def count(label: np.ndarray, outputs: HeadOutputs, index: int) -> Evaluation:
        return Evaluation.of(label, outputs, network.taxonomy, index=index)

    with new_progress(console) as progress:
        for index, sample in enumerate(progress.track(parts.val, description="validation")):
            image, label = parts.load(sample)
            outputs = network.head_outputs(image)
            chosen = chosen.merge(count(label, outputs, index))
            collected.append(labelled_pixels(label, outputs))
        gate = fit_affine_gate(Pixels(*map(np.concatenate, zip(*collected, strict=True))))
        for index, sample in enumerate(progress.track(parts.test, description="test")):
            image, label = parts.load(sample)
            outputs = network.head_outputs(image)
            own = own.merge(count(label, outputs, index))
            affine = affine.merge(count(label, blended(outputs, *gate), index))
    yield from rows(chosen, own, affine, gate)


def labelled_pixels(label: np.ndarray, outputs: HeadOutputs) -> Pixels:
    """Returns every `EVERY`-th labelled pixel of an image, of label [H, W]."""
    known = np.flatnonzero(label != VOID)[::EVERY]
    truth = label.ravel()[known]
    coarse, fine = (
        logs.reshape(-1, logs.shape[-1])[known, truth].astype(np.float64)
        for logs in (outputs.coarse, outputs.fine)
    )
    return Pixels(coarse, fine, outputs.attention.ravel()[known].astype(np.float64))


def rows(
    chosen: Evaluation, own: Evaluation, affine: Evaluation, gate: tuple[float, float]
) -> Iterator[str]:
    """Yields the lines of the table.

    Args:
        chosen: The run on the validation split, by which the threshold is chosen.
        own: The run on the test split.
        affine: The same with the affine gate.
        gate: Its scale and bias.
    """
    from ccfnet_tf.report.evaluation_tables import percent

    def row(name: str, *figures: float | None) -> str:
        return f"| {name} | {' | '.join(percent(figure) for figure in figures)} |"

    yield "| test, % | pixels from fine | pixel accuracy | mean IoU | difficulty AUROC | AP |"
    yield "|---|---|---|---|---|---|"
    difficulty = {
        "fine": own.ranking("coarse", "fine_difficulty"),
        "refine": own.ranking("coarse", "difficulty"),
        "affine": affine.ranking("coarse", "difficulty"),
    }

    def of_head(label: str, head: str, share: float | None, by: Evaluation) -> str:
        state = by.classes("refine" if head == "affine" else head)
        figures = [share, state.pixel_accuracy, state.mean_iou_present]
        found = difficulty.get(head)
        ranks = (None, None) if found is None else (found.auroc, found.average_precision)
        return row(label, *figures, *ranks)

    for name, share in (("coarse", 0.0), ("fine", 1.0), ("average", 1.0), ("refine", 1.0)):
        yield of_head(name, name, share, own)
    yield of_head(f"affine gate, sigmoid({gate[0]:.2f} a + {gate[1]:.2f})", "affine", 1.0, affine)
    best = chosen.switch("attention").as_good_as_fine
    if best is not None:
        points = {point.threshold: point for point in own.switch("attention").points}
        point = points[best.threshold]
        figures = (point.fine_share, point.pixel_accuracy, point.mean_iou)
        yield row(f"switch, attention above {point.threshold:.3f}", *figures, None, None)
        free = own.switch("max_softmax").at_share(point.fine_share) or (None, None)
        name = "switch, coarse's softmax, as many pixels"
        yield row(name, point.fine_share, *free, None, None)
    yield of_head("oracle", "oracle", None, own)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"gate_gain: {error}\n")
        sys.exit(EXIT_USER_ERROR)
