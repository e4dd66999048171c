"""Verifies that a file's outputs equal Keras's, during export and at any later time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ccfnet_tf.errors import ResourceError, RunError, VerificationError
from ccfnet_tf.exporters.verify.gpu import try_on_gpu
from ccfnet_tf.io.console import new_progress
from ccfnet_tf.runtimes.litert import import_interpreter
from ccfnet_tf.runtimes.manifest import MANIFEST, Difference, Format, Manifest, tolerance
from ccfnet_tf.runtimes.onnx import import_extra
from ccfnet_tf.runtimes.open_segmenter import find_source


def verify(artifact: Path, *, console: Console) -> Difference:
    """Repeats the verification of an artifact with the references that it contains.

    Args:
        artifact: The artifact's folder, or the network's file in it.
        console: Console for progress and results.

    Returns:
        The differences from Keras.

    Raises:
        RunError: The path is not an artifact, or the artifact was changed after its export.
        VerificationError: The outputs differ from Keras's.
    """
    source = find_source(str(artifact))
    if source.manifest is None:
        raise RunError(
            f"{artifact}: not an exported file: give a folder that `ccfnet-tf export` wrote"
        )
    manifest, path = source.manifest, Path(source.place)
    folder = path.parent if path.is_file() else path
    import_extras(manifest.format)
    with new_progress(console) as bar:
        task = bar.add_task("verifying the file in a new process", total=2)
        difference = compare_with_keras(folder, manifest.format, tolerance_here(manifest), artifact)
        bar.update(task, advance=1, description="GPU")
        quantize = manifest.options.get("quantize")
        gpu_results = verify_on_gpu(folder, quantize) if quantize else {}
        bar.advance(task)
    console.print(new_table(difference, tolerance_here(manifest), manifest.kind))
    for name, text in gpu_results.items():
        console.print(f"{name}: {text}", soft_wrap=True)
    console.print(f"{artifact}: equal to its run within its tolerance", soft_wrap=True)
    return difference


def import_extras(format_: Format) -> None:
    """Imports the extras of a format before any work; raises ConfigError if one is missing."""
    if format_ == "tflite":
        import_interpreter()
    if format_ == "onnx":
        import_extra("onnxruntime")


def compare_with_keras(
    folder: Path, format_: Format, allowed: Difference, path: Path
) -> Difference:
    """Compares an artifact with its references in a process that does not import the network.

    Args:
        folder: The artifact's current folder.
        format_: The artifact's format.
        allowed: Largest allowed differences from Keras.
        path: Path in messages: the folder that the artifact is published to.

    Returns:
        The differences from Keras.

    Raises:
        VerificationError: A difference exceeds its limit, or the artifact cannot be used.
        ResourceError: The disk of temporary files is full.
    """
    command = [
        sys.executable,
        "-P",
        "-m",
        "ccfnet_tf.exporters.verify.compare_process",
        str(folder),
        format_,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        message = (done.stderr.strip().splitlines() or [""])[-1]
        raise VerificationError(
            f"{path}: the verification process failed with exit code {done.returncode} ({message})"
        )
    result = json.loads(lines[-1])
    if "full" in result:
        raise ResourceError(
            f"{path}: cannot be verified: the disk of temporary files is full "
            f"({tempfile.gettempdir()}): free space there, or set TMPDIR to another folder"
        )
    if "error" in result:
        raise VerificationError(f"{path}: cannot be used: {result['error']}")
    difference = Difference(**result)
    above = difference.above(allowed)
    if above:
        raise VerificationError(f"{path}: differs from Keras: {'; '.join(above)}")
    return difference


def verify_on_gpu(folder: Path, quantize: str) -> dict[str, str]:
    """Runs a LiteRT file on this machine's GPU, if it has one; returns a description of the result.

    Raises:
        VerificationError: The GPU computes wrong outputs for a file with float weights.
    """
    verdict = try_on_gpu(folder, in_8_bits=quantize in ("dynamic", "int8"))
    if verdict.wrong and quantize in ("none", "fp16"):
        raise VerificationError(f"--quantize {quantize}: on this machine's GPU: {verdict.message}")
    return {"GPU": verdict.message}


def tolerance_here(manifest: Manifest) -> Difference:
    """Returns the largest allowed differences from Keras when verification is repeated.

    Export accepts int8 by its accuracy, which is not measured again. Therefore the differences that
    export measured, doubled because other processors round differently, are the limit.
    """
    allowed = tolerance(manifest.kind)
    if manifest.options.get("quantize") != "int8":
        return allowed
    try:
        measured = Difference(**manifest.difference)
    except TypeError as error:
        raise RunError(f"{MANIFEST}: 'difference' lacks figures: export the run again") from error
    return replace(
        allowed,
        percentile=min(1.0, 2 * measured.percentile),
        mean=2 * measured.mean,
        other_labels=2 * measured.other_labels + 1e-3,
    )


def new_table(difference: Difference, limits: Difference, kind: str) -> Table:
    """Returns a table of the differences and their limits."""
    table = Table(
        title=f"{kind} compared with Keras on real images", title_justify="left", title_style="bold"
    )
    table.add_column("difference")
    table.add_column("found", justify="right")
    table.add_column("allowed", justify="right")
    largest = "any" if limits.largest >= 1.0 else f"{limits.largest:.0e}"
    table.add_row("largest", f"{difference.largest:.1e}", largest)
    table.add_row("99.9th percentile", f"{difference.percentile:.1e}", f"{limits.percentile:.0e}")
    table.add_row("mean", f"{difference.mean:.1e}", f"{limits.mean:.0e}")
    table.add_row(
        "pixels with another label",
        f"{100 * difference.other_labels:.4f} %",
        f"{100 * limits.other_labels:g} %",
    )
    return table
