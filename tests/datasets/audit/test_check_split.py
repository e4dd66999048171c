from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample


def write(folder: Path, count: int) -> Parts:
    """Writes images of different widths; image i has i + 1 pixels of class 1."""
    for side in ("images", "masks"):
        (folder / side).mkdir()
    (folder / "classes.txt").write_text("a\nb\nc\n")
    for i in range(count):
        mask = np.zeros((8, 10 + i), np.uint8)
        mask[0, : i + 1] = 1
        Image.new("RGB", (10 + i, 8)).save(folder / "images" / f"{i:02d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{i:02d}.png")
    return read_parts(DataConfig(root=str(folder), val_share=0.0), 0)


def test_sizes_in_order_and_counts(tmp_path: Path) -> None:
    steps: list[int] = []
    parts = write(tmp_path, 12)
    seen = check(parts.train, parts.load, 3, workers=4, advance=lambda: steps.append(1))
    assert seen.sizes == [(8, 10 + i) for i in range(12)]
    assert seen.census.samples == len(steps) == 12
    assert seen.census.pixels.tolist() == [8 * sum(range(10, 22)) - 78, 78, 0]


def test_first_error_in_order_and_the_number_of_others(tmp_path: Path) -> None:
    parts = write(tmp_path, 12)
    samples = parts.train
    Image.fromarray(np.full((8, 13), 7, np.uint8)).save(samples[3].label)
    with pytest.raises(DataError, match="value 7") as caught:
        check(samples, parts.load, 3)
    assert "more" not in str(caught.value)
    assert caught.value.kind == "value"
    Path(samples[9].image).write_text("no")
    Path(samples[11].label).unlink()
    with pytest.raises(DataError) as caught:
        check(samples, parts.load, 3)
    assert str(caught.value).startswith(samples[3].label)
    assert "(and 2 more bad files" in str(caught.value)


def test_different_sizes_raise(tmp_path: Path) -> None:
    parts = write(tmp_path, 2)
    Image.fromarray(np.zeros((8, 12), np.uint8)).save(parts.train[0].label)
    with pytest.raises(DataError) as caught:
        check(parts.train, parts.load, 3)
    for word in ("00.jpg", "00.png", "10x8", "12x8"):
        assert word in str(caught.value)
    assert "EXIF" not in str(caught.value)
    assert caught.value.kind == "size"


def test_memory_errors_propagate() -> None:
    def hungry(_: Sample) -> tuple[np.ndarray, np.ndarray]:
        raise MemoryError

    with pytest.raises(MemoryError):
        check([Sample("a", "", "")] * 2, hungry, 3)
