"""`ccfnet-tf calibrate`: make the probabilities of a run come true on its validation split."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.cli.evaluate import checked_load
from ccfnet_tf.errors import EXIT_DONE, DataError
from ccfnet_tf.evaluation.calibrate import (
    Method,
    choose_threshold,
    fit_calibration,
    sample_pixels,
)
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.new_folder import refuse_unwritable
from ccfnet_tf.io.parent_command import IS_PART
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.calibration_file import CALIBRATION, calibration_text
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runs.write_run_files import write_text

if TYPE_CHECKING:
    from rich.table import Table

    from ccfnet_tf.evaluation.calibrate import Fit


def new_parser() -> Parser:
    """Returns the parser of this verb."""
    parser = Parser(
        prog="ccfnet-tf calibrate",
        description="Fit a temperature for the final probabilities, and a scale and bias for "
        "attention, on the validation split. No label changes, unless the run has a hard blend "
        "(model.blend): its threshold is chosen too. Writes calibration.json in the run, which "
        "predict, evaluate, serve and export then use.",
    )
    parser.add_argument("run", help="run folder")
    method = "vector fits a factor and a bias for each class (default: %(default)s)"
    parser.add_argument("--method", choices=get_args(Method), default="temperature", help=method)
    parser.add_argument("--data.root", dest="root", help="where the data are stored now")
    return parser


def main(args: list[str]) -> int:
    """Calibrates a run; returns the exit code."""
    options = new_parser().parse_args(args)
    run = expanded(options.run)
    info = read_run(run)
    checkpoint = info.checkpoint()
    refuse_unwritable(run, "copy of the run")  # before TensorFlow is waited for
    data, parts = info.config.data, read_run_parts(info, options.root)
    if not parts.val:
        place = options.root or data.root or parts.format
        raise DataError(
            f"{place}: has no validation split to calibrate on; train with data.val_share above 0"
        )
    start_tensorflow()
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.training.images_not_trained_on import warn_of_trained

    console = new_console()
    warn_of_trained(run, parts.val, parts, new_console(stderr=True), use="calibrate on")
    # Without the calibration that the run may have, which may be of other weights or damaged.
    network, threshold = KerasNetwork(run, calibration=UNCALIBRATED), None
    with new_progress(console) as bar:
        load = checked_load(parts.val, parts, data, bar)
        if network.hard_threshold is not None:
            task = bar.add_task("threshold of the blend", total=len(parts.val))
            threshold = choose_threshold(
                network, parts.val, load, advance=lambda: bar.advance(task)
            )
            network = KerasNetwork(run, calibration=Calibration(blend_threshold=threshold))
        task = bar.add_task("validation", total=len(parts.val))
        pixels = sample_pixels(network, parts.val, load, advance=lambda: bar.advance(task))
        task = bar.add_task("fitting", total=None)
        fit = fit_calibration(pixels, options.method)
    calibration = replace(fit.calibration, blend_threshold=threshold)
    measured = {
        "split": "val",
        "images": len(parts.val),
        "pixels": fit.pixels,
        "before": fit.before,
        "after": fit.after,
    }
    path = run / CALIBRATION
    kernels = info.config.train.kernel_precision
    write_text(path, calibration_text(checkpoint, calibration, measured, kernels=kernels))
    console.print(_table(fit, len(parts.val)))
    if threshold is not None:
        console.print(f"fine is used where attention is above {threshold:.4f}")
    following = "" if IS_PART else f"; measure it on the test split: ccfnet-tf evaluate {run}"
    console.print(f"written to {path}{following}")
    return EXIT_DONE


def _table(fit: Fit, images: int) -> Table:
    from rich.table import Table

    title = f"{images} images of the validation split, {fit.pixels:,} pixels"
    table = Table(title=title)
    for name in ("", "before", "after"):
        table.add_column(name, justify="left" if not name else "right")
    for key in MAPS:
        errors = (f"{100 * each[key]:.2f} %" for each in (fit.before, fit.after))
        table.add_row(f"calibration error of {key}", *errors)
    table.add_row("negative log-likelihood", f"{fit.before['nll']:.4f}", f"{fit.after['nll']:.4f}")
    if len(fit.calibration.scale) == 1:
        table.add_row("temperature", "1", f"{1 / fit.calibration.scale[0]:.3f}")
    return table
