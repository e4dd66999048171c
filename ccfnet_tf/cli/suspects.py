"""`ccfnet-tf data suspects`: lists labels that are probably wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ccfnet_tf.cli.argument_parser import Parser, add_palette_option
from ccfnet_tf.datasets.open_data_set import without_damage
from ccfnet_tf.errors import EXIT_DONE, ConfigError, DamagedRecordError, NotFiniteError
from ccfnet_tf.evaluation.suspects import MINIMUM_AREA, Best, Region, find_regions, image_score
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import new_folder, refuse_existing, refuse_unwritable
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.palettes import with_palette
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.training.images_not_trained_on import HeldOut, held_out, read_runs

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.datasets.samples import Load
    from ccfnet_tf.inference.segmenter_protocol import Prediction
    from ccfnet_tf.labels import Sample, Taxonomy
    from ccfnet_tf.report.suspects_sheet import Panel

TABLE, SHEET = "suspects.csv", "contact_sheet.png"
_MOST_ROWS = 100_000  # of the table, so that memory is bounded on large data sets
_MOST_PANELS = 500  # Each takes 0.8 MB of memory, and 220 pixels of the height of the sheet.


class Suspect(NamedTuple):
    """A row of the table: a region without its mask, which would take memory for each row.

    Attributes:
        image: Path of the image.
        label_file: Path of the label.
        left: Column of the first pixel of the box; with the other three the box, in pixels.
        area: Number of pixels.
        given: Class that most of the pixels are labelled with.
        predicted: Class that is predicted.
        mean_log_odds: Mean log odds of the predicted class against the given one.
        score: `area` x `mean_log_odds`.
        image_score: Sum of the scores of all regions of the image.
    """

    image: str
    label_file: str
    left: int
    top: int
    width: int
    height: int
    area: int
    given: str
    predicted: str
    mean_log_odds: float
    score: float
    image_score: float


class Ranking(NamedTuple):
    """What one pass over the images keeps.

    Attributes:
        rows: The suspects of the table.
        panels: The first ones of them, drawn.
        found: Number of all suspects.
    """

    rows: list[Suspect]
    panels: list[tuple[Suspect, Panel]]
    found: int


def new_parser() -> Parser:
    """Returns the argument parser of the command."""
    parser = Parser(
        prog="ccfnet-tf data suspects",
        description="List labels that are probably wrong: regions where a run contradicts the "
        "label, among the images that it did not train on. Regions are ranked by area x mean log "
        "odds of the predicted class against the given one.",
    )
    parser.add_argument(
        "run",
        metavar="RUN",
        help="run folder: its test and validation images; or the folder of crossval: all images "
        "that are in the test split of a fold",
    )
    parser.add_argument(
        "--top", type=int, default=50, help="regions on the contact sheet (default: 50)"
    )
    parser.add_argument(
        "--min-area",
        type=int,
        default=MINIMUM_AREA,
        metavar="PIXELS",
        help="smallest region that is listed (default: %(default)s)",
    )
    parser.add_argument(
        "--out", default="suspects", metavar="DIR", help="folder to make (default: suspects)"
    )
    parser.add_argument("--data.root", dest="root", help="where the data are now")
    add_palette_option(parser)
    return parser


def main(args: list[str]) -> int:
    """Lists suspect labels; returns the exit code."""
    options = new_parser().parse_args(args)
    if not 1 <= options.top <= _MOST_PANELS:
        raise ConfigError(f"--top is {options.top}: it must be 1 to {_MOST_PANELS}")
    if options.min_area < 1:
        raise ConfigError(f"--min-area is {options.min_area}: it must be 1 or more")
    out = expanded(options.out)
    runs = read_runs(expanded(options.run))
    taxonomy = with_palette(runs[0].taxonomy, options.palette)
    refuse_existing(out)
    refuse_unwritable(out)
    start_tensorflow()
    console = new_console()
    held = held_out(runs, options.root)
    console.print(_what(held))
    for each in held:
        if each.copies:
            same = ("image is the same as one", "images are the same as some")
            images = counted(len(each.copies), *same)
            console.print(
                f"left out: {images} that {each.run.path} was trained on: "
                f"{each.copies[0].image}{' and others' if len(each.copies) > 1 else ''}"
            )
    uncalibrated = [run.path for run in runs if run.calibration() == UNCALIBRATED]
    if uncalibrated and len(runs) > 1:  # A temperature changes no order within one run.
        console.print(
            f"{len(uncalibrated)} of {len(runs)} runs are not calibrated, so their scores are less "
            f"comparable; to calibrate one: ccfnet-tf calibrate {uncalibrated[0]}"
        )
    ranking = rank(held, taxonomy, top=options.top, minimum=options.min_area, console=console)
    with new_folder(out) as folder:
        _write(ranking, taxonomy, folder)
    _report(ranking, out, options.min_area, console)
    return EXIT_DONE


def rank(
    held: Sequence[HeldOut], taxonomy: Taxonomy, *, top: int, minimum: int, console: Console
) -> Ranking:
    """Predicts all images once, and ranks the regions that contradict their labels.

    Args:
        held: Runs, and the images that each predicts.
        taxonomy: Names and colours of their classes.
        top: Number of regions to draw.
        minimum: Smallest region in pixels.
        console: Where progress is shown.

    Raises:
        CCFNetError: A run or a sample cannot be used.
    """
    from ccfnet_tf.report.suspects_sheet import draw_panel

    rows, panels = Best[Suspect](_MOST_ROWS), Best[tuple[Suspect, "Panel"]](top)
    found = 0
    with new_progress(console, figures=True) as bar:
        total = sum(len(each.samples) for each in held)
        task = bar.add_task("predicting", total=total, figures="")
        for each in held:
            for sample, image, label, prediction in _predictions(each, console):
                predicted, probabilities = prediction.labels, prediction.probabilities
                regions = find_regions(label, predicted, probabilities, minimum=minimum)
                found += len(regions)
                for region in regions:
                    suspect = _suspect(sample, region, image_score(regions), taxonomy)
                    rows.add(suspect.score, suspect)
                    if panels.admits(suspect.score):  # Drawing takes longer than looking.
                        panel = draw_panel(image, label, predicted, region, taxonomy)
                        panels.add(suspect.score, (suspect, panel))
                bar.update(task, advance=1, figures=f"{found} suspects")
    return Ranking(rows.in_order(), panels.in_order(), found)


def _predictions(
    held: HeldOut, console: Console
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray, Prediction]]:
    """Yields each sample with its image, label and prediction."""
    from ccfnet_tf.inference.keras_network import KerasNetwork

    network = KerasNetwork(held.run.path)  # Its probabilities are calibrated if the run is.
    stop = held.run.config.data.damaged_records == "stop"
    load = held.parts.load if stop else _without_damage(held.parts.load, console)
    for sample in held.samples:
        image, label = load(sample)
        prediction = network.predict(image)
        if not np.isfinite(prediction.probabilities).all():
            raise NotFiniteError(
                f"{sample.image}: {held.run.path} predicts NaN: its weights are damaged: train "
                "again with a lower learning rate"
            )
        yield sample, image, label, prediction


def _without_damage(load: Load, console: Console) -> Load:
    """Wraps `load` to report damaged records, and to replace them by void, which is no suspect."""

    def tolerant(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        try:
            return load(sample)
        except DamagedRecordError as error:
            console.print(f"skipped: {error}")
            return without_damage(load)(sample)

    return tolerant


def _suspect(sample: Sample, region: Region, total: float, taxonomy: Taxonomy) -> Suspect:
    given, predicted = (taxonomy.names[index] for index in (region.given, region.predicted))
    paths, numbers = (sample.image, sample.label), (*region.box, region.area)
    return Suspect(*paths, *numbers, given, predicted, region.log_odds, region.score, total)


def _what(held: Sequence[HeldOut]) -> str:
    """Describes the images that are predicted, and why others are not."""
    count = sum(len(each.samples) for each in held)
    if len(held) > 1:
        return (
            f"{count} images: the test splits of {len(held)} folds, each predicted by the run that "
            "did not train on it"
        )
    splits = " and ".join(f"{number} {split}" for split, number in held[0].splits.items())
    return (
        f"{splits} images; training images are left out, because a network repeats the labels it "
        "was trained on (ccfnet-tf crossval predicts all images)"
    )


def _write(ranking: Ranking, taxonomy: Taxonomy, folder: Path) -> None:
    from ccfnet_tf.inference.writers import write_png
    from ccfnet_tf.report.suspects_sheet import suspects_sheet

    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["rank", *Suspect._fields])
        for position, row in enumerate(ranking.rows, 1):
            rounded = [round(value, 4) if isinstance(value, float) else value for value in row]
            table.writerow([position, *rounded])
    if ranking.panels:
        titled = [
            (_title(position, suspect), panel)
            for position, (suspect, panel) in enumerate(ranking.panels, 1)
        ]
        write_png(folder / SHEET, suspects_sheet(titled, taxonomy))


def _title(position: int, suspect: Suspect) -> str:
    product = f"{suspect.area} pixels x {suspect.mean_log_odds:.1f}"
    return (
        f"{position}   {_short(suspect.image)}   score {suspect.score:.0f} = {product}   "
        f"labelled {suspect.given}, predicted {suspect.predicted}"
    )


def _short(path: str) -> str:
    """Returns the last parts of a path: names may repeat in the splits of a data set."""
    return "/".join(Path(path).parts[-3:])


def _report(ranking: Ranking, out: Path, minimum: int, console: Console) -> None:
    if not ranking.found:
        console.print(f"{out / TABLE}: empty: no region of {minimum} pixels contradicts its label")
        return
    listed = len(ranking.rows)
    rest = f" of {ranking.found}, the highest scores" if listed < ranking.found else ""
    console.print(f"{out / TABLE}: {listed} regions{rest}, of {minimum} pixels or more")
    console.print(f"{out / SHEET}: the first {len(ranking.panels)}")
