"""Compares a SavedModel with Keras's outputs, for three ways of loading it."""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ccfnet_tf.exporters.verify.reference import Gaps, read_references, same_shape
from ccfnet_tf.inference.segmenter_protocol import MAPS, Maps
from ccfnet_tf.runtimes.allowed_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import LEVELS, Difference

SIGNATURES = ("serving_default", "encoded", "probabilities")
"""Signatures that are compared with Keras; `classes` returns names only."""

OUTPUTS_OF = {
    "serving_default": ("labels", *MAPS),
    "encoded": (),
    "probabilities": ("probabilities",),
}
"""Arrays that are read from the files of `saved_model_cli run`; `encoded` returns strings."""

_PROBE_BYTES = 1 << 20
"""Bytes that are written to find out whether the disk is full."""

Tensors = Mapping[str, np.ndarray]
Call = Callable[[np.ndarray], Tensors]
"""An image uint8 [1, H, W, 3] -> named arrays."""


def check_saved_model(folder: Path) -> Difference:
    """Compares every signature with Keras, for three ways of loading the SavedModel.

    These are `tf.saved_model.load`, a session of TensorFlow 1, as in TensorFlow Serving, and
    `saved_model_cli run`. The last writes strings as pickles, which are not opened: its outputs of
    `encoded` are not compared, only its exit status is checked.

    Raises:
        RunError: The graph contains operators that are not allowed.
        ValueError: Signatures differ from each other, or an output has a wrong shape.
    """
    import tensorflow as tf

    refuse_harmful_graph(folder)
    eager = _eager(folder)
    results = [_compare(folder, eager)]
    _compare_jpeg(folder, eager)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        calls = {name: _in_session(session, meta, name) for name in SIGNATURES}
        results.append(_compare(folder, calls))
    results.append(
        _compare(folder, {name: _by_cli(folder, name) for name in SIGNATURES}, max_images=1)
    )
    return Difference(
        *(max(getattr(each, field.name) for each in results) for field in fields(Difference))
    )


def _eager(folder: Path) -> dict[str, Call]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))

    def new_call(name: str) -> Call:
        def call(value: np.ndarray) -> Tensors:
            argument = "image_bytes" if name == "encoded" else "images"
            # Through `loaded`: signatures alone do not keep the variables alive.
            results = loaded.signatures[name](**{argument: tf.constant(value)})
            return {key: each.numpy() for key, each in results.items()}

        return call

    return {name: new_call(name) for name in SIGNATURES}


def _in_session(session: Any, meta: Any, name: str) -> Call:
    signature = meta.signature_def[name]
    (input_info,) = signature.inputs.values()
    fetches = {key: info.name for key, info in signature.outputs.items()}
    return lambda value: session.run(fetches, {input_info.name: value})


def _by_cli(folder: Path, name: str) -> Call:
    def call(value: np.ndarray) -> Tensors:
        argument = "image_bytes" if name == "encoded" else "images"
        with tempfile.TemporaryDirectory() as scratch:
            input_path = Path(scratch, "input.npy")
            with input_path.open("wb") as file:
                content = io.BytesIO()  # `np.save` to a file does not report why writing failed
                np.save(content, value, allow_pickle=True)  # strings, which the tool unpickles
                file.write(content.getbuffer())
            command = [sys.executable, "-P", "-m", "tensorflow.python.tools.saved_model_cli", "run"]
            command += ["--dir", str(folder), "--tag_set", "serve", "--signature_def", name]
            command += ["--inputs", f"{argument}={input_path}", "--outdir", scratch]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                _refuse_full(Path(scratch))
                message = (done.stderr.strip().splitlines() or [""])[-1]
                raise ValueError(f"saved_model_cli run --signature_def {name}: {message}")
            return {key: _read_output(Path(scratch, f"{key}.npy")) for key in OUTPUTS_OF[name]}

    return call


def _refuse_full(folder: Path) -> None:
    """Raises OSError if the disk is full, which the tool's own message does not tell reliably."""
    with (folder / "more").open("wb") as file:
        file.write(bytes(_PROBE_BYTES))


def _read_output(path: Path) -> np.ndarray:
    """Reads an array that `saved_model_cli run` wrote; pickles are rejected."""
    if not path.is_file():
        raise ValueError(f"saved_model_cli run: no output {path.stem}")
    return np.asarray(np.load(path, allow_pickle=False))


def _compare(folder: Path, calls: Mapping[str, Call], max_images: int | None = None) -> Difference:
    """Returns the differences over all signatures and images, for one way of loading."""
    gaps = Gaps()
    for reference in islice(read_references(folder), max_images):
        image, expected = reference.image, reference.prediction.probabilities
        probabilities = calls["probabilities"](image[np.newaxis])["probabilities"][0]
        same_shape("probabilities", probabilities, expected)
        gaps.add(np.abs(probabilities - expected))
        served = calls["serving_default"](image[np.newaxis])
        maps = Maps(served["labels"][0], *(served[name][0] / LEVELS for name in MAPS))
        gaps.add_prediction(maps, reference)
        # A PNG keeps every pixel.
        _compare_encoded(calls["encoded"], "PNG", _encoded(image, "PNG"), served)
    return gaps.difference()


def _compare_jpeg(folder: Path, calls: Mapping[str, Call]) -> None:
    """Sends a JPEG, which TensorFlow by default decodes to other pixels than Pillow and `predict`.

    One way of loading is enough: the graph is the same in all.
    """
    image = next(read_references(folder)).image
    content = _encoded(image, "JPEG")
    with Image.open(io.BytesIO(content)) as decoded:
        served = calls["serving_default"](np.array(decoded)[np.newaxis])
    _compare_encoded(calls["encoded"], "JPEG", content, served)


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _compare_encoded(call: Call, kind: str, content: bytes, served: Tensors) -> None:
    """Sends an encoded image twice; the decoded outputs must equal those of `serving_default`."""
    outputs = call(np.array([content, content], object))
    if not outputs:  # from `saved_model_cli run`, whose strings are not opened
        return
    for name in ("labels", *MAPS):
        for each in outputs[f"{name}_png_bytes"]:
            plane = cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_UNCHANGED)
            if plane is None or not np.array_equal(plane, served[name][0]):
                raise ValueError(
                    f"signature encoded returns other {name} for a {kind} than serving_default"
                )
