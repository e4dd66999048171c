"""Verifies that a file's outputs equal Keras's: on export, and again anywhere later."""

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
from ccfnet_tf.runtimes.sources import find_source


def verify(artifact: Path, *, console: Console) -> Difference:
    """Repeats the check of an artifact, a folder or the file in it, from the answers beside it.

    Raises:
        RunError: It is not an artifact, or not the one that was exported.
        VerificationError: Its outputs differ from Keras's.
    """
    source = find_source(str(artifact))
    if source.manifest is None:
        raise RunError(f"{artifact}: not an exported file: give what `ccfnet-tf export` wrote")
    manifest, place = source.manifest, Path(source.place)
    folder = place.parent if place.is_file() else place
    import_extras(manifest.format)
    with new_progress(console) as bar:
        task = bar.add_task("checking it in a fresh process", total=2)
        difference = compare_with_keras(folder, manifest.format, tolerance_here(manifest), artifact)
        bar.update(task, advance=1, description="GPU")
        quantize = manifest.options.get("quantize")
        on_gpu = verify_on_gpu(folder, quantize) if quantize else {}
        bar.advance(task)
    console.print(new_table(difference, tolerance_here(manifest), manifest.kind))
    for name, said in on_gpu.items():
        console.print(f"{name}: {said}", soft_wrap=True)
    console.print(f"{artifact}: equal to its run within its tolerance", soft_wrap=True)
    return difference


def import_extras(format_: Format) -> None:
    """Finds out before any work whether an extra is missing; raises ConfigError."""
    if format_ == "tflite":
        import_interpreter()
    if format_ == "onnx":
        import_extra("onnxruntime")


def compare_with_keras(
    folder: Path, format_: Format, allowed: Difference, place: Path
) -> Difference:
    """Holds an artifact against the answers beside it, in a process that does not know the network.

    Args:
        folder: Where it lies now.
        format_: What it is.
        allowed: How far it may be from Keras.
        place: Its name in messages, where it is to lie.

    Returns:
        How far it is.

    Raises:
        VerificationError: It is further, or cannot be used.
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
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise VerificationError(f"{place}: the check ended with {done.returncode} ({said})")
    result = json.loads(lines[-1])
    if "full" in result:
        raise ResourceError(
            f"{place}: cannot be checked: the disk of temporary files is full "
            f"({tempfile.gettempdir()}): free space there, or name another folder in TMPDIR"
        )
    if "error" in result:
        raise VerificationError(f"{place}: cannot be used: {result['error']}")
    difference = Difference(**result)
    above = difference.above(allowed)
    if above:
        raise VerificationError(f"{place}: differs from Keras: {'; '.join(above)}")
    return difference


def verify_on_gpu(folder: Path, quantize: str) -> dict[str, str]:
    """Runs a LiteRT file on this machine's GPU, if it has one; returns what came of it, in words.

    Raises:
        VerificationError: The GPU answers a file otherwise whose weights are floats.
    """
    verdict = try_on_gpu(folder, in_8_bits=quantize in ("dynamic", "int8"))
    if verdict.wrong and quantize in ("none", "fp16"):
        raise VerificationError(f"--quantize {quantize}: on this machine's GPU: {verdict.said}")
    return {"GPU": verdict.said}


def tolerance_here(manifest: Manifest) -> Difference:
    """Returns how far an artifact may be from Keras here.

    int8 was accepted by its accuracy, which is not measured again, so what was found then counts;
    another processor rounds otherwise.
    """
    allowed = tolerance(manifest.kind)
    if manifest.options.get("quantize") != "int8":
        return allowed
    try:
        then = Difference(**manifest.difference)
    except TypeError as error:
        raise RunError(f"{MANIFEST}: 'difference' lacks figures: export the run again") from error
    return replace(
        allowed,
        percentile=min(1.0, 2 * then.percentile),
        mean=2 * then.mean,
        other_labels=2 * then.other_labels + 1e-3,
    )


def new_table(difference: Difference, limits: Difference, kind: str) -> Table:
    """Returns what was found beside what is allowed."""
    table = Table(
        title=f"{kind} beside Keras on real images", title_justify="left", title_style="bold"
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
