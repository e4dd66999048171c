from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets import layout_registry, open_data_set
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.datasets.scenes.scene import TAXONOMY
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import Sample


def samples(count: int) -> tuple[Sample, ...]:
    return tuple(Sample(f"{i:03d}", f"{i}.jpg", f"{i}.png") for i in range(count))


def nothing(sample: Sample) -> Any:
    raise AssertionError(sample)


def share(
    count: int, val_share: float, seed: int = 0, **near_duplicates: str
) -> open_data_set.Parts:
    listing = Listing(
        TAXONOMY, samples(count), None, (), nothing, nothing, near_duplicates=near_duplicates
    )
    reader = layout_registry.Reader(lambda _: "", lambda *_: listing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(layout_registry.READERS, "scenes", reader)
        return open_data_set.read_parts(DataConfig(format="scenes", val_share=val_share), seed)


@pytest.mark.parametrize(
    ("count", "val_share", "held"),
    [(100, 0.1, 10), (100, 0.0, 0), (5, 0.01, 1), (3, 0.5, 2), (2, 0.5, 1)],
)
def test_validation_share_of_the_training_split(count: int, val_share: float, held: int) -> None:
    found = share(count, val_share)
    assert len(found.val) == held
    assert sorted(found.train + found.val, key=lambda s: s.name) == list(samples(count))
    assert list(found.train) == sorted(found.train, key=lambda s: s.name)
    assert found.val == share(count, val_share).val
    assert found.test == ()


def test_seed_chooses_the_share() -> None:
    assert len({share(100, 0.1, seed).val for seed in range(5)}) == 5


def test_near_duplicates_stay_together() -> None:
    near_duplicates = {f"{i:03d}": f"family {i // 4}" for i in range(40)}
    for seed in range(5):
        val = [int(s.name) for s in share(40, 0.25, seed, **near_duplicates).val]
        assert len(val) == 8  # complete groups of four, as many as fit in ten
        assert all((i - i % 4 + j) in val for i in val for j in range(4))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_for_a_validation_share(count: int) -> None:
    with pytest.raises(DataError, match=r"data\.val_share"):
        share(count, 0.1)


def test_empty_training_split() -> None:
    with pytest.raises(DataError, match="training split is empty"):
        share(0, 0.0)


def test_datasets_do_not_import_tensorflow() -> None:
    code = "import sys, ccfnet_tf.datasets.audit.check_split; print('tensorflow' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert answer.stdout.strip() == b"False"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Six images in a plain folder; image i has class i % 3 everywhere."""
    root = tmp_path / "set"
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (9, 7)).save(root / "images" / f"{i}.png")
        Image.fromarray(np.full((7, 9), i % 3, np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


def names(found: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in found]


def lists(folder: Path, **parts_: str) -> DataConfig:
    folder.mkdir(parents=True, exist_ok=True)
    for part, text in parts_.items():
        (folder / f"{part}.txt").write_text(text)
    return DataConfig(root=str(folder.parent / "set"), lists=str(folder))


def test_the_layout_is_detected(plain: Path) -> None:
    assert open_data_set.with_format(DataConfig(root=str(plain))).format == "folder"
    assert (
        open_data_set.read_parts(DataConfig(root=str(plain), val_share=0.0), 0).format == "folder"
    )
    assert open_data_set.with_format(DataConfig(root="gs://bucket/set")).format == "shards"


def test_lists_replace_the_splits_of_the_set(plain: Path, tmp_path: Path) -> None:
    found = open_data_set.read_parts(
        lists(tmp_path / "l", train="4\n1\n", val="2\n", test="0\n5\n"), 0
    )
    assert names(found.train) == ["4", "1"]
    assert names(found.val) == ["2"]
    assert names(found.test) == ["0", "5"]


def test_folds_are_selected_by_number(plain: Path, tmp_path: Path) -> None:
    for fold in range(2):
        lists(tmp_path / "l" / f"fold_{fold}", train=f"{fold}\n3\n", test=f"{1 - fold}\n")
    for fold in range(2):
        data = DataConfig(root=str(plain), lists=str(tmp_path / "l"), fold=fold, val_share=0.0)
        assert names(open_data_set.read_parts(data, 0).test) == [str(1 - fold)]
    with pytest.raises(ConfigError, match=r"data\.fold is 7: .*/l has the folds 0 to 1$"):
        open_data_set.read_parts(DataConfig(root=str(plain), lists=str(tmp_path / "l"), fold=7), 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"train": "0\n1\n44\n"}, r"train\.txt: line 3: '44' is not a sample"),
        (
            {"train": "0\n1\n", "test": "2\n1\n"},
            r"test\.txt: line 2: '1' is already on line 2 of train",
        ),
        ({"test": "2\n"}, r"no train\.txt"),
    ],
)
def test_invalid_lists(plain: Path, tmp_path: Path, text: dict[str, str], words: str) -> None:
    with pytest.raises((DataError, ConfigError), match=words):
        open_data_set.read_parts(lists(tmp_path / "l", **text), 0)


def test_lists_that_are_no_folder_are_refused(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("0\n")
    for name, why in (("none", "no such folder"), ("names.txt", "is a file: give the folder")):
        with pytest.raises(ConfigError, match=rf"^data\.lists: .*/{name}: {why}"):
            open_data_set.read_parts(DataConfig(root=str(plain), lists=str(tmp_path / name)), 0)


def test_mapped_classes_reach_both_loaders(plain: Path, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text("x: [a, c]\n")
    data = DataConfig(root=str(plain), label_map=str(tmp_path / "map.yaml"), val_share=0.0)
    found = open_data_set.read_parts(data, 0)
    assert found.taxonomy.names == ("x", "b")
    assert [int(found.load(s)[1][0, 0]) for s in found.train] == [0, 1, 0, 0, 1, 0]
    listing = open_data_set.list_set(data, 0)
    assert [int(listing.load_label(s)[0, 0]) for s in found.train] == [0, 1, 0, 0, 1, 0]


def test_unpaired_files_raise(plain: Path) -> None:
    (plain / "masks" / "3.png").unlink()
    (plain / "images" / "4.png").unlink()
    with pytest.raises(
        DataError, match=r"\(and 1 more such files\); to list all problems: .* data check /"
    ) as caught:
        open_data_set.read_parts(DataConfig(root=str(plain)), 0)
    assert caught.value.kind == "missing"


def test_unlisted_samples_are_dropped(plain: Path, tmp_path: Path) -> None:
    (plain / "masks" / "3.png").unlink()
    found = open_data_set.read_parts(lists(tmp_path / "l", train="4\n1\n", val="2\n"), 0)
    assert names(found.train) == ["4", "1"]
    with pytest.raises(DataError, match="'3' is not a sample of the set"):
        open_data_set.read_parts(lists(tmp_path / "m", train="4\n3\n"), 0)


@pytest.mark.parametrize("file", ["near_duplicates.txt", "kin.txt"])
@pytest.mark.parametrize("beside", ["set", "l"])
def test_listed_near_duplicates_stay_on_one_side(
    plain: Path, tmp_path: Path, beside: str, file: str
) -> None:
    data = lists(tmp_path / "l", train="0\n1\n2\n3\n4\n5\n")
    data = data if beside == "l" else DataConfig(root=str(plain))
    (tmp_path / beside / file).write_text("0\t4\n1\t2\t3\n")
    (note, *_) = open_data_set.list_set(data, 0).notes or ("",)
    assert ("rename it to near_duplicates.txt" in note) == (file == "kin.txt")
    for seed in range(8):
        found = open_data_set.read_parts(dataclasses.replace(data, val_share=0.4), seed)
        val = set(names(found.val))
        assert val in ({"0", "4"}, {"5"}), val  # complete groups of at most 0.4 * 6 images


def test_a_fold_without_folds(plain: Path, tmp_path: Path) -> None:
    for data in (DataConfig(root=str(plain)), lists(tmp_path / "l", train="0\n1\n2\n")):
        with pytest.raises(ConfigError, match=r"data\.fold is 2: this set has no folds"):
            open_data_set.read_parts(dataclasses.replace(data, fold=2), 0)
