"""Symbolic links planted where files are written: their targets stay unchanged."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.io.atomic_file import private_folder, remove_leftovers, write_atomic
from ccfnet_tf.io.new_folder import being_written, new_folder
from tests.hostile.conftest import Trained


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder with a file that must not be changed."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_text("precious")
    return folder


def is_unharmed(victim: Path) -> bool:
    files = [path.name for path in victim.rglob("*")]
    return files == ["file"] and (victim / "file").read_text() == "precious"


RUN_FILES = [
    ".lock",
    ".evaluation.json.tmp",
    ".metrics.csv.tmp",
    ".config.yaml.tmp",
    ".classes.json.tmp",
    ".environment.json.tmp",
    ".data_digest.json.tmp",
    "checkpoints/.last.npz.tmp",
    "checkpoints/.best.npz.tmp",
    "checkpoints/.previous.npz.tmp",
    "previews/.epoch_02.png.tmp",
    "evaluation.json",
    "metrics.csv",
    "previews/epoch_02.png",
    "checkpoints/best.npz",
]


def test_links_to_files_in_a_run_are_not_followed(begun: Trained, victim: Path) -> None:
    for name in RUN_FILES:
        entry = begun.run / name
        entry.unlink(missing_ok=True)
        entry.symlink_to(victim / "file")
    assert cli.main(["fit", "--resume", "--out", str(begun.run)]) == 0
    assert cli.main(["evaluate", str(begun.run), "--split", "val"]) == 0
    assert is_unharmed(victim)
    assert not [path for path in begun.run.rglob(".*tmp") if path.name != ".previous.npz.tmp"]
    assert not (begun.run / "evaluation.json").is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "previews", "tensorboard", "lists"])
def test_links_to_folders_in_a_run_are_refused(
    name: str, begun: Trained, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = begun.run / name
    if name == "checkpoints":
        entry.rename(victim.parent / "moved")
        victim = victim.parent / "moved"
        before = {path.name: path.stat().st_mtime_ns for path in victim.iterdir()}
    else:
        shutil.rmtree(entry, ignore_errors=True)
    entry.symlink_to(victim)
    capsys.readouterr()
    assert cli.main(["fit", "--resume", "--out", str(begun.run)]) == 2
    assert f"{entry}: is a link" in capsys.readouterr().err
    if name == "checkpoints":
        assert before == {path.name: path.stat().st_mtime_ns for path in victim.iterdir()}
    else:
        assert is_unharmed(victim)


def test_a_broken_link_as_configuration_creates_no_file(begun: Trained, victim: Path) -> None:
    shutil.rmtree(begun.run)
    begun.run.mkdir()
    (begun.run / "config.yaml").symlink_to(victim / "new")
    assert cli.main(["fit", "--resume", "--out", str(begun.run)]) == 2
    assert is_unharmed(victim)


def test_links_among_predictions_are_not_followed(
    trained: Trained, victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for kind in ("label", "color", "overlay", "difficulty"):
        (out / f".0.{kind}.png.tmp").symlink_to(victim / "file")
        (out / f"0.{kind}.png").symlink_to(victim / "file")
    image = str(trained.data / "images" / "0.png")
    command = ["predict", str(trained.run), image, "--out", str(out), "--overwrite"]
    assert cli.main(command) == 0
    assert is_unharmed(victim)
    assert sorted(path.name for path in out.iterdir()) == [
        f"0.{kind}.png" for kind in ("color", "difficulty", "label", "overlay")
    ]
    shutil.rmtree(out)
    out.mkdir()
    (out / "images").symlink_to(victim)
    capsys.readouterr()
    assert cli.main(["predict", str(trained.run), str(trained.data), "--out", str(out)]) == 2
    assert "images: is a link" in capsys.readouterr().err
    assert is_unharmed(victim)


def test_the_output_folder_itself_may_be_a_link(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "large_disk").mkdir()
    out = tmp_path / "out"
    out.symlink_to(tmp_path / "large_disk")
    assert cli.main(["predict", str(trained.run), str(trained.data), "--out", str(out)]) == 0
    assert len(list((tmp_path / "large_disk" / "images").iterdir())) == 24


@pytest.mark.parametrize("verb", ["convert", "split"])
def test_links_next_to_a_new_folder_are_removed(
    verb: str, trained: Trained, victim: Path, tmp_path: Path
) -> None:
    (tmp_path / ".u.unfinished").symlink_to(victim)
    option = "--to" if verb == "convert" else "--out"
    assert cli.main(["data", verb, str(trained.data), option, str(tmp_path / "u")]) == 0
    assert is_unharmed(victim)
    assert (tmp_path / "u").is_dir()


def test_links_in_leftovers_of_a_killed_process_are_removed(victim: Path, tmp_path: Path) -> None:
    left = tmp_path / ".u.unfinished"
    (left / "deep").mkdir(parents=True)
    (left / "file").symlink_to(victim / "file")
    (left / "folder").symlink_to(victim)
    (left / "deep" / "folder").symlink_to(victim)
    with new_folder(tmp_path / "u") as folder:
        assert list(folder.iterdir()) == []
    assert is_unharmed(victim)


def test_a_link_is_not_a_folder_being_written(victim: Path, tmp_path: Path) -> None:
    (tmp_path / ".u.unfinished").symlink_to(victim)
    held = os.open(victim, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert not being_written(tmp_path / "u")
    finally:
        os.close(held)


def test_a_new_folder_is_not_created_through_a_broken_link(victim: Path, tmp_path: Path) -> None:
    (tmp_path / "u").symlink_to(victim / "new")
    with pytest.raises(ConfigError, match="is a broken link"), new_folder(tmp_path / "u"):
        pass
    assert is_unharmed(victim)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".u.unfinished").mkdir()
    os.chown(tmp_path / ".u.unfinished", 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"), new_folder(tmp_path / "u"):
        pass


def test_leftovers_are_removed_unless_in_use(victim: Path, tmp_path: Path) -> None:
    entry = tmp_path / "entry"
    entry.mkdir()
    for name in (".ccfnet-0123456789abcdef.tmp", ".last.npz.tmp"):
        (entry / name).write_text("half")
    (entry / ".ccfnet-00000000000000aa.tmp").mkdir()
    (entry / ".ccfnet-00000000000000ab.tmp").symlink_to(victim)
    os.mkfifo(entry / ".ccfnet-00000000000000ac.tmp")
    (entry / ".notes.tmp").write_text("of another program")
    seen: list[list[str]] = []

    def write(file: object) -> None:
        with private_folder(entry) as private:
            (private / "x").write_text("1")
            remove_leftovers(entry)
            seen.append(sorted(path.name for path in entry.iterdir()))
            assert (private / "x").exists()

    write_atomic(entry / "a", write, fix="")
    (names,) = seen
    assert len(names) == 3
    assert [bool(re.fullmatch(r"\.ccfnet-\w{16}\.tmp", name)) for name in names] == [
        True,
        True,
        False,
    ]
    assert sorted(path.name for path in entry.iterdir()) == [".notes.tmp", "a"]
    assert is_unharmed(victim)


def test_the_longest_possible_file_name(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("n" * 255), lambda file: file.write(b"1"), fix="")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"1"


def test_a_video_is_not_written_through_a_link(
    trained: Trained, victim: Path, tmp_path: Path
) -> None:
    from tests.inference.test_predict import write_video

    clip = write_video(tmp_path / "clip.mp4", 3)
    out = tmp_path / "out"
    out.mkdir()
    for name in (".clip.overlay.mp4.tmp.mp4", "clip.overlay.mp4"):
        (out / name).symlink_to(victim / "file")
    command = ["predict", str(trained.run), str(clip), "--out", str(out), "--overwrite"]
    assert cli.main(command) == 0
    assert is_unharmed(victim)
    shutil.rmtree(out / "clip.frames")
    (out / "clip.frames").symlink_to(victim)
    assert cli.main(command) == 2
    assert is_unharmed(victim)


def test_a_full_disk_leaves_no_hidden_files(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a 1 MiB tmpfs")
    try:
        with pytest.raises(ResourceError, match="disk full"):
            write_atomic(disk / "a", lambda file: file.write(bytes(1 << 21)), fix="free space")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), private_folder(disk) as own:
            (own / "x").write_bytes(bytes(1 << 21))
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
