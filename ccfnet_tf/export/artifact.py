"""`export`: from a run to a file that is proven equal to it before it is handed over."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ccfnet_tf.artifacts.contract import (
    MODEL,
    REFERENCE,
    Contract,
    Difference,
    Format,
    checksums,
    read_contract,
    tolerance,
    write_contract,
)
from ccfnet_tf.artifacts.fit import fit
from ccfnet_tf.artifacts.litert import LiteRTNetwork
from ccfnet_tf.datasets.parts import Parts
from ccfnet_tf.errors import VerificationError
from ccfnet_tf.export import saved_model
from ccfnet_tf.export.accuracy import measure_accuracy
from ccfnet_tf.export.gpu import try_on_gpu
from ccfnet_tf.export.order import NAME, Order, read_moved_run
from ccfnet_tf.export.reference import reference_pictures, run_parts, write_reference
from ccfnet_tf.export.saved_model import write_saved_model
from ccfnet_tf.export.warmup import write_warmup
from ccfnet_tf.inference.predictor import Predictor
from ccfnet_tf.inference.runs import RunInfo, load_run
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.new_folder import new_folder, refuse_existing
from ccfnet_tf.progress import new_progress

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy")

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
    parts = run_parts(info)
    with new_progress(console) as bar:
        task = bar.add_task("loading the run", total=5)

        def step(description: str) -> None:
            bar.update(task, advance=1, description=description)

        model = load_run(run)
        predictor = Predictor(model, taxonomy=info.taxonomy)
        step("what Keras answers")
        with new_folder(place) as folder:
            write_reference(
                folder / REFERENCE, predictor, _fitted(reference_pictures(parts), order)
            )
            step(f"writing {order.kind}")
            left_out = _write(model, order, folder, parts)
            step("checking it in a fresh process")
            difference = _checked(folder, order.format, order.kind, place)
            step("accuracy and GPU" if order.litert else "checksums")
            measured = {**left_out, **_measure(folder, order, predictor, parts, place)}
            contract = _contract(info, checkpoint, order, folder, difference)
            write_contract(folder, replace(contract, measured=measured))
            step("done")
    console.print(_table(difference, order.kind))
    for name, said in measured.items():
        console.print(f"{name}: {said}", soft_wrap=True)
    console.print(f"{place}: equal to {run} within its tolerance", soft_wrap=True)
    return place


def verify(artifact: Path, *, console: Console) -> Difference:
    """Repeats the check of an artifact, a folder or the file in it, from the answers beside it.

    Raises:
        RunError: It is no artifact, or not the one that was exported.
        VerificationError: It answers otherwise than Keras did.
    """
    artifact = artifact.parent if artifact.is_file() else artifact
    contract = read_contract(artifact)
    with new_progress(console) as bar:
        task = bar.add_task("checking it in a fresh process", total=1)
        difference = _checked(artifact, contract.format, contract.kind, artifact)
        bar.advance(task)
    console.print(_table(difference, contract.kind))
    return difference


def _fitted(pictures: Sequence[np.ndarray], order: Order) -> list[np.ndarray]:
    if order.litert is None:
        return list(pictures)
    return [fit(picture, order.litert.size).image for picture in pictures]


def _write(model: Any, order: Order, folder: Path, parts: Parts) -> dict[str, str]:
    """Writes the network into the folder; returns what had to be left out, in words."""
    if order.format == "saved_model":
        write_saved_model(model, parts.taxonomy, folder)
        if not write_warmup(folder, NAME):
            return {"warm-up": "left out: it takes pip install 'ccfnet-tf[serving]'"}
    elif order.litert is None:
        from ccfnet_tf.export.onnx import write_onnx

        write_onnx(model, folder / MODEL["onnx"])
    else:
        from ccfnet_tf.export.litert import write_litert

        calibration: list[np.ndarray] = []
        if order.litert.quantize == "int8":
            step = -(-len(parts.train) // CALIBRATION)
            samples = parts.train[::step]
            calibration = _fitted([parts.load(sample)[0] for sample in samples], order)
        write_litert(model, parts.taxonomy, folder / MODEL["tflite"], order.litert, calibration)
    return {}


def _measure(
    folder: Path, order: Order, predictor: Predictor, parts: Parts, place: Path
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
        accuracy = measure_accuracy(predictor, network, parts, order.litert.size)
        measured["accuracy"] = str(accuracy)
        if not accuracy.loss <= order.max_loss:
            raise VerificationError(
                f"{place}: int8 leaves {accuracy}, and at most {order.max_loss:g} may be lost: "
                "take --quantize fp16, or accept it with --max-loss"
            )
    verdict = try_on_gpu(folder)
    measured["GPU"] = verdict.said
    if verdict.wrong and order.litert.quantize in ("none", "fp16"):
        raise VerificationError(f"{place}: on a GPU: {verdict.said}")
    return measured


def _checked(folder: Path, format_: Format, kind: str, place: Path) -> Difference:
    command = [sys.executable, "-m", "ccfnet_tf.export.check", str(folder), format_]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise VerificationError(f"{place}: the check ended with {done.returncode} ({said})")
    result = json.loads(lines[-1])
    if "error" in result:
        raise VerificationError(f"{place}: cannot be used: {result['error']}")
    difference = Difference(**result)
    above = difference.above(tolerance(kind))
    if above:
        raise VerificationError(f"{place}: differs from Keras: {'; '.join(above)}")
    return difference


def _contract(
    info: RunInfo, checkpoint: Path, order: Order, folder: Path, difference: Difference
) -> Contract:
    taxonomy: Taxonomy = info.taxonomy
    inputs, outputs = _described(order)
    return Contract(
        format=order.format,
        run={"folder": str(info.path.resolve()), "checkpoint": checkpoint.name},
        versions={name: version(name) for name in LIBRARIES},
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
    from ccfnet_tf.export import onnx

    return onnx.INPUTS, onnx.OUTPUTS


def _table(difference: Difference, kind: str) -> Table:
    limits = tolerance(kind)
    table = Table(
        title=f"{kind} beside Keras on real pictures", title_justify="left", title_style="bold"
    )
    table.add_column("difference")
    table.add_column("found", justify="right")
    table.add_column("allowed", justify="right")
    table.add_row("largest", f"{difference.largest:.1e}", f"{limits.largest:.0e}")
    table.add_row("99.9th percentile", f"{difference.percentile:.1e}", f"{limits.percentile:.0e}")
    table.add_row("mean", f"{difference.mean:.1e}", f"{limits.mean:.0e}")
    table.add_row(
        "pixels with another label",
        f"{100 * difference.other_labels:.4f} %",
        f"{100 * limits.other_labels:g} %",
    )
    return table
