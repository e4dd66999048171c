"""`export_run`: exports a run to a file and publishes it only after verification."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from ccfnet_tf.errors import VerificationError
from ccfnet_tf.exporters.base import Exporter
from ccfnet_tf.exporters.verify.reference import reference_images, run_parts, write_reference
from ccfnet_tf.exporters.verify.verify import compare_with_keras, import_extras, new_table
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.io.new_folder import new_folder, refuse_existing
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.runs.run_data import with_data_at
from ccfnet_tf.runs.run_folder import RunInfo, load_run, read_run
from ccfnet_tf.runtimes.manifest import (
    REFERENCE,
    TRAINED,
    Difference,
    Manifest,
    checksums,
    write_manifest,
)

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy")


def export_run(
    run: Path, out: Path, exporter: Exporter, *, data_root: str | None, console: Console
) -> Path:
    """Exports a run's network as an artifact and verifies it against Keras.

    Args:
        run: The run folder.
        out: Folder of artifacts; see `Exporter.artifact_folder`.
        exporter: Exporter of the requested format.
        data_root: New folder of the run's data set, if it was moved.
        console: Console for progress and results.

    Returns:
        The artifact's folder.

    Raises:
        ConfigError: The artifact's folder exists, or an extra is not installed.
        RunError: The run cannot be used.
        VerificationError: The artifact's outputs differ from Keras's; it was removed.
        ResourceError: The disk is full; nothing was kept.
    """
    info = with_data_at(read_run(run), data_root)
    checkpoint = info.checkpoint()
    import_extras(exporter.format)
    if not exporter.size_from_data:
        refuse_existing(exporter.artifact_folder(out))  # before listing a large data set
    parts = run_parts(info)
    exporter = exporter.sized_for(parts)
    artifact = exporter.artifact_folder(out)
    refuse_existing(artifact)
    with new_progress(console) as bar:
        task = bar.add_task("loading the run", total=6 if exporter.measures_accuracy else 5)

        def step(description: str) -> None:
            bar.update(task, advance=1, description=description)
            if bar.disable:  # in log files and pipes: minutes without output look like a hang
                console.print(description)

        calibration = info.calibration()
        model = load_run(run, calibration=calibration)
        keras = KerasNetwork(model, taxonomy=info.taxonomy, calibration=calibration)
        step("running Keras on reference images")
        with new_folder(artifact) as folder:
            images = [exporter.resized(image) for image in reference_images(parts)]
            write_reference(folder / REFERENCE, keras, images)
            step(f"writing {exporter.kind}")
            if exporter.precision != "float32":
                model = load_run(run, precision=exporter.precision, calibration=calibration)
            with _full_disk_as_os_error(folder):
                left_out = exporter.write(model, parts, folder, calibration)
            step("verifying the file in a new process")
            with _likely_cause(info):
                difference = compare_with_keras(
                    folder, exporter.format, exporter.tolerance, artifact
                )
            step(exporter.last_step)
            results = exporter.measure(folder, keras, parts, partial(bar.advance, task))
            measured = {**left_out, **results}
            manifest = new_manifest(info, checkpoint, exporter, folder, difference)
            fitted = {} if calibration == UNCALIBRATED else asdict(calibration)
            applied = {name: value for name, value in fitted.items() if value is not None}
            write_manifest(folder, replace(manifest, measured=measured, calibration=applied))
            step("done")
    console.print(new_table(difference, exporter.tolerance, exporter.kind))
    for name, text in measured.items():
        console.print(f"{name}: {text}", soft_wrap=True)
    console.print(f"{artifact}: equal to {run} within its tolerance", soft_wrap=True)
    return artifact


@contextmanager
def _likely_cause(info: RunInfo) -> Iterator[None]:
    """Adds to a difference from Keras why a correct file can have it."""
    try:
        yield
    except VerificationError as error:
        if not info.config.freezes_random_batch_norm:
            raise
        raise VerificationError(
            f"{error}; the likely cause is train.batch_norm, which is frozen on a randomly "
            "initialised backbone and lets rounding errors grow: train again with "
            "--train.batch_norm synchronised, or with pretrained weights"
        ) from error


@contextmanager
def _full_disk_as_os_error(folder: Path) -> Iterator[None]:
    """Converts TensorFlow's errors about a full disk to OSError, which `new_folder` handles."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        for code in (errno.ENOSPC, errno.EDQUOT):
            if (reason := os.strerror(code)) in str(error):
                # LiteRT files are converted from a SavedModel in the folder for temporary files.
                elsewhere = "" if str(folder) in str(error) else f" in {tempfile.gettempdir()}"
                raise OSError(code, reason + elsewhere) from error
        raise


def new_manifest(
    info: RunInfo, checkpoint: Path, exporter: Exporter, folder: Path, difference: Difference
) -> Manifest:
    """Returns the manifest of the files in a folder, without `measured` and `calibration`."""
    inputs = exporter.inputs
    if info.trained:
        inputs = {**inputs, TRAINED: "x".join(map(str, info.trained))}
    return Manifest(
        format=exporter.format,
        run={"folder": str(info.path.resolve()), "checkpoint": checkpoint.name},
        versions={name: version(name) for name in LIBRARIES + exporter.libraries},
        classes=list(info.taxonomy.names),
        palette=[list(colour) for colour in info.taxonomy.palette],
        options=exporter.options,
        inputs=inputs,
        outputs=exporter.outputs,
        files=checksums(folder),
        difference=asdict(difference),
        measured={},
    )
