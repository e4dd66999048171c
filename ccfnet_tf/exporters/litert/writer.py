"""Writes a network as a LiteRT (TFLite) file with a fixed image size.

Signature `serving_default`: `images` float32 [B, H, W, 3], RGB 0..255 -> `labels` uint8 [B, H, W],
`attention`, `difficulty` and `risk` float32 [B, H, W], and `probabilities` float32 [B, H, W, C].
With `outputs` labels: without `probabilities`, and the maps are uint8, round(255 p).

Weights are frozen into the graph first: the converter turns some variables into handles without
values, and such a file returns NaN.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf
from tensorflow.lite.python.convert import mlir_quantize
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.exporters.base import LABELS, PROBABILITIES, check_choice, described_maps
from ccfnet_tf.exporters.litert.float16 import with_float16_weights
from ccfnet_tf.exporters.litert.gpu_safe_graph import OUTPUT_SCOPE, Tensors, gpu_safe_outputs
from ccfnet_tf.inference.segmenter_protocol import MAPS, SMALLEST
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runtimes.letterbox import Size
from ccfnet_tf.runtimes.litert import import_interpreter
from ccfnet_tf.runtimes.manifest import LEVELS, MAX_REQUEST_PIXELS

Quantize = Literal["none", "fp16", "dynamic", "int8"]
Outputs = Literal["probabilities", "labels"]

BYTE_LABELS = 256
"""Largest number of classes whose ids are stored in 8 bits; more are stored in 32."""

_FLOAT_LAYERS = (
    "normalise",  # LiteRT reverses the channels of int8 tensors incorrectly
    "half_size",
    "coarse_probabilities",
    "attention_coarse",  # the probabilities at another size
    "fine_coarse",
    "coarse_entropy",
    "_join",  # features, probabilities and entropy differ too much for a common scale
    "_judged",
    "attention_logits",
    "gate",
    "coarse_log_probabilities",
    "refine",
    OUTPUT_SCOPE,
    "PartitionedCall",  # the converter's name of the outputs
)
"""Layers (name substrings) that stay float32 in an int8 file, such as softmax and logarithms."""


@dataclass(frozen=True)
class LiteRTOptions:
    """Options of a LiteRT file.

    Attributes:
        size: Height and width in pixels, each at least 32.
        quantize: `none` (float32), `fp16` (float16 weights), `dynamic` (int8 weights) or `int8`
            (int8 weights and activations).
        outputs: `probabilities`, or `labels` for smaller outputs.
        batch: Images per call.

    Raises:
        ConfigError: A value is not allowed.
    """

    size: Size
    quantize: Quantize = "fp16"
    outputs: Outputs = "probabilities"
    batch: int = 1

    def __post_init__(self) -> None:
        check_choice("--quantize", self.quantize, get_args(Quantize))
        check_choice("--outputs", self.outputs, get_args(Outputs))
        if min(self.size) < SMALLEST:
            raise ConfigError(
                f"--size is {self.size_text}: the network needs at least {SMALLEST} on each side"
            )
        if self.size[0] * self.size[1] > MAX_REQUEST_PIXELS:
            raise ConfigError(
                f"--size is {self.size_text}: at most {MAX_REQUEST_PIXELS} pixels, such as "
                "4096x4096"
            )
        if self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}: it must be 1 or more")

    @property
    def size_text(self) -> str:
        """The size as text: HxW."""
        return f"{self.size[0]}x{self.size[1]}"

    @property
    def folder(self) -> str:
        """Name of the artifact's folder; it contains the options."""
        name = f"tflite-{self.quantize}-{self.size_text}"
        name += "-labels" if self.outputs == "labels" else ""
        return name + (f"-batch{self.batch}" if self.batch > 1 else "")

    @property
    def inputs(self) -> dict[str, str]:
        """Descriptions of the file's inputs, by name."""
        shape = f"[{self.batch}, {self.size[0]}, {self.size[1]}, 3]"
        return {
            "images": f"float32 {shape}, RGB 0..255; shrink a larger image with its aspect "
            "ratio kept, and pad at the bottom and right by mirroring",
            "orientation": "EXIF orientation is not applied: rotate images before the call",
        }

    @property
    def described_outputs(self) -> dict[str, str]:
        """Descriptions of the file's outputs, by name."""
        if self.outputs == "labels":
            return {"labels": LABELS} | described_maps("round(255 p), uint8 [B, H, W]")
        maps = described_maps("float32 [B, H, W]")
        return {"labels": LABELS} | maps | {"probabilities": PROBABILITIES}


def write_litert(
    model: Any,
    taxonomy: Taxonomy,
    path: Path,
    options: LiteRTOptions,
    samples: Sequence[np.ndarray] = (),
    *,
    calibration: Calibration = UNCALIBRATED,
) -> None:
    """Converts a network and writes the file.

    Args:
        model: A `CCFNet`.
        taxonomy: The model's classes.
        path: Path of the new file.
        options: Options of the file.
        samples: Images uint8 [H, W, 3] of `options.size` from the training split, for int8.
        calibration: Of probabilities and maps.
    """
    predict = _new_predict(gpu_safe_outputs(model, calibration), taxonomy, options.outputs)
    spec = tf.TensorSpec([options.batch, *options.size, 3], tf.float32, name="images")
    traced = tf.function(predict, input_signature=[spec], autograph=False)
    frozen = convert_variables_to_constants_v2(traced.get_concrete_function())
    names = sorted(traced.get_concrete_function().structured_outputs)
    module = tf.Module()
    module.serve = tf.function(
        lambda images: dict(zip(names, frozen(images), strict=True)), input_signature=[spec]
    )
    with tempfile.TemporaryDirectory() as folder:
        # Only conversion from a SavedModel keeps the names of inputs and outputs.
        tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
        with warnings.catch_warnings():
            # The converter calibrates with TensorFlow's deprecated interpreter.
            warnings.filterwarnings("ignore", r"\s*Warning: tf\.lite\.Interpreter is deprecated")
            content = _converted(folder, options, samples)
    path.write_bytes(content)


def _converted(folder: str, options: LiteRTOptions, samples: Sequence[np.ndarray]) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    if options.quantize == "none":
        return bytes(converter.convert())
    if options.quantize == "fp16":
        return with_float16_weights(bytes(converter.convert()))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if options.quantize == "int8":
        converter.representative_dataset = _samples(samples, options.batch)
        # Calibration and quantization are separate steps so that nodes can be excluded.
        converter._experimental_calibrate_only = True
        calibrated = bytes(converter.convert())
        return bytes(mlir_quantize(calibrated, denylisted_nodes=_float_nodes(calibrated)))
    return bytes(converter.convert())


def _samples(images: Sequence[np.ndarray], batch: int) -> Callable[[], Any]:
    def samples() -> Any:
        for image in images:
            yield {"images": np.repeat(image[np.newaxis].astype(np.float32), batch, axis=0)}

    return samples


def _float_nodes(content: bytes) -> set[str]:
    """Returns the names of the tensors of a calibrated file that stay float32."""
    interpreter = import_interpreter()(model_content=content)
    names = {str(each["name"]) for each in interpreter.get_tensor_details()}
    return {name for name in names if any(part in name for part in _FLOAT_LAYERS)}


def _new_predict(
    network: Callable[[tf.Tensor], Tensors], taxonomy: Taxonomy, outputs: Outputs
) -> Callable[[tf.Tensor], Tensors]:
    """Returns a function from images to the outputs of the file."""
    label_type = tf.uint8 if len(taxonomy.names) <= BYTE_LABELS else tf.int32

    def predict(images: tf.Tensor) -> Tensors:
        found = network(images)
        found["labels"] = tf.cast(found["labels"], label_type)
        if outputs == "labels":
            del found["probabilities"]
            with tf.name_scope(OUTPUT_SCOPE):
                # A cast truncates, so 0.5 is added; LiteRT's ROUND is not supported by every GPU.
                found |= {name: tf.cast(LEVELS * found[name] + 0.5, tf.uint8) for name in MAPS}
        return found

    return predict
