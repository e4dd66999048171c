"""Keeps decoded pictures, so that an epoch after the first does not decode them again."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccfnet_tf.datasets.listing import Load
from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.labels import VOID, Sample

MEMORY = Path("/proc/meminfo")


class Cache:
    """A loader that decodes each sample once.

    Samples lie one after another in one block of bytes, in memory or in a file: the image as
    uint8, the label as uint8 or (more than 255 classes) uint16, whose largest value is void.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        sizes: Sequence[tuple[int, int]],
        load: Load,
        *,
        classes: int,
    ) -> None:
        """Plans the cache; takes no space yet.

        Args:
            samples: What will be asked for.
            sizes: (H, W) of each.
            load: Reads one.
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
        """Bytes that the cache takes once it is full."""

    def in_memory(self) -> Cache:
        """Takes the space in memory.

        Raises:
            ConfigError: Less is free.
        """
        self._refuse_more_than(_free_memory(), "memory", "name a file in data.cache, or use none")
        self._block = np.empty(self.size, np.uint8)
        return self

    def in_file(self, path: Path) -> Cache:
        """Takes the space in a file that goes when this process ends, however it ends.

        Raises:
            ConfigError: There is such a file already, or less is free on its disk.
            ResourceError: It cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            self._refuse_more_than(free, str(path), "name a file on a larger disk, or use none")
            with path.open("xb+") as file:
                file.truncate(self.size)
                self._block = np.memmap(file, np.uint8, "r+", shape=(self.size,))
            path.unlink()
        except FileExistsError as error:
            raise ConfigError(
                f"data.cache: {path}: already there: name a new file, which goes when the run ends"
            ) from error
        except OSError as error:
            raise ResourceError(f"data.cache: {path}: {error.strerror}: name another") from error
        return self

    def load(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Returns image uint8 [H, W, 3] and label int32 [H, W]; reads the sample at most once."""
        if sample.name not in self._filled:
            image, label = self._load(sample)
            self._put(sample.name, image, label)
            return image, label
        start, (height, width) = self._slots[sample.name]
        assert self._block is not None
        middle = start + height * width * 3
        end = middle + height * width * self._kind.itemsize
        image = self._block[start:middle].reshape(height, width, 3)
        stored = self._block[middle:end].view(self._kind).reshape(height, width)
        label = np.where(stored == self._void, VOID, stored.astype(np.int32))
        return image, label

    def _put(self, name: str, image: np.ndarray, label: np.ndarray) -> None:
        start, _ = self._slots[name]
        middle = start + image.size
        stored = np.where(label == VOID, self._void, label).astype(self._kind)
        assert self._block is not None
        self._block[start:middle] = image.ravel()
        self._block[middle : middle + stored.nbytes] = stored.ravel().view(np.uint8)
        self._filled.add(name)  # last: another thread must not read a slot that is half written

    def _refuse_more_than(self, free: int | None, where: str, mend: str) -> None:
        if free is not None and self.size > free:
            raise ConfigError(
                f"data.cache: {in_gigabytes(self.size)} are needed, {in_gigabytes(free)} are free "
                f"in {where}: {mend}"
            )


def in_gigabytes(size: int) -> str:
    """Returns `1.23 GB` for a number of bytes."""
    return f"{size / 1e9:.2f} GB"


def _free_memory() -> int | None:
    """Returns the bytes of memory that can be had without swapping; None where nobody says."""
    try:
        rows = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    free = [row.split()[1] for row in rows if row.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None
