"""`export`: from a run to a file that is proven equal to it before it is handed over."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ccfnet_tf.datasets.splits import Parts
from ccfnet_tf.errors import VerificationError
from ccfnet_tf.exporters.options import LARGEST_USUAL, NAME, Order, read_moved_run
from ccfnet_tf.exporters.saved_model import writer as saved_model
from ccfnet_tf.exporters.saved_model.warmup import write_warmup
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.exporters.verify.accuracy import measure_accuracy
from ccfnet_tf.exporters.verify.reference import reference_pictures, run_parts, write_reference
from ccfnet_tf.exporters.verify.verify import import_extras, new_table, prove, prove_on_gpu
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.io.new_folder import new_folder, refuse_existing
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs.run_folder import RunInfo, load_run
from ccfnet_tf.runtimes.letterbox import at_most, fit
from ccfnet_tf.runtimes.litert import LiteRTNetwork
from ccfnet_tf.runtimes.manifest import (
    MODEL,
    REFERENCE,
    TRAINED,
    Contract,
    Difference,
    Format,
    checksums,
    tolerance,
    write_contract,
)

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy")
LIBRARIES_OF: dict[Format, tuple[str, ...]] = {
    "saved_model": (),
    "tflite": ("ai-edge-litert",),
    "onnx": ("onnx", "tf2onnx", "onnxruntime"),
}
"""What else a format is made and checked by."""

CALIBRATION = 64
"""Training pictures that int8's ranges are taken from, evenly spread."""


def export_run(
    run: Path, out: Path, order: Order, *, data_root: str | None, console: Console
) -> Path:
    """Writes a run's network as an artifact and proves it equal to Keras.

    Args:
        run: The run folder.
        out: Folder of artifacts; see `Order.place`.
        order: What to write.
        data_root: Where the run's data lie now, if they were moved.
        console: Where progress and figures are shown.

    Returns:
        The artifact's folder.

    Raises:
        ConfigError: The place is taken, or an extra is not installed.
        RunError: The run cannot be used.
        VerificationError: The artifact answers otherwise than Keras; it was removed.
        ResourceError: The disk is full; nothing was kept.
    """
    info = read_moved_run(run, data_root)
    checkpoint = info.checkpoint()
    place = order.place(out)
    refuse_existing(place)
    import_extras(order.format)
    parts = run_parts(info)
    allowed = tolerance(order.kind)
    measures_accuracy = order.litert is not None and order.litert.quantize == "int8"
    with new_progress(console) as bar:
        task = bar.add_task("loading the run", total=6 if measures_accuracy else 5)

        def step(description: str) -> None:
            bar.update(task, advance=1, description=description)
            if bar.disable:  # a log file or a pipe: minutes without a word look like a fault
                console.print(description)

        model = load_run(run)
        predictor = KerasNetwork(model, taxonomy=info.taxonomy)
        step("what Keras answers")
        with new_folder(place) as folder:
            write_reference(
                folder / REFERENCE, predictor, _fitted(reference_pictures(parts), order)
            )
            step(f"writing {order.kind}")
            if order.precision != "float32":
                model = load_run(run, precision=order.precision)
            with _full_disk_as_os_error(folder):
                left_out = _write(model, order, folder, parts)
            step("checking it in a fresh process")
            difference = prove(folder, order.format, allowed, place)
            step("accuracy and GPU" if order.litert else "checksums")
            found = _measure(folder, order, predictor, parts, partial(bar.advance, task))
            measured = {**left_out, **found}
            contract = _contract(info, checkpoint, order, folder, difference)
            write_contract(folder, replace(contract, measured=measured))
            step("done")
    console.print(new_table(difference, allowed, order.kind))
    for name, said in measured.items():
        console.print(f"{name}: {said}", soft_wrap=True)
    console.print(f"{place}: equal to {run} within its tolerance", soft_wrap=True)
    return place


def _fitted(pictures: Sequence[np.ndarray], order: Order) -> list[np.ndarray]:
    """Returns the pictures at the file's size; for one of any size, not too large to keep."""
    if order.litert is None:
        return [at_most(picture, LARGEST_USUAL) for picture in pictures]
    return [fit(picture, order.litert.size).image for picture in pictures]


@contextmanager
def _full_disk_as_os_error(folder: Path) -> Iterator[None]:
    """Says of TensorFlow's own errors what Python's say: which is how `new_folder` knows them."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        for code in (errno.ENOSPC, errno.EDQUOT):
            if (reason := os.strerror(code)) in str(error):
                # LiteRT files are made of a SavedModel that lies elsewhere.
                elsewhere = "" if str(folder) in str(error) else f" in {tempfile.gettempdir()}"
                raise OSError(code, reason + elsewhere) from error
        raise


def _write(model: Any, order: Order, folder: Path, parts: Parts) -> dict[str, str]:
    """Writes the network into the folder; returns what had to be left out, in words."""
    if order.format == "saved_model":
        write_saved_model(model, parts.taxonomy, folder)
        if not write_warmup(folder, NAME):
            return {"warm-up": "left out: it takes pip install 'ccfnet-tf[serving]'"}
    elif order.litert is None:
        from ccfnet_tf.exporters.onnx.writer import write_onnx

        write_onnx(model, folder / MODEL["onnx"])
    else:
        from ccfnet_tf.exporters.litert.writer import write_litert

        calibration: list[np.ndarray] = []
        if order.litert.quantize == "int8":
            step = -(-len(parts.train) // CALIBRATION)
            samples = parts.train[::step]
            calibration = _fitted([parts.load(sample)[0] for sample in samples], order)
        write_litert(model, parts.taxonomy, folder / MODEL["tflite"], order.litert, calibration)
    return {}


def _measure(
    folder: Path,
    order: Order,
    predictor: KerasNetwork,
    parts: Parts,
    advance: Callable[[float], None],
) -> dict[str, str]:
    """Returns what only LiteRT files are asked: accuracy where it is int8, and the GPU's answer.

    Raises:
        VerificationError: An int8 file loses too much, or a file whose weights are floats is
            answered wrongly by the GPU.
    """
    if order.litert is None:
        return {}
    measured = {}
    if order.litert.quantize == "int8":
        network = LiteRTNetwork(folder / MODEL["tflite"], predictor.taxonomy)
        accuracy = measure_accuracy(predictor, network, parts, order.litert.size, advance)
        measured["accuracy"] = str(accuracy)
        if not accuracy.loss <= order.max_loss:
            raise VerificationError(
                f"--quantize int8 leaves {accuracy}, and at most {order.max_loss:g} may be lost: "
                "take fp16, or accept it with --max-loss"
            )
    return measured | prove_on_gpu(folder, order.litert.quantize)


def _contract(
    info: RunInfo, checkpoint: Path, order: Order, folder: Path, difference: Difference
) -> Contract:
    taxonomy: Taxonomy = info.taxonomy
    inputs, outputs = _described(order)
    if info.trained:
        inputs = {**inputs, TRAINED: "x".join(map(str, info.trained))}
    return Contract(
        format=order.format,
        run={"folder": str(info.path.resolve()), "checkpoint": checkpoint.name},
        versions={name: version(name) for name in LIBRARIES + LIBRARIES_OF[order.format]},
        classes=list(taxonomy.names),
        palette=[list(colour) for colour in taxonomy.palette],
        options=order.options,
        inputs=inputs,
        outputs=outputs,
        files=checksums(folder),
        difference=asdict(difference),
        measured={},
    )


def _described(order: Order) -> tuple[dict[str, str], dict[str, str]]:
    """Returns what goes in and comes out, in words."""
    if order.format == "saved_model":
        return saved_model.INPUTS, saved_model.OUTPUTS
    if order.litert is not None:
        return order.litert.inputs, order.litert.described_outputs
    from ccfnet_tf.exporters.onnx import writer as onnx

    return onnx.INPUTS, onnx.OUTPUTS
