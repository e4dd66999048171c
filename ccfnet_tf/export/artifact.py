"""`export`: from a run to a file that is proven equal to it before it is handed over."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ccfnet_tf.artifacts.contract import (
    REFERENCE,
    TOLERANCES,
    Contract,
    Difference,
    Format,
    checksums,
    read_contract,
    write_contract,
)
from ccfnet_tf.errors import VerificationError
from ccfnet_tf.export.reference import reference_pictures, write_reference
from ccfnet_tf.export.saved_model import MAX_PIXELS, write_saved_model
from ccfnet_tf.inference.predictor import Predictor
from ccfnet_tf.inference.runs import RunInfo, load_run, read_run
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.new_folder import new_folder
from ccfnet_tf.progress import new_progress

NAME = "ccfnet"
"""What the model is called in TF Serving: the folder that holds its versions."""

LIBRARIES = ("ccfnet-tf", "tensorflow", "keras", "numpy")


def export_run(
    run: Path, out: Path, format_: Format, *, data_root: str | None, console: Console
) -> Path:
    """Writes a run's network as an artifact and proves it equal to Keras.

    Args:
        run: The run folder.
        out: Folder of artifacts; a SavedModel becomes `OUT/ccfnet/1`, the next `2`.
        format_: What to write.
        data_root: Where the run's data lie now, if they were moved.
        console: Where progress and figures are shown.

    Returns:
        The artifact's folder.

    Raises:
        RunError: The run cannot be used.
        VerificationError: The artifact answers otherwise than Keras; it was removed.
        ResourceError: The disk is full; nothing was kept.
    """
    info = read_run(run)
    checkpoint = info.checkpoint()
    if data_root is not None:
        data = replace(info.config.data, root=data_root)
        info = replace(info, config=replace(info.config, data=data))
    pictures = reference_pictures(info)
    with new_progress(console) as bar:
        task = bar.add_task("loading the run", total=4)
        model = load_run(run)
        bar.update(task, advance=1, description="what Keras answers")
        place = _next_version(out / NAME)
        with new_folder(place) as folder:
            write_reference(folder / REFERENCE, Predictor(model, taxonomy=info.taxonomy), pictures)
            bar.update(task, advance=1, description=f"writing {format_}")
            write_saved_model(model, info.taxonomy, folder)
            bar.update(task, advance=1, description="checking it in a fresh process")
            difference = _checked(folder, format_, place)
            write_contract(folder, _contract(info, checkpoint, format_, folder, difference))
            bar.update(task, advance=1)
    console.print(_table(difference, format_))
    console.print(f"{place}: equal to {run} within its tolerance", soft_wrap=True)
    return place


def verify(artifact: Path, *, console: Console) -> Difference:
    """Repeats the check of an artifact, from the answers that travel with it.

    Raises:
        RunError: It is no artifact, or not the one that was exported.
        VerificationError: It answers otherwise than Keras did.
    """
    contract = read_contract(artifact)
    with new_progress(console) as bar:
        task = bar.add_task("checking it in a fresh process", total=1)
        difference = _checked(artifact, contract.format, artifact)
        bar.advance(task)
    console.print(_table(difference, contract.format))
    return difference


def _next_version(model: Path) -> Path:
    """Returns the folder of the next version; TF Serving serves the highest number."""
    taken = [int(each.name) for each in model.glob("*") if each.name.isdigit()]
    return model / str(max(taken, default=0) + 1)


def _checked(folder: Path, format_: Format, place: Path) -> Difference:
    command = [sys.executable, "-m", "ccfnet_tf.export.check", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [""])[-1]
        raise VerificationError(f"{place}: the check ended with {done.returncode} ({said})")
    result = json.loads(lines[-1])
    if "error" in result:
        raise VerificationError(f"{place}: cannot be used: {result['error']}")
    difference = Difference(**result)
    above = difference.above(TOLERANCES[format_])
    if above:
        raise VerificationError(f"{place}: differs from Keras: {'; '.join(above)}")
    return difference


def _contract(
    info: RunInfo, checkpoint: Path, format_: Format, folder: Path, difference: Difference
) -> Contract:
    taxonomy: Taxonomy = info.taxonomy
    return Contract(
        format=format_,
        run={"folder": str(info.path.resolve()), "checkpoint": checkpoint.name},
        versions={name: version(name) for name in LIBRARIES},
        classes=list(taxonomy.names),
        palette=[list(colour) for colour in taxonomy.palette],
        options={},
        inputs={
            "images": "uint8 [B, H, W, 3], RGB, any size",
            "image_bytes": f"string [B], JPEG or PNG of at most {MAX_PIXELS} pixels, mixed sizes",
            "orientation": "EXIF orientation is not applied: the client does it before sending",
            "alpha": "dropped, not blended",
        },
        outputs={
            "labels": "class ids [B, H, W]",
            "difficulty": "P(the coarse answer is wrong) as round(255 p), uint8 [B, H, W]",
            "risk": "1 - the largest probability, as round(255 p), uint8 [B, H, W]",
            "probabilities": "float32 [B, H, W, C]",
            "*_png_bytes": "the first three as PNG, string [B]",
        },
        files=checksums(folder),
        difference=asdict(difference),
    )


def _table(difference: Difference, format_: Format) -> Table:
    limits = TOLERANCES[format_]
    table = Table(
        title=f"{format_} beside Keras on {difference.pictures} real pictures",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("difference")
    table.add_column("found", justify="right")
    table.add_column("allowed", justify="right")
    table.add_row("largest", f"{difference.largest:.1e}", f"{limits.largest:.0e}")
    table.add_row("99.9th percentile", f"{difference.percentile:.1e}", f"{limits.percentile:.0e}")
    table.add_row(
        "pixels with another label",
        f"{100 * difference.other_labels:.4f} %",
        f"{100 * limits.other_labels:g} %",
    )
    return table
