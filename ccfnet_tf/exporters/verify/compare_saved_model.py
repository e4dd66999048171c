"""Holds a SavedModel against Keras's answers in the three ways that it is used."""

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

from ccfnet_tf.exporters.verify.reference import Gaps, beyond_rounding, read_references, same_shape
from ccfnet_tf.runtimes.graph_ops import refuse_harmful_graph
from ccfnet_tf.runtimes.manifest import Difference

SIGNATURES = ("serving_default", "encoded", "probabilities")
"""Those that are held against Keras; `classes` answers names."""

OUTPUTS_OF = {
    "serving_default": ("labels", "difficulty", "risk"),
    "encoded": (),
    "probabilities": ("probabilities",),
}
"""Arrays that `saved_model_cli run` writes as files; those of `encoded` are texts."""

_MORE = 1 << 20
"""Bytes that fit on a disk that is not full."""

Answer = Mapping[str, np.ndarray]
Call = Callable[[np.ndarray], Answer]
"""An image uint8 [1, H, W, 3] -> named arrays."""


def check_saved_model(folder: Path) -> Difference:
    """Compares in the three ways that a SavedModel is used.

    In Python (`tf.saved_model.load`), in a session of TensorFlow 1, as TF Serving loads it, and
    by `saved_model_cli run`; in each by every signature. That tool hands texts over as pickles,
    which are not opened: of `encoded` by it is seen that it answers, in the two other ways what.

    Raises:
        RunError: The graph holds operators that are refused.
        ValueError: The ways differ from each other, or an answer has another form.
    """
    import tensorflow as tf

    refuse_harmful_graph(folder)
    eager = _eager(folder)
    found = [_compare(folder, eager)]
    _compare_jpeg(folder, eager)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        calls = {name: _in_session(session, meta, name) for name in SIGNATURES}
        found.append(_compare(folder, calls))
    found.append(_compare(folder, {name: _by_cli(folder, name) for name in SIGNATURES}, most=1))
    return Difference(
        *(max(getattr(each, field.name) for each in found) for field in fields(Difference))
    )


def _eager(folder: Path) -> dict[str, Call]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))

    def of(name: str) -> Call:
        def call(value: np.ndarray) -> Answer:
            argument = "image_bytes" if name == "encoded" else "images"
            # By way of `loaded`: signatures alone do not hold the variables.
            found = loaded.signatures[name](**{argument: tf.constant(value)})
            return {key: each.numpy() for key, each in found.items()}

        return call

    return {name: of(name) for name in SIGNATURES}


def _in_session(session: Any, meta: Any, name: str) -> Call:
    signature = meta.signature_def[name]
    (fed,) = signature.inputs.values()
    wanted = {key: info.name for key, info in signature.outputs.items()}
    return lambda value: session.run(wanted, {fed.name: value})


def _by_cli(folder: Path, name: str) -> Call:
    def call(value: np.ndarray) -> Answer:
        argument = "image_bytes" if name == "encoded" else "images"
        with tempfile.TemporaryDirectory() as place:
            given = Path(place, "given.npy")
            with given.open("wb") as file:
                content = io.BytesIO()  # NumPy itself does not say why a file cannot be written
                np.save(content, value, allow_pickle=True)  # for that tool: texts are ours
                file.write(content.getbuffer())
            command = [sys.executable, "-P", "-m", "tensorflow.python.tools.saved_model_cli", "run"]
            command += ["--dir", str(folder), "--tag_set", "serve", "--signature_def", name]
            command += ["--inputs", f"{argument}={given}", "--outdir", place]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                _refuse_full(Path(place))
                said = (done.stderr.strip().splitlines() or [""])[-1]
                raise ValueError(f"saved_model_cli run --signature_def {name}: {said}")
            return {key: _read_answer(Path(place, f"{key}.npy")) for key in OUTPUTS_OF[name]}

    return call


def _refuse_full(folder: Path) -> None:
    """Raises OSError where the disk is full, which that tool says in words of its own."""
    with (folder / "more").open("wb") as file:
        file.write(bytes(_MORE))


def _read_answer(path: Path) -> np.ndarray:
    """Returns an array that `saved_model_cli run` wrote, which may be anything else."""
    if not path.is_file():
        raise ValueError(f"saved_model_cli run: no output {path.stem}")
    return np.asarray(np.load(path, allow_pickle=False))


def _compare(folder: Path, way: Mapping[str, Call], most: int | None = None) -> Difference:
    """Returns the differences of one way of calling, all signatures and images together."""
    gaps = Gaps()
    for image, probabilities, difficulty in islice(read_references(folder), most):
        answer = way["probabilities"](image[np.newaxis])["probabilities"][0]
        same_shape("probabilities", answer, probabilities)
        gaps.add(np.abs(answer - probabilities))
        served = way["serving_default"](image[np.newaxis])
        risk = 1.0 - probabilities.max(-1)
        for name, expected in (("difficulty", difficulty), ("risk", risk)):
            same_shape(name, served[name][0], expected)
            gaps.add(beyond_rounding(served[name][0], expected))
        gaps.add_labels(served["labels"][0], probabilities.argmax(-1))
        # A PNG keeps every pixel.
        _compare_encoded(way["encoded"], "PNG", _encoded(image, "PNG"), served)
    return gaps.difference()


def _compare_jpeg(folder: Path, way: Mapping[str, Call]) -> None:
    """Sends a JPEG: by default TensorFlow decodes it to other pixels than Pillow, thus `predict`.

    In one of the ways alone: what is called is the same in all.
    """
    image, _, _ = next(read_references(folder))
    content = _encoded(image, "JPEG")
    with Image.open(io.BytesIO(content)) as picture:
        served = way["serving_default"](np.array(picture)[np.newaxis])
    _compare_encoded(way["encoded"], "JPEG", content, served)


def _encoded(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _compare_encoded(call: Call, kind: str, content: bytes, served: Answer) -> None:
    """Sends an encoded image twice; the answers must be the same bytes as its pixels get."""
    answer = call(np.array([content, content], object))
    if not answer:  # by a tool whose answers are not opened
        return
    for name in ("labels", "difficulty", "risk"):
        for each in answer[f"{name}_png_bytes"]:
            plane = cv2.imdecode(np.frombuffer(each, np.uint8), cv2.IMREAD_UNCHANGED)
            if plane is None or not np.array_equal(plane, served[name][0]):
                raise ValueError(f"encoded answers other {name} to a {kind} than serving_default")
