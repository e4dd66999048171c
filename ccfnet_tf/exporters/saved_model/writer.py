"""Writes a network as a SavedModel with the signatures that TensorFlow Serving offers.

`serving_default`  images uint8 [B, H, W, 3]  ->  labels, attention, difficulty, risk [B, H, W]
`encoded`          image_bytes string [B]     ->  the same four as PNG, string [B] each
`probabilities`    images uint8 [B, H, W, 3]  ->  probabilities float32 [B, H, W, C]
`classes`          ask int32 [B], any value   ->  names string [B, C], palette uint8 [B, C, 3],
                                                  calibration string [B]

A probability p of the three maps is stored as round(255 p); see `network.labels_and_maps.maps`.

The signature `classes` exists because TensorFlow Serving does not serve assets. Its outputs have a
batch dimension because the REST API requires one.

Only a closure refers to the Keras model. As an attribute of the module it would be saved too, and
such a file loads in Python but not in a session, hence not in TensorFlow Serving. Weights stay
variables. As constants they were up to twice as fast on small images, where oneDNN's reordering of
variables at every call matters, but a ResNet-50 then took five times the memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ccfnet_tf.exporters.base import LABELS, PROBABILITIES, described_maps
from ccfnet_tf.exporters.fold_batch_norm import fold_batch_norm
from ccfnet_tf.inference.segmenter_protocol import MAPS
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.network.labels_and_maps import exported_heads, maps
from ccfnet_tf.network.normalise_pad_resize import at_least_minimum
from ccfnet_tf.runtimes.manifest import LEVELS, MAX_REQUEST_PIXELS

BYTE_LABELS = 256
"""Largest number of classes whose ids are stored in 8 bits; more are stored in 16."""

INPUTS = {
    "images": "uint8 [B, H, W, 3], RGB, any size",
    "image_bytes": f"string [B], JPEG or PNG of at most {MAX_REQUEST_PIXELS} pixels, mixed sizes",
    "ask": "int32 [B], any value (signature `classes`)",
    "orientation": "EXIF orientation is not applied: rotate images before sending them",
    "alpha": "dropped, not blended",
}
OUTPUTS = {
    "labels": LABELS,
    **described_maps("round(255 p), uint8 [B, H, W]"),
    "probabilities": PROBABILITIES,
    "*_png_bytes": "labels and the three maps as PNG, string [B]",
    "names": "class names, string [B, C]",
    "palette": "uint8 [B, C, 3]",
    "calibration": "of probabilities and maps, which contain it: JSON, string [B]",
}

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_PNG_HEADER = 33  # signature, and the IHDR chunk that holds the size
_JPEG_FRAME = 9  # marker, length, precision, height and width
_JPEG_FRAMES = [0xC0 + kind for kind in range(16) if kind not in (4, 8, 12)]
"""Markers of frame headers; the excluded three mark tables, extensions and conditioning."""

Tensors = dict[str, tf.Tensor]


def write_saved_model(
    model: Any, taxonomy: Taxonomy, folder: Path, calibration: Calibration = UNCALIBRATED
) -> None:
    """Writes `saved_model.pb`, `variables/` and `assets/` into a folder.

    Args:
        model: A `CCFNet`.
        taxonomy: The model's classes, stored as assets.
        folder: A folder that is empty or does not exist.
        calibration: Of probabilities and maps.
    """
    network = fold_batch_norm(exported_heads(model))
    module = tf.Module()
    # The variables, not the model: see the module's docstring.
    module.weights = [variable.value for variable in network.variables]
    predict = _new_predict(network, calibration)
    images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
    image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
    label_type = tf.uint8 if len(taxonomy.names) <= BYTE_LABELS else tf.uint16
    module.serve = tf.function(
        lambda images: _as_bytes(predict(images), label_type),
        input_signature=[images],
        autograph=False,
    )
    module.encoded = tf.function(
        lambda image_bytes: _encoded(predict, image_bytes, label_type),
        input_signature=[image_bytes],
        autograph=False,
    )
    module.probabilities = tf.function(
        lambda images: {"probabilities": predict(images)["probabilities"]},
        input_signature=[images],
        autograph=False,
    )
    module.classes = tf.function(
        lambda ask: _classes(taxonomy, calibration, ask),
        input_signature=[tf.TensorSpec([None], tf.int32, name="ask")],
        autograph=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    module.assets = [tf.saved_model.Asset(str(path)) for path in _write_assets(taxonomy, folder)]
    signatures = {
        "serving_default": module.serve,
        "encoded": module.encoded,
        "probabilities": module.probabilities,
        "classes": module.classes,
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    for asset in module.assets:  # the originals; `save` has copied them to `assets/`
        Path(asset.asset_path.numpy().decode()).unlink()


def _write_assets(taxonomy: Taxonomy, folder: Path) -> list[Path]:
    names, palette = folder / "classes.txt", folder / "palette.json"
    names.write_text("".join(f"{name}\n" for name in taxonomy.names), encoding="utf-8")
    palette.write_text(json.dumps([list(colour) for colour in taxonomy.palette]), encoding="utf-8")
    return [names, palette]


def _classes(taxonomy: Taxonomy, calibration: Calibration, ask: tf.Tensor) -> Tensors:
    """Returns names, colours and calibration, repeated for every item of the request."""
    names = tf.constant([name.encode("utf-8") for name in taxonomy.names])
    palette = tf.constant(taxonomy.palette, tf.uint8)
    rows = tf.zeros_like(ask)
    return {
        "names": tf.gather(names[tf.newaxis], rows),
        "palette": tf.gather(palette[tf.newaxis], rows),
        "calibration": tf.gather(tf.constant([json.dumps(asdict(calibration))]), rows),
    }


def _new_predict(network: keras.Model, calibration: Calibration) -> Callable[[tf.Tensor], Tensors]:
    """Returns a function from images to labels, maps and probabilities of the same size."""

    def predict(images: tf.Tensor) -> Tensors:
        shape = tf.shape(images)
        height, width = shape[1], shape[2]
        resized = tf.cast(at_least_minimum(images), tf.float32)
        outputs = network({"images": resized}, training=False)
        cropped = {name: output[:, :height, :width] for name, output in outputs.items()}
        return maps(cropped, calibration)

    return predict


def _as_bytes(outputs: Tensors, label_type: tf.DType) -> Tensors:
    labels = tf.cast(outputs["labels"], label_type)
    return {"labels": labels} | {name: _byte(outputs[name]) for name in MAPS}


def _byte(probability: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(LEVELS * tf.clip_by_value(probability, 0.0, 1.0)), tf.uint8)


def _encoded(
    predict: Callable[[tf.Tensor], Tensors], image_bytes: tf.Tensor, label_type: tf.DType
) -> Tensors:
    def encode_one(indexed: tuple[tf.Tensor, tf.Tensor]) -> Tensors:
        image = _decode(*indexed)
        planes = _as_bytes(predict(image[tf.newaxis]), label_type)
        return {
            f"{name}_png_bytes": tf.io.encode_png(value[0, :, :, tf.newaxis])
            for name, value in planes.items()
        }

    kinds = {f"{name}_png_bytes": tf.TensorSpec([], tf.string) for name in ("labels", *MAPS)}
    indices = tf.range(tf.size(image_bytes))
    return tf.map_fn(encode_one, (indices, image_bytes), fn_output_signature=kinds)


def _decode(index: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    """Decodes uint8 [H, W, 3]; format and size are checked in the header, before decoding."""
    is_png = tf.equal(tf.strings.substr(content, 0, len(_PNG)), _PNG)
    is_png = tf.logical_and(is_png, tf.strings.length(content) >= _PNG_HEADER)
    is_jpeg = tf.equal(tf.strings.substr(content, 0, len(_JPEG)), _JPEG)
    where = ["image_bytes, item", index, ":"]
    known = tf.debugging.Assert(
        tf.logical_or(is_png, is_jpeg), [*where, "neither JPEG nor PNG, or truncated"]
    )
    with tf.control_dependencies([known]):
        size = tf.cond(is_png, lambda: _png_size(content), lambda: _jpeg_size(content))
    fits = tf.debugging.Assert(
        tf.logical_and(tf.reduce_all(size > 0), tf.reduce_prod(size) <= MAX_REQUEST_PIXELS),
        [*where, "height and width", size, "; largest number of pixels", MAX_REQUEST_PIXELS],
    )
    with tf.control_dependencies([fits]):
        content = tf.identity(content)
    return tf.cond(
        is_png,
        lambda: tf.io.decode_png(content, 3),
        lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),
    )


def _png_size(content: tf.Tensor) -> tf.Tensor:
    sides = tf.io.decode_raw(tf.strings.substr(content, 16, 8), tf.int32, little_endian=False)
    return tf.cast(tf.reverse(sides, [0]), tf.int64)


def _jpeg_size(content: tf.Tensor) -> tf.Tensor:
    """Returns height and width from the frame header, or zeros if there is none.

    TensorFlow's own op cannot report which item of a request is damaged.
    """
    data = tf.io.decode_raw(content, tf.uint8)
    last = tf.size(data) - 1

    def byte(at: tf.Tensor) -> tf.Tensor:
        return tf.cast(data[tf.minimum(at, last)], tf.int32)

    def word(at: tf.Tensor) -> tf.Tensor:
        return 256 * byte(at) + byte(at + 1)

    def is_marker(at: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(at + _JPEG_FRAME <= last + 1, tf.equal(byte(at), 0xFF))

    def is_frame(at: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(tf.equal(byte(at + 1), _JPEG_FRAMES))

    def is_other_segment(at: tf.Tensor) -> tf.Tensor:
        return tf.logical_and(is_marker(at), tf.logical_not(is_frame(at)))

    def next_segment(at: tf.Tensor) -> tf.Tensor:
        # Markers may be padded with 0xFF; every other segment contains its own length.
        return at + tf.where(tf.equal(byte(at + 1), 0xFF), 1, 2 + word(at + 2))

    at = tf.while_loop(is_other_segment, next_segment, [tf.constant(2)])[0]
    size = tf.stack([word(at + 5), word(at + 7)])
    found = tf.logical_and(is_marker(at), is_frame(at))
    return tf.cast(tf.where(found, size, 0), tf.int64)
