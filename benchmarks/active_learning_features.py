"""Images of the active learning benchmark as features of a frozen backbone, computed once.

A pool is stored as NumPy files. Features and labels are sampled at every eighth pixel in each
direction, where a stride-8 feature is centred, so a training of a head takes seconds.

Shapes: N images, P sampled pixels of all images together, F features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ccfnet_tf.datasets.audit.sequences import thumbnail
from ccfnet_tf.io.new_folder import new_folder

STRIDE = 8
FRAME = (240, 320)
"""Height and width of a frame."""

Pair = tuple[np.ndarray, np.ndarray]
"""An image, uint8 [H, W, 3], and its label, int32 [H, W]."""

_FRAMES = (4, 16)  # fewest and most frames of a clip
_WINDOW = (0.7, 0.85)  # smallest and largest share of the image's sides that a frame shows
_LIGHT = 0.08  # largest change of brightness over a clip
_NOISE = 2.0  # standard deviation in grey levels


@dataclass(frozen=True)
class Pool:
    """Images as sampled pixels.

    Attributes:
        features: float16 [P, F], on disk.
        labels: int16 [P]; class ids, -1 is void.
        first: int64 [N + 1]; image n has the pixels first[n] to first[n + 1].
        pooled: float32 [N, F]; mean features of each image.
        thumbnails: float32 [N, 768]; as in `datasets.audit.sequences.thumbnail`.
        source: int64 [N]; index of the image that a frame was cut from.
    """

    features: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    pooled: np.ndarray
    thumbnails: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.pooled)

    def pixels(self, images: Iterable[int]) -> np.ndarray:
        """Returns the indices of the labelled pixels of some images."""
        parts = [np.arange(self.first[n], self.first[n + 1]) for n in images]
        indices = np.concatenate(parts)
        return indices[self.labels[indices] >= 0]


def stored(folder: Path) -> Pool:
    """Returns a stored pool."""
    names = ("labels", "first", "pooled", "thumbnails", "source")
    arrays = {name: np.load(folder / f"{name}.npy") for name in names}
    features = np.memmap(folder / "features.raw", np.float16, mode="r")
    return Pool(features.reshape(-1, arrays["pooled"].shape[1]), **arrays)


def store(
    folder: Path,
    pairs: Iterable[tuple[int, Pair]],
    extract: Callable[[np.ndarray], np.ndarray],
    advance: Callable[[], object],
) -> None:
    """Computes the features of a pool and stores it; an existing one is kept.

    Args:
        folder: The folder, written completely or not at all.
        pairs: Index of the source, and image and label, of each image.
        extract: Returns the stride-8 features, float32 [h, w, F], of an image.
        advance: Called after each image.
    """
    if folder.exists():
        return
    labels, pooled, thumbnails, source = [], [], [], []
    with new_folder(folder) as unfinished:
        with (unfinished / "features.raw").open("wb") as file:
            for index, (image, label) in pairs:
                grid = extract(image)
                sampled = label[::STRIDE, ::STRIDE]
                grid = grid[: sampled.shape[0], : sampled.shape[1]]
                file.write(grid.astype(np.float16).tobytes())
                labels.append(sampled.ravel().astype(np.int16))
                pooled.append(grid.mean(axis=(0, 1)))
                thumbnails.append(thumbnail(image))
                source.append(index)
                advance()
        np.save(unfinished / "labels.npy", np.concatenate(labels))
        np.save(unfinished / "first.npy", np.cumsum([0, *map(len, labels)]))
        np.save(unfinished / "pooled.npy", np.stack(pooled).astype(np.float32))
        np.save(unfinished / "thumbnails.npy", np.stack(thumbnails))
        np.save(unfinished / "source.npy", np.array(source, np.int64))


def film(pair: Pair, rng: np.random.Generator) -> Iterator[Pair]:
    """Yields the frames of a synthetic camera that moves over an image.

    A window pans and zooms at constant speed, the light changes linearly, and each frame has its
    own noise. The class of a pixel is that of the image, so labels are exact.

    Args:
        pair: The image and its label.
        rng: Chooses length, window and light.
    """
    image, label = pair
    height, width = label.shape
    frames = int(rng.integers(_FRAMES[0], _FRAMES[1] + 1))
    size = rng.uniform(*_WINDOW)
    sizes = np.linspace(size, np.clip(size + rng.uniform(-0.1, 0.1), *_WINDOW), frames)
    begin = rng.random(2)
    end = np.clip(begin + rng.uniform(-0.4, 0.4, 2), 0, 1)
    places = np.linspace(begin, end, frames)
    light = np.linspace(1, 1 + rng.uniform(-_LIGHT, _LIGHT), frames)
    for share, (down, right), brightness in zip(sizes, places, light, strict=True):
        scale = share * height / FRAME[0], share * width / FRAME[1]
        top, left = down * (1 - share) * height, right * (1 - share) * width
        matrix = np.array([[scale[1], 0, left], [0, scale[0], top]])
        shot = _warped(image, matrix, cv2.INTER_LINEAR).astype(np.float32) * brightness
        shot += rng.normal(0, _NOISE, shot.shape)
        mask = _warped(label.astype(np.int16), matrix, cv2.INTER_NEAREST)
        yield np.clip(np.rint(shot), 0, 255).astype(np.uint8), mask.astype(np.int32)


def _warped(array: np.ndarray, matrix: np.ndarray, method: int) -> np.ndarray:
    """Returns a window of `FRAME` pixels; the matrix maps frame to image."""
    flags = method | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(array, matrix, FRAME[::-1], flags=flags, borderMode=border))
