"""Real pictures and what Keras answers for them: what an exported file is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ccfnet_tf.artifacts.contract import REFERENCE, Difference
from ccfnet_tf.datasets.parts import Parts, read_parts
from ccfnet_tf.errors import CCFNetError, ConfigError

if TYPE_CHECKING:
    from ccfnet_tf.inference.keras_network import KerasNetwork
    from ccfnet_tf.inference.runs import RunInfo

PICTURES = 6

LEVELS = 255.0
"""Probabilities are stored as whole numbers up to this."""


def run_parts(run: RunInfo) -> Parts:
    """Returns the run's own data.

    Raises:
        ConfigError: They are no longer where they were.
    """
    try:
        return read_parts(run.config.data, run.config.seed)
    except CCFNetError as error:
        raise ConfigError(
            f"{run.path}: an export is checked on pictures of the run's data, which cannot be "
            f"read ({error}); say where they are now with --data.root"
        ) from error


def reference_pictures(parts: Parts, count: int = PICTURES) -> list[np.ndarray]:
    """Returns pictures, uint8 [H, W, 3]: of test, else val, else train."""
    samples = parts.test or parts.val or parts.train
    step = max(1, len(samples) // count)
    return [parts.load(sample)[0] for sample in samples[::step][:count]]


def write_reference(path: Path, predictor: KerasNetwork, pictures: Sequence[np.ndarray]) -> None:
    """Writes pictures and Keras's answers as named arrays.

    Keys: `image/N` uint8 [H, W, 3], `probabilities/N` float32 [H, W, C], `difficulty/N` float32
    [H, W].
    """
    arrays: dict[str, np.ndarray] = {}
    for number, picture in enumerate(pictures):
        found = predictor.predict(picture)
        arrays[f"image/{number}"] = picture
        arrays[f"probabilities/{number}"] = found.probabilities
        arrays[f"difficulty/{number}"] = found.difficulty
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read_references(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields image, probabilities and difficulty of each reference in a folder.

    Raises:
        ValueError: There is none.
    """
    with np.load(folder / REFERENCE, allow_pickle=False) as arrays:
        keys = sorted(key for key in arrays.files if key.startswith("image/"))
        if not keys:
            raise ValueError("there is nothing to compare with")
        for key in keys:
            number = key.removeprefix("image/")
            yield arrays[key], arrays[f"probabilities/{number}"], arrays[f"difficulty/{number}"]


class Gaps:
    """Differences, gathered over pictures and outputs."""

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
