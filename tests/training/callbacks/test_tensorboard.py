from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.training.callbacks.tensorboard import TensorBoardLog

ROW = {"epoch": 1, "loss": 0.5, "val_refine_mean_iou": 0.25}


def noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)


def tags(folder: Path) -> list[str]:
    (file,) = folder.iterdir()
    found = []
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        found += [value.tag for value in event.summary.value]
    return found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a 64 KiB tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)  # a writer may still be open


def test_metrics_and_an_image_of_each_epoch_are_written(tmp_path: Path) -> None:
    board = TensorBoardLog(tmp_path / "tensorboard")
    for epoch in (1, 2):
        board.write(epoch, ROW, noise(16))
    assert tags(tmp_path / "tensorboard") == ["loss", "val_refine_mean_iou", "preview"] * 2


def test_two_writers_of_one_folder_check_their_own_files(tmp_path: Path) -> None:
    first = TensorBoardLog(tmp_path)
    first.write(1, ROW, noise(16))
    second = TensorBoardLog(tmp_path)
    for board in (second, first):
        board.write(2, ROW, noise(8))


def test_a_log_truncated_by_a_full_disk_ends_the_run(small_disk: Path) -> None:
    board = TensorBoardLog(small_disk / "tensorboard")
    board.write(1, ROW, noise(32))
    with pytest.raises(ResourceError, match="truncated, probably by a full disk; ") as caught:
        board.write(2, ROW, noise(256))
    (file,) = (small_disk / "tensorboard").iterdir()
    assert str(caught.value).startswith(f"{file}: ")
    assert file.stat().st_size > 0


@pytest.mark.parametrize("free", [0, 4096])
def test_a_disk_that_is_full_before_the_first_epoch_is_detected(
    small_disk: Path, free: int
) -> None:
    board = TensorBoardLog(small_disk / "tensorboard")
    with (small_disk / "other").open("wb") as other:
        other.write(bytes((1 << 16) - 4096 - free))
    with pytest.raises(ResourceError, match="truncated"):
        board.write(1, ROW, noise(64))
