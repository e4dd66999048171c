"""Cache of decoded images, so that only the first epoch decodes them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ccfnet_tf.datasets.samples import Load
from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.labels import VOID, Sample

MEMORY = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


class Cache:
    """A loader that decodes each sample once.

    Samples are stored consecutively in one buffer, in memory or in a file: the image as uint8, the
    label as uint8, or as uint16 for more than 255 classes. The largest value of the type is void.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sizes: Sequence[tuple[int, int]],
        load: Load,
        *,
        classes: int,
    ) -> None:
        """Computes the layout of the cache without allocating it.

        Args:
            samples: Samples that will be requested.
            sizes: (H, W) of each sample.
            load: Loads a sample.
            classes: Number of classes C.
        """
        self._load = load
        self._kind = np.dtype(np.uint8 if classes <= 255 else np.uint16)
        self._void = 2 ** (8 * self._kind.itemsize) - 1
        lengths = [h * w * (3 + self._kind.itemsize) for h, w in sizes]
        ends = np.cumsum([0, *lengths]).tolist()
        self._slots = {
            sample.name: (start, size)
            for sample, start, size in zip(samples, ends[:-1], sizes, strict=True)
        }
        self._filled: set[str] = set()
        self._block: np.ndarray | None = None
        self.size = int(ends[-1])
        """Size of the full cache in bytes."""

    def in_memory(self) -> Cache:
        """Allocates the cache in memory.

        Raises:
            ConfigError: Not enough memory is available.
        """
        self._refuse_more_than(_free_memory(), "memory", "name a file in data.cache, or use none")
        self._block = np.empty(self.size, np.uint8)
        return self

    def in_file(self, path: Path) -> Cache:
        """Allocates the cache in a file.

        The file is unlinked immediately, so that it disappears when the process ends for any
        reason.

        Args:
            path: File to create.

        Raises:
            ConfigError: The file exists, or its disk has too little free space.
            ResourceError: The file cannot be written, or the disk is full after all.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            self._refuse_more_than(free, str(path), "name a file on a larger disk, or use none")
            with path.open("xb+") as file:
                try:
                    _reserve(file, self.size)
                    self._block = np.memmap(file, np.uint8, "r+", shape=(self.size,))
                finally:
                    path.unlink()
        except FileExistsError as error:
            raise ConfigError(
                f"data.cache: {path}: exists: name a new file; it is removed when the run ends"
            ) from error
        except OSError as error:
            raise ResourceError(f"data.cache: {path}: {error.strerror}: name another") from error
        return self

    def load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Returns image uint8 [H, W, 3] and label int32 [H, W], decoding a sample at most once.

        Raises:
            DataError: The size of the sample has changed; of kind `size`.
        """
        if sample.name not in self._filled:
            image, label = self._load(sample)
            self._put(sample, image, label)
            return image, label
        start, (height, width) = self._slots[sample.name]
        assert self._block is not None
        middle = start + height * width * 3
        end = middle + height * width * self._kind.itemsize
        image = self._block[start:middle].reshape(height, width, 3)
        stored = self._block[middle:end].view(self._kind).reshape(height, width)
        label = np.where(stored == self._void, VOID, stored.astype(np.int32))
        return image, label

    def _put(self, sample: Sample, image: np.ndarray, label: np.ndarray) -> None:
        start, size = self._slots[sample.name]
        for array in (image, label):
            if array.shape[:2] != size:  # would overwrite the next sample
                raise DataError(
                    f"{sample.image}: {array.shape[1]}x{array.shape[0]} pixels, but "
                    f"{size[1]}x{size[0]} when the run began: restore the file, or start a new run",
                    kind="size",
                )
        middle = start + image.size
        stored = np.where(label == VOID, self._void, label).astype(self._kind)
        assert self._block is not None
        self._block[start:middle] = image.ravel()
        self._block[middle : middle + stored.nbytes] = stored.ravel().view(np.uint8)
        # Last, so that other threads never read a partly written slot.
        self._filled.add(sample.name)

    def _refuse_more_than(self, free: int | None, where: str, fix: str) -> None:
        if free is not None and self.size > free:
            raise ConfigError(
                f"data.cache: {in_gigabytes(self.size)} are needed, {in_gigabytes(free)} are free "
                f"in {where}: {fix}"
            )


def in_gigabytes(size: int) -> str:
    """Formats a number of bytes, as in `1.23 GB`."""
    return f"{size / 1e9:.2f} GB"


def _reserve(file: BinaryIO, size: int) -> None:
    """Reserves disk space: writing to a hole of a mapped file on a full disk raises SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:  # macOS
        file.truncate(size)


def _free_memory() -> int | None:
    """Returns the bytes of memory available without swapping; None if unknown."""
    known = [free for free in (_free_in_system(), _free_in_cgroup()) if free is not None]
    return min(known, default=None)


def _free_in_system() -> int | None:
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None


def _free_in_cgroup() -> int | None:
    """Returns the bytes left under the cgroup v2 memory limit; None if there is no limit."""
    try:
        limit, used = (
            (CGROUP / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current")
        )
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    if limit.strip() == "max":
        return None
    # The page cache counts as used, but its inactive pages are reclaimed on demand.
    pages = [int(line.split()[1]) for line in lines if line.startswith("inactive_file ")]
    return max(0, int(limit) - int(used) + sum(pages))
