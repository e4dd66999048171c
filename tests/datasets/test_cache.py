from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ccfnet_tf.datasets import cache as module
from ccfnet_tf.datasets.cache import Cache
from ccfnet_tf.errors import ConfigError, DataError, ResourceError
from ccfnet_tf.labels import VOID, Sample

SIZES = [(5, 7), (4, 4), (1, 9), (6, 3)]
SAMPLES = [Sample(str(i), "", "") for i in range(len(SIZES))]


class Reader:
    """Random images; counts how often each was read."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.reads: list[str] = []

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        self.reads.append(sample.name)
        rng = np.random.default_rng(int(sample.name))
        size = SIZES[int(sample.name)]
        label = rng.integers(VOID, self.classes, size).astype(np.int32)
        label.ravel()[:2] = VOID, self.classes - 1
        return rng.integers(0, 256, (*size, 3)).astype(np.uint8), label


@pytest.mark.parametrize(("classes", "width"), [(2, 1), (255, 1), (256, 2), (1000, 2)])
@pytest.mark.parametrize("where", ["memory", "file"])
def test_samples_are_read_once_and_returned_unchanged(
    tmp_path: Path, classes: int, width: int, where: str
) -> None:
    reader = Reader(classes)
    cache = Cache(SAMPLES, SIZES, reader, classes=classes)
    assert cache.size == sum(h * w for h, w in SIZES) * (3 + width)
    cache = cache.in_memory() if where == "memory" else cache.in_file(tmp_path / "new" / "c")
    for sample in SAMPLES + SAMPLES[::-1]:
        image, label = cache.load(sample)
        wanted = Reader(classes)(sample)
        np.testing.assert_array_equal(image, wanted[0])
        np.testing.assert_array_equal(label, wanted[1])
        assert (image.dtype, label.dtype) == (np.uint8, np.int32)
    assert sorted(reader.reads) == ["0", "1", "2", "3"]


def test_many_threads(tmp_path: Path) -> None:
    cache = Cache(SAMPLES, SIZES, Reader(9), classes=9).in_memory()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: cache.load(SAMPLES[i % 4]), range(400)))
    for i, (image, label) in enumerate(answers):
        wanted = Reader(9)(SAMPLES[i % 4])
        np.testing.assert_array_equal(image, wanted[0])
        np.testing.assert_array_equal(label, wanted[1])


def test_the_file_is_unlinked(tmp_path: Path) -> None:
    Cache(SAMPLES, SIZES, Reader(3), classes=3).in_file(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []  # open, but unlinked


def test_an_existing_file_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(ConfigError, match=r"data\.cache: .*/c: exists"):
        Cache(SAMPLES, SIZES, Reader(3), classes=3).in_file(tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache([Sample("a", "", "")], [(10**7, 10**7)], Reader(3), classes=3)
    with pytest.raises(ConfigError, match=r"400000\.00 GB are needed"):
        cache.in_memory()
    with pytest.raises(ConfigError, match=r"400000\.00 GB are needed"):
        cache.in_file(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(module, "MEMORY", tmp_path / "no such")  # a system without this file
    Cache(SAMPLES, SIZES, Reader(3), classes=3).in_memory()


def test_an_unwritable_path() -> None:
    with pytest.raises(ResourceError, match=r"data\.cache: /proc/"):
        Cache(SAMPLES, SIZES, Reader(3), classes=3).in_file(Path("/proc/no/cache"))


def test_disk_space_is_reserved_in_advance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    unlink = Path.unlink

    def measured(path: Path) -> None:
        taken.append(path.stat().st_blocks * 512)
        unlink(path)

    monkeypatch.setattr(Path, "unlink", measured)
    cache = Cache([Sample("a", "", "")], [(600, 500)], Reader(3), classes=3)
    cache.in_file(tmp_path / "c")
    assert cache.size == 1_200_000
    assert taken[0] >= cache.size


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="/c: No space left on device: name another"):
        Cache(SAMPLES, SIZES, Reader(3), classes=3).in_file(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_an_image_whose_size_changed(tmp_path: Path) -> None:
    samples = [Sample("x", "x.jpg", "x.png"), Sample("y", "y.jpg", "y.png")]
    images, labels = {"x": (4, 6), "y": (3, 5)}, {"x": (4, 6), "y": (3, 5)}

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = np.full((*images[sample.name], 3), 7, np.uint8)
        return image, np.ones(labels[sample.name], np.int32)

    cache = Cache(samples, list(images.values()), load, classes=3).in_memory()
    cache.load(samples[1])
    for images["x"], labels["x"] in (((40, 60),) * 2, ((6, 4),) * 2, ((4, 6), (40, 60))):
        with pytest.raises(DataError, match=r"x\.jpg: .* pixels, but 6x4 when") as caught:
            cache.load(samples[0])
        assert caught.value.kind == "size"
    image, label = cache.load(samples[1])
    assert (image == 7).all()
    assert (label == 1).all()
    labels["x"] = (4, 6)
    assert cache.load(samples[0])[0].shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("limit", "fits"), [("max", True), ("1000", True), ("890", True), ("700", False)]
)
def test_the_memory_limit_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, fits: bool
) -> None:
    for name, text in (
        ("max", limit),
        ("current", "800"),
        ("stat", "anon 500\nfile 300\ninactive_file 300\nactive_file 0\n"),
    ):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    cache = Cache(SAMPLES, SIZES, Reader(3), classes=3)
    assert cache.size == 312
    if fits:
        cache.in_memory()
        return
    with pytest.raises(ConfigError, match=r"are needed, .* are free in memory"):
        cache.in_memory()
