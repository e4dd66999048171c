"""Real images and what Keras answers for them: what an exported file is held against."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccfnet_tf.datasets.splits import Parts, read_parts
from ccfnet_tf.errors import CCFNetError, ConfigError, DataError, first_line
from ccfnet_tf.inference.segmenter import refuse_no_picture
from ccfnet_tf.runs.checkpoint_file import DAMAGE, parse_array
from ccfnet_tf.runtimes.manifest import LEVELS, REFERENCE, Difference

if TYPE_CHECKING:
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.runs.run_folder import RunInfo

REFERENCES = 6

MOST_BYTES = 1 << 31
"""Of all references of an artifact, unpacked."""


def run_parts(run: RunInfo) -> Parts:
    """Returns the run's own data.

    Raises:
        ConfigError: They are no longer where they were.
    """
    try:
        return read_parts(run.config.data, run.config.seed)
    except CCFNetError as error:
        raise ConfigError(
            f"{run.path}: an export is checked on images of the run's data, which cannot be "
            f"read ({error}); say where they are now with --data.root"
        ) from error


def reference_pictures(parts: Parts, count: int = REFERENCES) -> list[np.ndarray]:
    """Returns images, uint8 [H, W, 3]: of test, else val, else train."""
    samples = parts.test or parts.val or parts.train
    step = max(1, len(samples) // count)
    return [parts.load(sample)[0] for sample in samples[::step][:count]]


def write_reference(path: Path, predictor: KerasNetwork, pictures: Sequence[np.ndarray]) -> None:
    """Writes images and Keras's answers as named arrays, the first of at most `MOST_BYTES`.

    Keys: `image/N` uint8 [H, W, 3], `probabilities/N` float32 [H, W, C], `difficulty/N` float32
    [H, W].
    """
    arrays: dict[str, np.ndarray] = {}
    size = 0
    for number, picture in enumerate(pictures):
        found = predictor.predict(picture)
        size += picture.nbytes + found.probabilities.nbytes + found.difficulty.nbytes
        if arrays and size > MOST_BYTES:
            break
        arrays[f"image/{number}"] = picture
        arrays[f"probabilities/{number}"] = found.probabilities
        arrays[f"difficulty/{number}"] = found.difficulty
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_references(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields image, probabilities and difficulty of each reference in a folder.

    Raises:
        ValueError: There is none, or the file is damaged or unpacks to more than `MOST_BYTES`.
    """
    path = folder / REFERENCE
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sum(info.file_size for info in members.values()) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
            keys = sorted(name for name in members if name.startswith("image/"))
            if not keys:
                raise ValueError("there is nothing to compare with")
            for key in keys:
                number = key.removeprefix("image/")
                image, probabilities, difficulty = (
                    parse_array(_unpacked(archive, members[f"{kind}/{number}"]))
                    for kind in ("image", "probabilities", "difficulty")
                )
                _refuse_other_form(image, probabilities, difficulty)
                yield image, probabilities, difficulty
    except (*DAMAGE, DataError) as error:
        reason = first_line(error)
        raise ValueError(f"{path}: damaged ({reason})") from error


def _unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Returns a member, unpacked piece by piece: at once, it could become any size first."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"packed by a method {info.compress_type} that is not ours")
    with archive.open(info) as member:
        return b"".join(iter(partial(member.read, 1 << 20), b""))


def _refuse_other_form(
    image: np.ndarray, probabilities: np.ndarray, difficulty: np.ndarray
) -> None:
    refuse_no_picture(image)
    size = image.shape[:2]
    floats = probabilities.dtype == difficulty.dtype == np.float32
    if not floats or probabilities.shape[:2] != size or probabilities.ndim != 3:
        raise ValueError(f"probabilities of {probabilities.dtype} {list(probabilities.shape)}")
    if difficulty.shape != size:
        raise ValueError(f"difficulty of shape {list(difficulty.shape)}")


class Gaps:
    """Differences, gathered over images and outputs."""

    def __init__(self) -> None:
        self._gaps: list[np.ndarray] = []
        self._others = self._pixels = 0

    def add(self, gaps: np.ndarray) -> None:
        """Adds absolute differences of probabilities."""
        self._gaps.append(gaps.ravel())

    def add_labels(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Adds class ids [H, W]."""
        same_shape("labels", found, expected)
        self._others += int((found != expected).sum())
        self._pixels += expected.size

    def difference(self) -> Difference:
        """Returns the figures.

        Raises:
            ValueError: Something is not finite.
        """
        every = np.concatenate(self._gaps)
        if not np.isfinite(every).all():
            raise ValueError("an answer is not finite")
        return Difference(
            largest=float(every.max()),
            percentile=float(np.percentile(every, 99.9)),
            mean=float(every.mean()),
            other_labels=self._others / self._pixels,
        )


def beyond_rounding(stored: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns how far stored bytes are from probabilities, beyond the half step of rounding."""
    gap = np.abs(stored.astype(np.float64) / LEVELS - expected)
    return np.maximum(0.0, gap - 0.5 / LEVELS)


def same_shape(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Refuses an answer of another form; raises ValueError."""
    if found.shape != expected.shape:
        raise ValueError(f"{name} has shape {list(found.shape)}, not {list(expected.shape)}")
