"""Reads and writes `export.json`, the manifest of an exported file, and its checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ccfnet_tf.errors import ConfigError, RunError, nearest, unreadable
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.io.untrusted_yaml_json import parse_json
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED, Calibration
from ccfnet_tf.runs.calibration_file import parse_calibration

MANIFEST = "export.json"
REFERENCE = "reference.npz"
"""Images and Keras's outputs for them, so that verification can be repeated on any machine."""

Format = Literal["saved_model", "tflite", "onnx"]
FORMATS: dict[str, Format] = {
    "saved_model": "saved_model",
    "tflite": "tflite",
    "litert": "tflite",
    "onnx": "onnx",
}
"""Values of `--format`."""

MODEL: dict[Format, str] = {"tflite": "ccfnet.tflite", "onnx": "ccfnet.onnx"}
"""File of the network in an artifact's folder; a SavedModel is the folder itself."""

LEVELS = 255.0
"""A probability p is stored in a byte as round(LEVELS * p)."""

PROBABILITIES = "probabilities"
"""Signature of a SavedModel that returns the probabilities, and its output."""

MAX_REQUEST_PIXELS = 4096 * 4096
"""Most pixels of an image; the signature `encoded` rejects larger ones by their header."""

TRAINED = "trained_on_at_most"
"""Key of `inputs`: HEIGHTxWIDTH of the largest image that the network was trained on."""

_CHECKSUM_KEY = "sha256"
"""Key of the manifest's own checksum, which detects changes by hand."""


@dataclass(frozen=True)
class Difference:
    """Differences of an exported file from Keras on the reference images, or their limits.

    Attributes:
        largest: Largest difference of a probability or of a value of the three maps.
        percentile: 99.9th percentile of these differences.
        mean: Mean of these differences.
        other_labels: Share of pixels with another label, 0..1.
    """

    largest: float
    percentile: float
    mean: float
    other_labels: float

    def above(self, tolerance: Difference) -> list[str]:
        """Returns descriptions of the differences above the tolerance; empty if there are none."""
        return [
            f"{name.replace('_', ' ')} {value:.2g} above {limit:.2g}"
            for name, limit in asdict(tolerance).items()
            if not (value := getattr(self, name)) <= limit  # also true for NaN
        ]


_EXACT = Difference(largest=1e-4, percentile=5e-5, mean=1e-5, other_labels=1e-4)
_TOLERANCES: dict[str, Difference] = {
    "saved_model": _EXACT,
    "saved_model bfloat16": Difference(1.0, percentile=0.3, mean=1e-2, other_labels=3e-2),
    "onnx": _EXACT,
    "tflite none": Difference(largest=1e-4, percentile=1e-4, mean=1e-5, other_labels=1e-3),
    "tflite fp16": Difference(largest=1.0, percentile=0.05, mean=2e-3, other_labels=5e-3),
    "tflite dynamic": Difference(largest=1.0, percentile=0.2, mean=1e-2, other_labels=2e-2),
    # int8 is judged by its loss of accuracy; these limits only reject garbage.
    "tflite int8": Difference(largest=1.0, percentile=1.0, mean=0.1, other_labels=0.3),
}


def tolerance(kind: str) -> Difference:
    """Returns the limits of the differences from Keras in float32 for a `Manifest.kind`."""
    return _TOLERANCES[kind]


@dataclass(frozen=True)
class Manifest:
    """The content of `export.json`.

    Attributes:
        format: Format of the file.
        run: Folder and checkpoint of the exported run.
        versions: Versions of this package and of the libraries that wrote the file, by name.
        classes: Class names in the order of their ids.
        palette: RGB of each class, 0..255.
        options: Export options, such as `quantize`, `size` (HxW) and `outputs`; may be empty.
        inputs: Descriptions of the inputs: colour order, sizes, orientation, limits.
        outputs: Descriptions of the outputs.
        files: SHA-256 of every file of the artifact, by path relative to its folder.
        difference: Differences from Keras; see `Difference`.
        measured: Descriptions of other measurements, such as `GPU`; may be empty.
        calibration: Fields of the `Calibration` of probabilities and maps; empty if there is none.
    """

    format: Format
    run: dict[str, str]
    versions: dict[str, str]
    classes: list[str]
    palette: list[list[int]]
    options: dict[str, str]
    inputs: dict[str, str]
    outputs: dict[str, str]
    files: dict[str, str]
    difference: dict[str, float]
    measured: dict[str, str]
    calibration: dict[str, float | list[float]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Key of the tolerance: the format, with its quantization or precision if it has one."""
        return kind_of(self.format, self.options)

    @property
    def trained(self) -> tuple[int, int] | None:
        """Height and width of the largest training image; None if unknown."""
        height, _, width = self.inputs.get(TRAINED, "").partition("x")
        both = all(side.isascii() and side.isdecimal() for side in (height, width))
        return (int(height), int(width)) if both else None

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes as a `Taxonomy`."""
        palette = tuple((red, green, blue) for red, green, blue in self.palette)
        return Taxonomy(tuple(self.classes), palette)

    @property
    def fitted(self) -> Calibration:
        """The calibration; `read_manifest` has checked its numbers."""
        if not self.calibration:
            return UNCALIBRATED
        return parse_calibration(self.calibration, len(self.classes))


def kind_of(format_: Format, options: Mapping[str, str]) -> str:
    """Returns a format's name, followed by the quantization or precision if there is one."""
    how = options.get("quantize") or options.get("precision")
    return " ".join(filter(None, (format_, how)))


def find_format(name: str) -> Format:
    """Returns the format for a value of `--format`.

    Raises:
        ConfigError: The value is unknown; the message suggests the nearest one.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"--format is '{name}': expected {', '.join(FORMATS)}" + nearest(name, FORMATS)
        )
    return FORMATS[name]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `export.json` into a folder."""
    tree = asdict(manifest)
    text = json.dumps({**tree, _CHECKSUM_KEY: _checksum(tree)}, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads `export.json` and verifies its checksum and those of all files.

    Raises:
        RunError: The manifest is missing, changed or invalid, or a file is missing or changed.
    """
    path = folder / MANIFEST
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        changed = tree.pop(_CHECKSUM_KEY) != _checksum(tree)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder}: no {MANIFEST}: not an artifact of ccfnet-tf export; give the folder that "
            "contains it"
        ) from error
    except KeyError as error:
        raise RunError(f"{path}: the checksum {error} is missing: export the run again") from error
    except OSError as error:
        raise RunError(f"{path}: {unreadable(error)}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not valid ({error}): export the run again") from error
    if changed:
        raise RunError(
            f"{path}: changed since the export (its SHA-256 differs from the recorded one): copy "
            "the artifact again, or export the run again"
        )
    if "calibration" not in tree:
        raise RunError(
            f"{path}: written by an older version, whose `difficulty` was today's `attention`: "
            "export the run again"
        )
    try:
        manifest = _manifest(tree)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: written by another version ({error}): export the run again"
        ) from error
    _compare(folder, manifest.files, checksums(folder))
    return manifest


def _manifest(tree: dict[str, Any]) -> Manifest:
    """Returns the manifest; raises KeyError, TypeError or ValueError if a key or value is wrong."""
    manifest = Manifest(**tree)
    for key, hint in get_type_hints(Manifest).items():
        if not _has_type(tree[key], hint):
            raise TypeError(f"{key} is not of type {str(hint).replace('typing.', '')}")
    colours = manifest.palette
    if not manifest.classes or len(colours) != len(manifest.classes):
        raise ValueError(f"{len(manifest.classes)} classes and {len(colours)} colours")
    if not all(len(each) == 3 and all(0 <= value <= 255 for value in each) for each in colours):
        raise ValueError("a colour is not three integers 0..255")
    if manifest.kind not in _TOLERANCES:
        raise ValueError(f"'{manifest.kind}' is an unknown kind of file")
    _ = manifest.fitted  # raises where a number is missing or wrong
    return manifest


def _has_type(value: Any, hint: Any) -> bool:
    """Returns whether a JSON value has a field's type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_has_type(value, each) for each in inner)
    if kind is Literal:
        return value in inner
    if kind is list:
        return isinstance(value, list) and all(_has_type(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(_has_type(each, inner[1]) for each in value.values())
    return type(value) in ((int, float) if hint is float else (hint,))


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder except `export.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in files
        if path.name != MANIFEST
    }


def _compare(folder: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    if added := sorted(found.keys() - expected.keys()):
        raise RunError(
            f"{folder / added[0]}: not part of the export: copy the complete artifact again"
        )
    for name, checksum in expected.items():
        if name not in found:
            raise RunError(f"{folder / name}: missing: copy the complete artifact again")
        if found[name] != checksum:
            raise RunError(
                f"{folder / name}: changed since the export (its SHA-256 differs from "
                f"{MANIFEST}): copy the artifact again, or export the run again"
            )


def _checksum(tree: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
