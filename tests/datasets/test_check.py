from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import check as module
from ccfnet_tf.datasets.check import check
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample

DATA = DataConfig(format="folder", root=".", workers=4)


def write(folder: Path, count: int) -> list[Sample]:
    samples = []
    for i in range(count):
        image, mask = folder / f"{i}.jpg", folder / f"{i}.png"
        Image.new("RGB", (10 + i, 8)).save(image)
        Image.fromarray(np.zeros((8, 10 + i), np.uint8)).save(mask)
        samples.append(Sample(str(i), str(image), str(mask)))
    return samples


def test_sizes_in_order(tmp_path: Path) -> None:
    steps: list[int] = []
    samples = write(tmp_path, 12)
    assert check(samples, DATA, 3, advance=lambda: steps.append(1)) == [
        (8, 10 + i) for i in range(12)
    ]
    assert len(steps) == 12


def test_first_fault_in_order_and_the_count_of_others(tmp_path: Path) -> None:
    samples = write(tmp_path, 12)
    Image.fromarray(np.full((8, 13), 7, np.uint8)).save(samples[3].label)
    with pytest.raises(DataError, match="value 7") as caught:
        check(samples, DATA, 3)
    assert "more" not in str(caught.value)
    Path(samples[9].image).write_text("no")
    Path(samples[11].label).unlink()
    with pytest.raises(DataError) as caught:
        check(samples, DATA, 3)
    assert str(caught.value).startswith(samples[3].label)
    assert "(and 2 more files" in str(caught.value)


def test_sizes_that_differ_are_named(tmp_path: Path) -> None:
    samples = write(tmp_path, 1)
    Image.fromarray(np.zeros((8, 11), np.uint8)).save(samples[0].label)
    with pytest.raises(DataError) as caught:
        check(samples, DATA, 3)
    for word in ("0.jpg", "0.png", "10x8", "11x8"):
        assert word in str(caught.value)
    assert "EXIF" not in str(caught.value)


def test_memory_that_runs_out_is_not_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hungry(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(module, "load", hungry)
    with pytest.raises(MemoryError):
        check(write(tmp_path, 2), DATA, 3)


def test_scenes_need_no_reading() -> None:
    data = DataConfig(format="scenes", scene_size=(64, 96))
    steps: list[int] = []
    samples = [Sample("a", "scene:1", "scene:1")] * 3
    assert check(samples, data, 8, advance=lambda: steps.append(1)) == [(64, 96)] * 3
    assert len(steps) == 3
