from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.config import DataConfig, RunConfig, TrainConfig
from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.open_data_set import list_set, read_parts
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import VOID
from ccfnet_tf.pipeline.convert_data_set import write_shards
from ccfnet_tf.training.check_data import check_data, class_weights, rarity, training_load

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
SCENES = DataConfig(format="scenes", scenes=12, scene_size=(40, 48), crop=33)
CENSUS = Census.of(np.array([[0, 0, 0, 1]], np.int32), 2)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_weights_of_classes() -> None:
    assert class_weights("none", CENSUS) is None
    assert class_weights("auto", CENSUS) == pytest.approx([0.5 / 0.75, 0.5 / 0.25])
    assert class_weights((1.0, 2.0), CENSUS) == [1.0, 2.0]
    with pytest.raises(ConfigError, match="has 3 values: the data have 2 classes"):
        class_weights((1.0, 2.0, 3.0), CENSUS)


def test_rare_crop_enables_class_weights_for_crops() -> None:
    assert rarity(SCENES, CENSUS) is None
    sought = rarity(replace(SCENES, rare_crop=0.5), CENSUS)
    assert sought is not None
    assert sought[1] == pytest.approx(3 * sought[0])


@pytest.mark.parametrize("where", ["memory", "file"])
def test_the_size_of_the_cache_is_reported_first(
    tmp_path: Path, console: Console, where: str
) -> None:
    setting = "memory" if where == "memory" else str(tmp_path / "cache")
    config = RunConfig(data=replace(SCENES, cache=setting), train=TrainConfig(batch=4))
    data = check_data(config, console)
    load = training_load(config.data, data, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "cache of decoded images: needs 0.00 GB" in said
    for sample in data.parts.train[:2] * 2:
        for got, wanted in zip(load(sample), data.parts.load(sample), strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_a_training_split_without_labelled_pixels_is_refused(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccfnet_tf.datasets.scenes import scene as scenes

    def void(seed: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((*size, 3), np.uint8), np.full(size, VOID, np.int32)

    monkeypatch.setattr(scenes, "draw", void)
    with pytest.raises(ConfigError, match="every pixel is void"):
        check_data(RunConfig(data=SCENES, train=TrainConfig(batch=4)), console)


def binary(root: Path, values: list[int], *, count: int = 6) -> DataConfig:
    """Writes images whose masks have these values."""
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40, 40), (i, 9, 9)).save(root / "images" / f"{i}.png")
        mask = np.resize(np.array(values, np.uint8), (40, 40))
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("ground\ncrack\n")
    return DataConfig(root=str(root), crop=33, val_share=0.2)


def said_of(data: DataConfig, console: Console) -> str:
    check_data(RunConfig(data=data, train=TrainConfig(batch=2)), console)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


def test_masks_of_0_and_255_are_refused_with_the_fix(tmp_path: Path, console: Console) -> None:
    data = binary(tmp_path, [0, 255])
    said = "class 'crack' occurs nowhere in the training split"
    with pytest.raises(DataError, match=said) as got:
        said_of(data, console)
    assert str(tmp_path) in str(got.value)
    assert "--data.mask_values '{255: crack}'" in str(got.value)
    said = said_of(replace(data, mask_values={255: "crack"}), console)
    assert "2 classes; all labels are valid" in said
    assert "not learned" not in said


def test_absent_classes_can_be_allowed(tmp_path: Path, console: Console) -> None:
    data = binary(tmp_path, [0])
    with pytest.raises(DataError, match=r"--data.absent_classes allow"):
        said_of(data, console)
    said = said_of(replace(data, absent_classes="allow"), console)
    assert "no training image contains: crack: not learned" in said
    assert "the validation labels contain only the class 'ground'" in said


def test_a_class_only_in_the_random_validation_split_is_reported(
    tmp_path: Path, console: Console
) -> None:
    data = binary(tmp_path, [0])
    (held,) = read_parts(data, 0).val
    Image.fromarray(np.ones((40, 40), np.uint8)).save(held.label)
    assert "no training image contains: crack: not learned" in said_of(data, console)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("".join(f"{s.name}\n" for s in read_parts(data, 0).train))
    (lists / "val.txt").write_text(f"{held.name}\n")
    with pytest.raises(DataError, match="'crack' occurs nowhere in the training split"):
        said_of(replace(data, lists=str(lists)), console)


def test_a_crop_of_padding_is_refused(console: Console) -> None:
    def look(crop: int) -> None:
        data = replace(SCENES, crop=crop, scale=(0.5, 1.5))
        check_data(RunConfig(data=data, train=TrainConfig(batch=4)), console)

    look(144)  # twice 1.5 times 48
    with pytest.raises(ConfigError) as caught:
        look(145)
    assert str(caught.value) == (
        "data.crop is 145: the largest image is 48x40, at most 72x60 after data.scale, so more "
        "than three quarters of every crop would be padding; lower data.crop"
    )


def test_one_image_is_singular(tmp_path: Path, console: Console) -> None:
    data = replace(binary(tmp_path, [0, 1], count=1), val_share=0.0)
    check_data(RunConfig(data=data, train=TrainConfig(batch=1)), console)
    assert "folder: 1 training image, 0 validation" in console.file.getvalue()  # type: ignore[attr-defined]


def test_damaged_records_are_reported_and_skipped(tmp_path: Path, console: Console) -> None:
    listing = list_set(SCENES, 0)
    manifest = write_shards(listing, tmp_path / "shards", 2)
    record = manifest.parts["train"][3]
    path = tmp_path / "shards" / record.file
    content = bytearray(path.read_bytes())
    content[record.offset + record.length // 2] ^= 1
    path.write_bytes(content)
    data = DataConfig(root=str(tmp_path / "shards"), crop=65, val_share=0.0)
    settings = RunConfig(data=data, train=TrainConfig(batch=4))
    found = check_data(settings, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"skipped: {path}: record 3 (train/00003): damaged" in said
    assert "all other labels are valid" in said
    image, label = training_load(data, found, console)(found.parts.train[3])
    assert image.shape[:2] == label.shape == SCENES.scene_size
    assert (label == VOID).all()
    strict = replace(settings, data=replace(data, damaged_records="stop"))
    with pytest.raises(DataError, match=r"record 3 \(train/00003\): damaged"):
        check_data(strict, console)


@pytest.mark.parametrize(("crop", "warned"), [(33, False), (57, False), (81, True)])
def test_a_crop_much_larger_than_the_images_raises_a_warning(
    console: Console, crop: int, warned: bool
) -> None:
    data = replace(SCENES, crop=crop, scale=(0.8, 1.2))  # scenes of 48x40
    check_data(RunConfig(data=data, train=TrainConfig(batch=4)), console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("warning: data.crop is" in said) is warned
    if warned:
        assert "median image size is 48x40" in said
        assert "71% of a crop is padding" in said
        assert "use --data.crop 49" in said


def test_an_invalid_data_set_names_the_command_that_lists_its_errors(
    console: Console, tmp_path: Path
) -> None:
    root = tmp_path / "my set"
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
        for index in range(4):
            Image.new("L", (40, 40), 7).save(root / side / f"{index}.png")
    (root / "classes.txt").write_text("cat\ndog\n")
    data = DataConfig(format="folder", root=str(root), crop=33, val_share=0.0)
    with pytest.raises(DataError) as caught:
        check_data(RunConfig(data=data, train=TrainConfig(batch=2)), console)
    assert str(caught.value).endswith(f"ccfnet-tf data check '{root}'")
    assert "and 3 more bad files" in str(caught.value)


def test_labels_of_the_test_split_are_checked_too(tmp_path: Path, console: Console) -> None:
    root = shutil.copytree(SAMPLE, tmp_path / "set")
    mask = root / "test" / "masks" / "test_00.png"
    values = np.asarray(Image.open(mask)).copy()
    values[:2, :3] = 77
    Image.fromarray(values).save(mask)
    config = RunConfig(data=DataConfig(root=str(root), format="folder"), train=TrainConfig(batch=2))
    with pytest.raises(DataError, match=r"test_00\.png: value 77 on 6 pixels"):
        check_data(config, console)
