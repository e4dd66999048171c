"""`export.json`: what an exported file takes, what it answers, and what it was verified against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ccfnet_tf.errors import ConfigError, RunError, nearest
from ccfnet_tf.io.yaml_json import parse_json
from ccfnet_tf.labels import Taxonomy

MANIFEST = "export.json"
REFERENCE = "reference.npz"
"""Images, and what Keras answered for them, so that the check can be repeated anywhere."""

Format = Literal["saved_model", "tflite", "onnx"]
FORMATS: dict[str, Format] = {
    "saved_model": "saved_model",
    "tflite": "tflite",
    "litert": "tflite",
    "onnx": "onnx",
}
"""Names that `--format` takes."""

MODEL: dict[Format, str] = {"tflite": "ccfnet.tflite", "onnx": "ccfnet.onnx"}
"""The file of the network in an artifact's folder; of a SavedModel it is the folder itself."""

LEVELS = 255.0
"""A probability p that is stored in a byte is round(LEVELS * p)."""

MAX_REQUEST_PIXELS = 4096 * 4096
"""Pixels of an image that is taken: the signature `encoded` refuses a larger one by its header."""

TRAINED = "trained_on_at_most"
"""Key of `inputs`: HEIGHTxWIDTH of the largest image that the network was trained on."""

_CHUNK = 1 << 20
_SEAL = "sha256"
"""Key of the manifest's own checksum: names, colours or tolerance changed by hand are not ours."""


@dataclass(frozen=True)
class Difference:
    """How far an exported file is from Keras on the reference images, or may be.

    Attributes:
        largest: Largest difference of a probability, or of P(hard).
        percentile: Its 99.9th percentile.
        mean: Its mean.
        other_labels: Share of pixels that get another label, 0..1.
    """

    largest: float
    percentile: float
    mean: float
    other_labels: float

    def above(self, tolerance: Difference) -> list[str]:
        """Returns what is above the tolerance, in words; empty where nothing is."""
        return [
            f"{name.replace('_', ' ')} {value:.2g} above {limit:.2g}"
            for name, limit in asdict(tolerance).items()
            if not (value := getattr(self, name)) <= limit  # NaN is above
        ]


_EXACT = Difference(largest=1e-4, percentile=5e-5, mean=1e-5, other_labels=1e-4)
_TOLERANCES: dict[str, Difference] = {
    "saved_model": _EXACT,
    "saved_model bfloat16": Difference(1.0, percentile=0.3, mean=1e-2, other_labels=3e-2),
    "onnx": _EXACT,
    "tflite none": Difference(largest=1e-4, percentile=1e-4, mean=1e-5, other_labels=1e-3),
    "tflite fp16": Difference(largest=1.0, percentile=0.05, mean=2e-3, other_labels=5e-3),
    "tflite dynamic": Difference(largest=1.0, percentile=0.2, mean=1e-2, other_labels=2e-2),
    # Judged by the accuracy that it loses; this only keeps garbage out.
    "tflite int8": Difference(largest=1.0, percentile=1.0, mean=0.1, other_labels=0.3),
}


def tolerance(kind: str) -> Difference:
    """Returns how far a file of that kind (`Manifest.kind`) may be from Keras in float32."""
    return _TOLERANCES[kind]


@dataclass(frozen=True)
class Manifest:
    """The content of `export.json`.

    Attributes:
        format: What kind of file it is.
        run: Folder and checkpoint that it was made from.
        versions: Of this package and of what made the file.
        classes: Class names in the order of their ids.
        palette: RGB of each.
        options: How it was made, such as `quantize`, `size` (HxW), `outputs`; may be empty.
        inputs: What it takes: colour order, sizes, orientation, limits.
        outputs: What it answers.
        files: SHA-256 of every file of the artifact, by path below its folder.
        difference: The verification's figures, and of how many images.
        measured: What else was found out, in words, such as `gpu`; may be empty.
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

    @property
    def kind(self) -> str:
        """Which tolerance holds: the format, with a quantization or precision of its own."""
        return kind_of(self.format, self.options)

    @property
    def trained(self) -> tuple[int, int] | None:
        """Height and width of the largest image of training; None where it is not known."""
        height, _, width = self.inputs.get(TRAINED, "").partition("x")
        both = all(side.isascii() and side.isdecimal() for side in (height, width))
        return (int(height), int(width)) if both else None

    @property
    def taxonomy(self) -> Taxonomy:
        """The classes, as the rest of the package knows them."""
        palette = tuple((red, green, blue) for red, green, blue in self.palette)
        return Taxonomy(tuple(self.classes), palette)


def kind_of(format_: Format, options: Mapping[str, str]) -> str:
    """Returns a format's name, with the quantization or precision where one was chosen."""
    how = options.get("quantize") or options.get("precision")
    return " ".join(filter(None, (format_, how)))


def find_format(name: str) -> Format:
    """Returns the format of that name.

    Raises:
        ConfigError: There is none; the nearest is named.
    """
    if name not in FORMATS:
        raise ConfigError(
            f"--format is '{name}': expected {', '.join(FORMATS)}" + nearest(name, FORMATS)
        )
    return FORMATS[name]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `export.json` into a folder."""
    tree = asdict(manifest)
    text = json.dumps({**tree, _SEAL: _seal(tree)}, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Reads `export.json` and holds it and the files against their checksums.

    Raises:
        RunError: It is missing, changed or not understood, or a file is missing or another.
    """
    path = folder / MANIFEST
    try:
        tree = parse_json(path.read_text(encoding="utf-8"))
        changed = tree.pop(_SEAL) != _seal(tree)
    except FileNotFoundError as error:
        raise RunError(
            f"{folder}: no {MANIFEST}: not an artifact of ccfnet-tf export; give the folder that "
            "holds it"
        ) from error
    except KeyError as error:
        raise RunError(f"{path}: no key {error}, its checksum: export the run again") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise RunError(f"{path}: not understood ({error}): export the run again") from error
    if changed:
        raise RunError(
            f"{path}: not as the export wrote it (its SHA-256 differs from the one in it): copy "
            "the artifact again, or export the run again"
        )
    try:
        manifest = _manifest(tree)
    except (TypeError, ValueError) as error:
        raise RunError(f"{path}: of another version ({error}): export the run again") from error
    _compare(folder, manifest.files, checksums(folder))
    return manifest


def _manifest(tree: dict[str, Any]) -> Manifest:
    """Returns the manifest; raises TypeError or ValueError where a key or a value is another."""
    manifest = Manifest(**tree)
    for key, hint in get_type_hints(Manifest).items():
        if not _fits(tree[key], hint):
            raise TypeError(f"{key} is no {str(hint).replace('typing.', '')}")
    colours = manifest.palette
    if not manifest.classes or len(colours) != len(manifest.classes):
        raise ValueError(f"{len(manifest.classes)} classes and {len(colours)} colours")
    if not all(len(each) == 3 and all(0 <= value <= 255 for value in each) for each in colours):
        raise ValueError("a colour is not three whole numbers 0..255")
    if manifest.kind not in _TOLERANCES:
        raise ValueError(f"'{manifest.kind}' is not a kind of file")
    return manifest


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value of JSON is of a field's type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in inner
    if kind is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(each, inner[1]) for each in value.values())
    return type(value) in ((int, float) if hint is float else (hint,))


def checksums(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below a folder, but of `export.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in files
        if path.name != MANIFEST
    }


def _compare(folder: Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    if added := sorted(found.keys() - expected.keys()):
        raise RunError(
            f"{folder / added[0]}: not part of what was exported: copy the artifact again, whole"
        )
    for name, checksum in expected.items():
        if name not in found:
            raise RunError(f"{folder / name}: missing: copy the artifact again, whole")
        if found[name] != checksum:
            raise RunError(
                f"{folder / name}: not the file that was exported (its SHA-256 differs from "
                f"{MANIFEST}): copy the artifact again, or export the run again"
            )


def _seal(tree: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
