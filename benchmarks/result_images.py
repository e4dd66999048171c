"""Draws test images of a run with the outputs of its heads, as docs/results.md shows them.

    ccfnet-tf evaluate RUN
    python -m benchmarks.result_images RUN --out FILE.jpg

Images are chosen by a rule, from the figures of the evaluation: the three where the pixel accuracy
of refine is furthest above that of coarse, the three in the middle of all images sorted by the
accuracy of refine, and the three with its lowest accuracy. An image is shown once, in the first
group that it belongs to; of equal images the first of the split is chosen. The last column has
pixel accuracy and mean IoU of the image in %, the mean over the classes of its label.
"""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, DataError
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

if TYPE_CHECKING:  # TensorFlow starts after the arguments are parsed
    from rich.console import Console

    from ccfnet_tf.evaluation.confusion import ClassCounts
    from ccfnet_tf.inference.keras_network import Heads
    from ccfnet_tf.labels import Taxonomy
    from ccfnet_tf.runs.run_folder import RunInfo

GROUPS = (
    "Refine furthest above coarse in pixel accuracy",
    "Median pixel accuracy of refine",
    "Lowest pixel accuracy of refine",
)
EACH = 3
"""Number of images of each group."""

LARGEST = 400_000
"""Largest size of the file in bytes."""

_FONT = 28  # pixels: 12.6 where a page shows the sheet 900 pixels wide
_LINE = 36
_SCALE_WIDTH = 45 * _FONT  # pixels: at this width the text of a colour scale has the same size
_LETTERS = 14  # of a name in a line: a data set may have names that differ at their ends only
_QUALITIES = range(90, 20, -5)  # of JPEG; the first whose file is small enough is used


class Shown(NamedTuple):
    """An image of the sheet: its name, and how coarse and refine label its pixels."""

    name: str
    coarse: ClassCounts
    refine: ClassCounts


def main(args: Sequence[str]) -> int:
    """Writes the file and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.result_images",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="a run folder, after `ccfnet-tf evaluate RUN`")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jpg", help="a new file")
    given = parser.parse_args(args)
    if given.out.suffix.lower() != ".jpg":
        raise ConfigError(f"--out is '{given.out}': expected a name that ends with .jpg")
    if given.out.exists():
        raise ConfigError(f"{given.out}: already exists: remove it, or give another file")
    console = new_console()
    content = to_jpeg(sheet(given.run, console))
    write_atomic(given.out, lambda file: file.write(content), fix="free space", durable=False)
    console.print(f"written to {given.out} ({len(content) / 1000:.0f} KB)")
    return EXIT_DONE


def choose(pixels: np.ndarray, coarse: np.ndarray, refine: np.ndarray) -> list[list[int]]:
    """Returns the indices of the images of each of `GROUPS`, fewer if there are fewer images.

    Args:
        pixels: int64 [N]; labelled pixels of each image. An image without any is not chosen.
        coarse: int64 [N]; pixels that coarse labels correctly.
        refine: int64 [N]; pixels that refine labels correctly.
    """
    known = np.flatnonzero(pixels)
    gains, accuracies = ((hits[known] / pixels[known]) for hits in (refine - coarse, refine))
    ascending = known[np.argsort(accuracies, kind="stable")]
    from_middle = np.abs(2 * np.arange(known.size) - (known.size - 1))
    orders = (
        known[np.argsort(-gains, kind="stable")],
        ascending[np.argsort(from_middle, kind="stable")],
        ascending,
    )
    groups: list[list[int]] = []
    for order in orders:
        taken = {index for group in groups for index in group}
        groups.append([index for index in order.tolist() if index not in taken][:EACH])
    return groups


def read_shown(info: RunInfo) -> list[list[Shown]]:
    """Chooses the images of each of `GROUPS` from the evaluation of a run.

    Raises:
        DataError: The run has no evaluation of its weights on the test split.
    """
    from ccfnet_tf.evaluation.confusion import ClassCounts
    from ccfnet_tf.evaluation.shard_files import weights_digest
    from ccfnet_tf.report.comparison import read_prediction

    coarse, refine = (read_prediction(head, info.path, head) for head in ("coarse", "refine"))
    found = refine.evaluated
    weights = weights_digest(info, info.calibration())
    if (found.split, found.wrapping, found.tree.get("weights")) != ("test", "", weights):
        raise DataError(
            f"{found.path}: is of other weights, another split or other options: run `ccfnet-tf "
            f"evaluate {info.path}`"
        )
    pixels, _, hits = coarse.counts.sum(axis=2).T
    return [
        [
            Shown(refine.images[index], *(ClassCounts(x.counts[index]) for x in (coarse, refine)))
            for index in group
        ]
        for group in choose(pixels, hits, refine.counts[:, 2].sum(axis=1))
    ]


def sheet(run: Path, console: Console) -> np.ndarray:
    """Returns the groups of images below each other, uint8 [H, W, 3] RGB.

    Raises:
        CCFNetError: The run or its data are invalid, or it was not evaluated.
    """
    from ccfnet_tf.runs.run_data import read_run_parts
    from ccfnet_tf.runs.run_folder import read_run

    info = read_run(run)
    groups, parts = read_shown(info), read_run_parts(info, None)
    samples = {sample.name: sample for sample in parts.test}
    names = {shown.name for group in groups for shown in group}
    if not names or not names <= samples.keys():
        raise DataError(
            f"{run}: the evaluation has no labelled pixel, or images that the test split lacks: "
            f"run `ccfnet-tf evaluate {run}`"
        )
    start_tensorflow()
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.io.draw_sheet import shown_ids
    from ccfnet_tf.report.samples_sheet import Row, draw_blocks
    from ccfnet_tf.report.training_previews import TITLES

    network = KerasNetwork(run)
    titles = (*TITLES, "risk", "errors of refine", "accuracy / mIoU")
    blocks: list[tuple[str, list[Row]]] = []
    label_maps: list[np.ndarray] = []
    with new_progress(console) as bar:
        task = bar.add_task("drawing images", total=len(names))
        for title, group in zip(GROUPS, groups, strict=True):
            rows: list[Row] = []
            for shown in group:
                image, label = parts.load(samples[shown.name])
                heads = network.predict_all_heads(image)
                label_maps += [label, heads.coarse, heads.refine]
                rows.append(
                    (() if rows else titles, row(shown, image, label, heads, info.taxonomy))
                )
                bar.advance(task)
            if rows:
                blocks.append((title, rows))
    drawn = draw_blocks(blocks, shown_ids(label_maps), info.taxonomy, size=_FONT)
    return with_legends(drawn)


def row(
    shown: Shown, image: np.ndarray, label: np.ndarray, heads: Heads, taxonomy: Taxonomy
) -> list[np.ndarray]:
    """Returns the cells of an image, uint8 [H, 240, 3] each; the last one has its figures."""
    from ccfnet_tf.inference.writers import colour_image, map_image
    from ccfnet_tf.io.draw_sheet import CELL_WIDTH, GAP, blank, to_width
    from ccfnet_tf.io.draw_text import draw_text, shortened
    from ccfnet_tf.report.evaluation_tables import percent
    from ccfnet_tf.report.gallery import compared
    from ccfnet_tf.report.training_previews import preview_cells

    errors = colour_image(compared(label, heads.coarse, heads.refine), error_kinds())
    columns = (*preview_cells(image, label, heads, taxonomy), map_image(heads.risk), errors)
    cells = [to_width(each) for each in columns]
    lines = textwrap.wrap(Path(shown.name).name, _LETTERS)
    for head, counts in (("coarse", shown.coarse), ("refine", shown.refine)):
        figures = (counts.pixel_accuracy, counts.mean_iou_present)
        lines += [head, " / ".join(percent(figure) for figure in figures)]
    figures_cell = blank(max(len(cells[0]), len(lines) * _LINE) + GAP, CELL_WIDTH)
    for place, line in enumerate(lines):
        text = shortened(line, _FONT, CELL_WIDTH)
        draw_text(figures_cell, text, (0, place * _LINE), _FONT)
    return [*cells, figures_cell]


def error_kinds() -> Taxonomy:
    """Returns the kinds of pixels of the report's gallery as classes."""
    from ccfnet_tf.labels import Taxonomy
    from ccfnet_tf.report.gallery import ERRORS

    return Taxonomy(tuple(name for name, _ in ERRORS), tuple(colour for _, colour in ERRORS))


def with_legends(drawn: np.ndarray) -> np.ndarray:
    """Returns a sheet, uint8 [H, W, 3], with the legends of errors and of maps below."""
    from ccfnet_tf.inference.writers import with_scale
    from ccfnet_tf.io.draw_sheet import blank, legend, paste
    from ccfnet_tf.report.gallery import NOTHING

    width = drawn.shape[1]
    errors = legend(range(NOTHING), error_kinds(), width, size=_FONT)
    maps = with_scale(blank(0, _SCALE_WIDTH), "attention, difficulty, risk: 0", "1")
    below = blank(len(maps), width)
    paste(below, maps, 0, 0)
    return np.vstack([drawn, errors, below])


def to_jpeg(drawn: np.ndarray) -> bytes:
    """Returns uint8 [H, W, 3] RGB as JPEG of at most `LARGEST` bytes.

    Raises:
        DataError: It is larger even at the lowest quality.
    """
    for quality in _QUALITIES:
        file = io.BytesIO()
        Image.fromarray(drawn).save(file, "jpeg", quality=quality, optimize=True, progressive=True)
        if file.tell() <= LARGEST:
            return file.getvalue()
    height, width, _ = drawn.shape
    raise DataError(f"the sheet of {width}x{height} pixels takes more than {LARGEST} bytes")


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"result_images: {error}\n")
        sys.exit(EXIT_USER_ERROR)
