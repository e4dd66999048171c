"""Holds an artifact against what Keras answered; runs in a process of its own.

    python -m ccfnet_tf.export.check FOLDER

FOLDER holds the artifact, `reference.npz` beside it. The last line is JSON: the figures, or an
`error`. This process must not know the network's code, as a server does not; it refuses to judge
if it does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccfnet_tf.artifacts.contract import REFERENCE, Difference

LEVELS = 255
"""Probabilities are stored as whole numbers up to this."""

Answer = Mapping[str, np.ndarray]
Call = Callable[[np.ndarray], Answer]
"""An image uint8 [1, H, W, 3] -> named arrays."""


def main() -> None:
    """Checks the folder that is named, and prints what came of it."""
    folder = Path(sys.argv[1])
    try:
        result: dict[str, Any] = vars(check_saved_model(folder))
    except Exception as error:  # whatever it is, the artifact is not fit to be handed over
        result = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
    known = sorted(name for name in sys.modules if name.startswith("ccfnet_tf.network"))
    if known:
        result = {"error": f"the check itself imported {known[0]}"}
    print(json.dumps(result))  # noqa: T201


def check_saved_model(folder: Path) -> Difference:
    """Compares in the three ways that a SavedModel is used.

    In Python (`tf.saved_model.load`), in a session of TensorFlow 1, as TF Serving loads it, and
    by `saved_model_cli run`; in each by every signature.

    Raises:
        ValueError: The ways differ from each other, or an answer has another form.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    # Kept: signatures alone do not hold the variables.
    signatures = {name: loaded.signatures[name] for name in loaded.signatures}

    def eager(name: str) -> Call:
        def call(value: np.ndarray) -> Answer:
            argument = "image_bytes" if name == "encoded" else "images"
            found = signatures[name](**{argument: tf.constant(value)})
            return {key: each.numpy() for key, each in found.items()}

        return call

    found = [_compare(folder, {name: eager(name) for name in signatures})]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
        calls = {name: _in_session(session, meta, name) for name in signatures}
        found.append(_compare(folder, calls))
    found.append(_compare(folder, {name: _by_cli(folder, name) for name in signatures}, most=1))
    largest = max(each.largest for each in found)
    percentile = max(each.percentile for each in found)
    other = max(each.other_labels for each in found)
    return Difference(largest, percentile, other, found[0].pictures)


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
            np.save(given, value, allow_pickle=True)
            command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run"]
            command += ["--dir", str(folder), "--tag_set", "serve", "--signature_def", name]
            command += ["--inputs", f"{argument}={given}", "--outdir", place]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or [""])[-1]
                raise ValueError(f"saved_model_cli run --signature_def {name}: {said}")
            given.unlink()
            outputs = Path(place).glob("*.npy")
            return {each.stem: np.load(each, allow_pickle=True) for each in outputs}

    return call


def _compare(folder: Path, way: Mapping[str, Call], most: int | None = None) -> Difference:
    """Returns the differences of one way of calling, all signatures and pictures together."""
    gaps, others, pixels, pictures = [np.zeros(1)], 0, 0, 0
    for image, probabilities, difficulty in islice(_references(folder), most):
        answer = way["probabilities"](image[np.newaxis])["probabilities"][0]
        _same_shape("probabilities", answer, probabilities)
        gaps.append(np.abs(answer - probabilities).ravel())
        labels = probabilities.argmax(-1)
        served = way["serving_default"](image[np.newaxis])
        risk = 1.0 - probabilities.max(-1)
        for name, expected in (("difficulty", difficulty), ("risk", risk)):
            _same_shape(name, served[name][0], expected)
            gaps.append(_beyond_rounding(served[name][0], expected))
        others += int((served["labels"][0] != labels).sum())
        pixels += labels.size
        _compare_encoded(way["encoded"], image, served)
        pictures += 1
    every = np.concatenate(gaps)
    if not np.isfinite(every).all():
        raise ValueError("an answer is not finite")
    percentile = float(np.percentile(every, 99.9))
    return Difference(float(every.max()), percentile, others / max(pixels, 1), pictures)


def _references(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    with np.load(folder / REFERENCE, allow_pickle=False) as arrays:
        for key in sorted(key for key in arrays.files if key.startswith("image/")):
            number = key.removeprefix("image/")
            yield arrays[key], arrays[f"probabilities/{number}"], arrays[f"difficulty/{number}"]


def _compare_encoded(call: Call, image: np.ndarray, served: Answer) -> None:
    """Sends the picture as a PNG, which keeps every pixel: the answers must be the same bytes."""
    sent = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    answer = call(np.array([sent, sent], object))
    for name in ("labels", "difficulty", "risk"):
        for content in answer[f"{name}_png_bytes"]:
            plane = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            if plane is None or not np.array_equal(plane, served[name][0]):
                raise ValueError(f"encoded answers other {name} than serving_default")


def _beyond_rounding(stored: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns how far stored bytes are from probabilities, beyond the half step of rounding."""
    gap = np.abs(stored.astype(np.float64) / LEVELS - expected)
    return np.maximum(0.0, gap - 0.5 / LEVELS).ravel()


def _same_shape(name: str, answer: np.ndarray, expected: np.ndarray) -> None:
    if answer.shape != expected.shape:
        raise ValueError(f"{name} has shape {list(answer.shape)}, not {list(expected.shape)}")


if __name__ == "__main__":
    main()
