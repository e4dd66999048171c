"""Finds out whether a source is a run, an exported file or a server, and opens its network."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ccfnet_tf.config import DataConfig
from ccfnet_tf.errors import RunError
from ccfnet_tf.inference.downscale import Box
from ccfnet_tf.inference.segmenter_protocol import Segmenter
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.runs.run_folder import (
    CLASSES,
    CONFIG,
    CROSSVAL_CONFIG,
    CROSSVAL_RESULT,
    read_run,
)
from ccfnet_tf.runtimes.manifest import MANIFEST, MODEL, Format, Manifest, read_manifest

Kind = Literal["run", "server", "saved_model", "tflite", "onnx"]

SERVERS = ("http://", "https://", "grpc://")

_ACCEPTED = (
    "a run folder, a folder that `ccfnet-tf export` wrote, its .tflite or .onnx file, or a "
    "server's http://, https:// or grpc:// address"
)
_SAVED_MODEL = "saved_model.pb"


@dataclass(frozen=True)
class Source:
    """A source of predictions that was checked but not opened yet.

    Attributes:
        kind: Kind of the source.
        place: The server's address, or the path that is opened: the folder of a run or of a
            SavedModel, or a file.
        manifest: Manifest of an exported file; None for runs and servers.
        trained: Height and width of the largest image that the network was trained on; None if
            unknown.
        data: Configuration of the data that a run was trained on.
    """

    kind: Kind
    place: str
    manifest: Manifest | None = None
    trained: Box | None = None
    data: DataConfig | None = None

    @property
    def size(self) -> str | None:
        """HEIGHTxWIDTH of a file with a fixed input size; larger images are shrunk to it."""
        return self.manifest.options.get("size") if self.manifest else None

    @property
    def needs_tensorflow(self) -> bool:
        """Whether `open` imports TensorFlow, which takes seconds."""
        return self.kind in ("run", "saved_model") or self.place.startswith("grpc://")

    def open(self, threads: int | None = None) -> Segmenter:
        """Loads the network, or connects to it.

        Args:
            threads: Number of threads of onnxruntime or LiteRT; one per core if None.

        Raises:
            CCFNetError: The source cannot be used; the message contains the reason.
        """
        if self.kind == "server":
            from ccfnet_tf.runtimes.served import ServedNetwork

            return ServedNetwork(self.place)
        if self.manifest is None:
            from ccfnet_tf.inference.keras_network import KerasNetwork

            return KerasNetwork(self.place)
        return _OPENERS[self.manifest.format](Path(self.place), self.manifest, threads)


def find_source(source: str, accepted: str = _ACCEPTED) -> Source:
    """Finds the kind of a source and checks it without opening the network.

    Args:
        source: An address, a run folder, an `.onnx` or `.tflite` file or its folder, the folder of
            a SavedModel, or the folder of its numbered versions, of which the highest is used.
        accepted: What messages ask for.

    Raises:
        RunError: The source is none of these, or its checksums differ from its manifest.
    """
    if address := _address(source):
        return Source("server", address)
    path = expanded(source)
    if not path.exists():
        raise RunError(f"{path}: no such folder or file; give {accepted}")
    if path.is_file():
        return _file(path, accepted)
    if any((path / name).is_file() for name in (CONFIG, CLASSES, CROSSVAL_CONFIG, CROSSVAL_RESULT)):
        run = read_run(path)
        run.checkpoint()
        return Source("run", str(path), trained=run.trained, data=run.config.data)
    folder = path if _is_artifact(path) else _highest_version(path)
    if folder is None:
        raise RunError(f"{path}: {_describe_folder(path, accepted)}")
    manifest = read_manifest(folder)
    name = MODEL.get(manifest.format, "")
    return _artifact(manifest, folder / name)


def _address(source: str) -> str:
    """Returns a server's address, or an empty string for a path.

    The scheme may be in capitals, and one slash is accepted because `pathlib` merges two.

    Raises:
        RunError: The address has another scheme, or contains a user name.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}", source)
    address = f"{scheme[1].lower()}://{source[scheme.end() :]}" if scheme else ""
    if address.startswith(SERVERS):
        if re.match(r"\w+://[^/?#]*@", address):
            raise RunError(
                f"{address}: a server's address must not contain a user or password: remove them"
            )
        return address
    if "://" in source:
        raise RunError(f"{source}: not a server's address: expected {', '.join(SERVERS)}")
    return ""


def _file(path: Path, accepted: str) -> Source:
    formats = {Path(name).suffix: format_ for format_, name in MODEL.items()}
    if path.suffix not in formats:
        raise RunError(f"{path}: not a file of a network; give {accepted}")
    manifest = read_manifest(path.parent)
    if manifest.format != formats[path.suffix]:
        raise RunError(
            f"{path}: {MANIFEST} in its folder has format {manifest.format}: give each artifact "
            "a folder of its own, as `ccfnet-tf export` does"
        )
    return _artifact(manifest, path)


def _artifact(manifest: Manifest, place: Path) -> Source:
    # Images are resized to a fixed size, so no warning about large images is needed.
    trained = None if manifest.options.get("size") else manifest.trained
    return Source(manifest.format, str(place), manifest, trained)


def _is_artifact(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MANIFEST, _SAVED_MODEL, *MODEL.values()))


def _describe_folder(folder: Path, accepted: str) -> str:
    """Returns why a folder cannot be opened, and lists its subfolders that can be."""
    folders = sorted(each for each in folder.iterdir() if each.is_dir())
    inside = [each for each in folders if _is_artifact(each)]
    inside += [each for each in folders if each not in inside and _highest_version(each)]
    if not inside:
        return f"not a run folder and not an exported network; give {accepted}"
    return f"contains exported networks; give one of: {', '.join(each.name for each in inside)}"


def _highest_version(folder: Path) -> Path | None:
    versions = [each for each in folder.iterdir() if each.name.isdecimal() and _is_artifact(each)]
    return max(versions, key=lambda each: int(each.name), default=None)


def _open_saved_model(folder: Path, manifest: Manifest, _: int | None) -> Segmenter:
    from ccfnet_tf.runtimes.saved_model import SavedModelNetwork

    return SavedModelNetwork(folder, manifest.taxonomy, manifest.fitted)


def _open_litert(file: Path, manifest: Manifest, threads: int | None) -> Segmenter:
    from ccfnet_tf.runtimes.litert import LiteRTNetwork, refuse_crashing_file

    refuse_crashing_file(file)
    return LiteRTNetwork(file, manifest.taxonomy, threads, manifest.fitted)


def _open_onnx(file: Path, manifest: Manifest, threads: int | None) -> Segmenter:
    from ccfnet_tf.runtimes.onnx import OnnxNetwork

    return OnnxNetwork(file, manifest.taxonomy, threads, manifest.fitted)


_OPENERS: dict[Format, Callable[[Path, Manifest, int | None], Segmenter]] = {
    "saved_model": _open_saved_model,
    "tflite": _open_litert,
    "onnx": _open_onnx,
}
