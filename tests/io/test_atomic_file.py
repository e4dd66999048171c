from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from ccfnet_tf.errors import ResourceError
from ccfnet_tf.inference.writers import write_png
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.runs.checkpoint_file import read_arrays, write_arrays


def put(content: bytes) -> object:
    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def test_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.bin"
    for content in (b"first", b"second"):
        write_atomic(path, put(content), fix="none")
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_the_existing_file_survives_any_failure(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"older")

    def write(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    with pytest.raises(type(error)):
        write_atomic(path, write, fix="none")
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"File exists while saving .*: pick another"):
        write_atomic(tmp_path / "file" / "a.bin", put(b""), fix="pick another")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "disk full while saving {}: free space"),
        (errno.EDQUOT, "disk full while saving {}: free space"),
        (errno.EACCES, "Permission denied while saving {}: pick another"),
        (errno.EROFS, "Read-only file system while saving {}: pick another"),
    ],
)
def test_the_fix_depends_on_the_reason(tmp_path: Path, number: int, text: str) -> None:
    path = tmp_path / "a.bin"

    def write(file: BinaryIO) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(ResourceError) as caught:
        write_atomic(path, write, fix="free space", otherwise="pick another")
    assert str(caught.value) == text.format(path)


def test_the_error_for_the_first_checkpoint_mentions_no_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        write_arrays(tmp_path / "last.npz", {"model/a/kernel": np.zeros(3)})
    assert str(caught.value) == (
        f"disk full while saving {tmp_path / 'last.npz'}: no checkpoint was damaged: free "
        "disk space and continue with --resume"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a 2 MiB tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_leaves_the_older_checkpoint(small_disk: Path) -> None:
    path = small_disk / "checkpoints" / "last.npz"
    older = {"model/a/kernel": np.arange(1000.0)}
    write_arrays(path, older)
    with pytest.raises(ResourceError) as caught:
        write_arrays(path, {"model/a/kernel": np.zeros(10**6)})
    assert str(caught.value) == (
        f"disk full while saving {path}: no checkpoint was damaged: free disk space and "
        "continue with --resume"
    )
    np.testing.assert_array_equal(read_arrays(path)["model/a/kernel"], older["model/a/kernel"])
    assert list(path.parent.iterdir()) == [path]
    write_arrays(path, {"model/a/kernel": np.zeros(10**5)})  # The space is free again.


def test_full_disk_while_writing_an_image(small_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size=(1000, 1000, 3)).astype(np.uint8)
    with pytest.raises(ResourceError, match="disk full while saving"):
        write_png(small_disk / "a.png", noise)
    assert list(small_disk.iterdir()) == []
