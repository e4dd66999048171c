"""Every type of data set file except images, damaged 300 times: one-line errors, little memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.pipeline.convert_data_set import write_shards
from tests.datasets.layouts import small_copies, test_fuzz_lists, test_fuzz_polygons
from tests.hostile.conftest import write_set
from tests.hostile.test_fuzz_runs import damaged, fuzz, one_line

# Decoders warn of odd metadata: a warning is not a fault here.
pytestmark = pytest.mark.filterwarnings("ignore")


def folder(name: str, text: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        write_set(root)
        if name.startswith("colo"):
            (root / "classes.txt").unlink()
        (root / name).write_text(text)
        return root / name

    return write


def shards(root: Path) -> Path:
    write_set(root / "set")
    write_shards(list_set(DataConfig(root=str(root / "set")), 0), root / "shards", count=1)
    for file in (root / "shards").iterdir():
        file.rename(root / file.name)
    return root / "manifest.json"


def record(root: Path) -> Path:
    shards(root)
    return next(root.glob("*.tfrecord"))


def outlines(layout: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        _, tree, put = test_fuzz_polygons.LAYOUTS[layout]
        for name in "ab":
            small_copies.photo(root / f"{name}.png")
        return put(root, json.dumps(tree).encode())

    return write


def listed(small: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        small(root)
        return root / name

    return write


FILES: dict[str, Callable[[Path], Path]] = {
    **{name: write for name, (_, write) in test_fuzz_lists.FILES.items()},
    **{layout: outlines(layout) for layout in test_fuzz_polygons.LAYOUTS},
    "classes.txt": folder("classes.txt", "sky\ntree\nroad\n"),
    "colours.txt": folder("colours.txt", "0 0 0 sky\n9 9 9 tree\n1 2 3 road\n"),
    "train.txt": folder("train.txt", "0\n1.png\n2\n"),
    "manifest.json": shards,
    "records": record,
    "CamVid's list": listed(small_copies.camvid, "train.txt"),
    "VOC's list": listed(small_copies.voc, "ImageSets/Segmentation/train.txt"),
    "SIFT Flow's list": listed(small_copies.sift_flow, "TestSet1.txt"),
}


def load_all(root: Path) -> None:
    """Reads a data set as `data check` does, each sample separately."""
    listing = list_set(DataConfig(root=str(root)), 0)
    for sample in (*listing.train, *(listing.val or ()), *listing.test):
        one_line(lambda sample=sample: listing.load(sample), b"")  # type: ignore[misc]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_data_set(name: str, tmp_path: Path, count: int) -> None:
    file = FILES[name](tmp_path)
    fuzz(file, lambda: load_all(tmp_path), count)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_exit_codes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A few files of each type through the command line."""
    file = FILES[name](tmp_path)
    assert cli.main(["data", "check", str(tmp_path)]) in (0, 1), capsys.readouterr().err
    codes = set()
    for content in damaged(file.read_bytes(), file.name, 6):
        file.write_bytes(content)
        capsys.readouterr()
        code, output = cli.main(["data", "check", str(tmp_path)]), capsys.readouterr()
        codes.add(code)
        context = f"{content[:300]!r}: {output.err}"
        assert code in (0, 1, 2), context
        assert len(output.err.splitlines()) == 1 or code != 2, context
        assert "\x1b" not in output.out + output.err, context
    assert codes != {0}
