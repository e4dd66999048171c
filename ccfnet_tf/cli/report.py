"""`ccfnet-tf report`: an evaluation as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccfnet_tf.cli.argument_parser import Parser, add_palette_option
from ccfnet_tf.cli.tta_tile_options import add_wrapping_options, wrapping_of
from ccfnet_tf.errors import EXIT_DONE, DataError
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.palettes import PaletteName, with_palette
from ccfnet_tf.report.read_evaluation_json import EVALUATION, Evaluated
from ccfnet_tf.runs.run_folder import METRICS, RunInfo, read_run

if TYPE_CHECKING:
    from rich.console import Console

    from ccfnet_tf.datasets.samples import Load
    from ccfnet_tf.evaluation.read_image_table import ImageRow
    from ccfnet_tf.inference.wrap_segmenter import Wrapping
    from ccfnet_tf.labels import Sample


PAGE = "report.html"


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf report",
        description="Write an evaluation as one HTML page that needs no network: a summary in "
        "words, tables, plots, and a gallery of the split's images with all layers of the "
        "prediction. `ccfnet-tf evaluate` comes first.",
    )
    parser.add_argument(
        "source",
        metavar="RUN",
        help="run folder; or an evaluation.json, for a page without images",
    )
    parser.add_argument(
        "--out", metavar="FILE", help=f"the page (default: {PAGE} in the run, or next to the file)"
    )
    parser.add_argument("--data.root", dest="root", help="where the data are stored now")
    add_palette_option(parser)
    return parser


def main(args: list[str]) -> int:
    """Writes a report; returns the exit code."""
    options = new_parser().parse_args(args)
    from ccfnet_tf.io.console import new_console
    from ccfnet_tf.io.new_folder import refuse_unwritable
    from ccfnet_tf.report.html_pages import refuse_other_file

    source = expanded(options.source)
    folder = source.parent if source.is_file() else source
    out = expanded(options.out) if options.out else folder / PAGE
    refuse_other_file(out)
    console = new_console()
    if source.is_file():
        refuse_unwritable(out.parent)
        page = _of_file(source, options.palette)
    else:
        page = _of_run(source, out, options.root, options.palette, console)
    from ccfnet_tf.report.html_pages import write_page

    write_page(out, page)
    size = len(page.encode("utf-8", "replace")) / 1e6
    console.print(f"written to {out} ({size:.1f} MB)")
    return EXIT_DONE


def _of_file(path: Path, palette: PaletteName) -> str:
    """Returns the page of an `evaluation.json` alone."""
    from ccfnet_tf.labels import Taxonomy, distinct_colours
    from ccfnet_tf.report.run_report import report_page

    evaluated = Evaluated.read(path)
    names = evaluated.classes
    taxonomy = with_palette(Taxonomy(names, distinct_colours(len(names))), palette)
    return report_page(evaluated, taxonomy, title=path.resolve().parent.name or path.name)


def _of_run(run: Path, out: Path, root: str | None, palette: PaletteName, console: Console) -> str:
    """Returns the page of a run, with a gallery."""
    from ccfnet_tf.evaluation.read_image_table import IMAGES_CSV, read_rows
    from ccfnet_tf.io.new_folder import refuse_unwritable
    from ccfnet_tf.runs.write_run_files import all_rows

    info = read_run(run)
    evaluated = Evaluated.read(run / EVALUATION)
    if evaluated.classes != info.taxonomy.names:
        raise DataError(
            f"{evaluated.path}: is of other classes than the run: run `ccfnet-tf evaluate` "
            "again, on the same split"
        )
    rows = read_rows(run / IMAGES_CSV)
    _refuse_other_rows(run / IMAGES_CSV, rows, evaluated)
    wrapping = _wrapping(evaluated)
    # Before TensorFlow is waited for: a calibration of other weights, and a damaged table.
    info.calibration()
    all_rows(run / METRICS)
    refuse_unwritable(out.parent)
    start_tensorflow()
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.inference.wrap_segmenter import wrap
    from ccfnet_tf.io.console import new_progress
    from ccfnet_tf.report.gallery import choose, gallery
    from ccfnet_tf.report.run_report import report_page

    shown = [rows[place] for place in choose(rows)]
    samples, load = _samples(info, root, evaluated.split, [row.name for row in shown])
    network = wrap(KerasNetwork(run), wrapping)
    taxonomy = with_palette(info.taxonomy, palette)
    with new_progress(console) as bar:
        task = bar.add_task("drawing images", total=len(shown))
        entries = gallery(
            network,
            zip(samples, shown, strict=True),
            load,
            taxonomy,
            advance=lambda: bar.advance(task),
        )
    return report_page(
        evaluated, taxonomy, title=run.resolve().name, run=run, entries=entries, images=len(rows)
    )


def _refuse_other_rows(path: Path, rows: Sequence[ImageRow], evaluated: Evaluated) -> None:
    """Raises DataError if `images.csv` lacks images of the evaluation, or has others."""
    here = (len(rows), sum(row.pixels for row in rows))
    there = (evaluated.count("pictures"), evaluated.count("pixels"))
    if here != there:
        raise DataError(
            f"{path}: has {here[0]} images with {here[1]} pixels, and {EVALUATION} {there[0]} with "
            f"{there[1]}: run `ccfnet-tf evaluate` again, on the same split"
        )


def _wrapping(evaluated: Evaluated) -> Wrapping:
    """Returns the views and tiles of the evaluation, so that images show what was measured."""
    parser = Parser(prog=str(evaluated.path))
    add_wrapping_options(parser)
    return wrapping_of(parser.parse_args(evaluated.wrapping.split()))


def _samples(
    info: RunInfo, root: str | None, split: str, names: Sequence[str]
) -> tuple[list[Sample], Load]:
    """Returns the samples of these names in a split of the run's data, and what reads them.

    Raises:
        CCFNetError: The data are not there, are of other classes, or lack one of them.
    """
    from ccfnet_tf.datasets.open_data_set import without_damage
    from ccfnet_tf.runs.run_data import read_run_parts

    data, parts = info.config.data, read_run_parts(info, root)
    there = {sample.name: sample for sample in getattr(parts, split)}
    missing = [name for name in names if name not in there]
    if missing:
        place = root or data.root or parts.format
        raise DataError(
            f"{place}: the {split} split has no image '{missing[0]}', which was evaluated: "
            "give the data with --data.root, or run `ccfnet-tf evaluate` again, on the same "
            "split"
        )
    load = without_damage(parts.load) if data.damaged_records == "skip" else parts.load
    return [there[name] for name in names], load
