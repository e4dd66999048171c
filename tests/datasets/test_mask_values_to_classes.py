from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.config import DataConfig, RunConfig, from_yaml, to_yaml
from ccfnet_tf.datasets import open_data_set
from ccfnet_tf.datasets.mask_values_to_classes import as_option, index_values, read_index_mask
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import VOID
from tests.datasets.layouts import small_copies

NAMES = ("ground", "leaf", "stem")


@pytest.mark.parametrize(
    ("given", "values", "ids"),
    [
        (None, [0, 1, 2, 255], [0, 1, 2, VOID]),
        ({255: "leaf"}, [0, 255, 2], [0, 1, 2]),
        ({2: "leaf", 1: "stem"}, [0, 1, 2], [0, 2, 1]),
        ({0: "ground", 128: "leaf", 255: "stem"}, [0, 128, 255], [0, 1, 2]),
        ({7: "ground", 21: "leaf", 33: "stem", 0: "void"}, [0, 7, 21, 33, 255], [-1, 0, 1, 2, -1]),
        ({1: "leaf", 255: "leaf"}, [0, 1, 255, 2], [0, 1, 1, 2]),
        ({9: "__ignore__"}, [9, 0], [VOID, 0]),
        ({40_000: "stem"}, [0, 1, 40_000], [0, 1, 2]),
    ],
)
def test_meaning_of_values(
    given: dict[int, str | int] | None, values: list[int], ids: list[int]
) -> None:
    found = index_values(NAMES, given, void=[255]).classes_of(np.array([values]), "m.png")
    assert found.dtype == np.int32
    assert found.tolist() == [ids]


def test_names_that_are_numbers() -> None:
    assert index_values(("0", "1"), {255: 1}, void=[255]).ids[255] == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({255: "leav"}, "'leav' is neither void nor a class of this set; did you mean 'leaf'"),
        ({1: "stem"}, "'leaf' has no value, because 1 now means 'stem'"),
        ({0: "void"}, "'ground' has no value, because 0 now means void"),
    ],
)
def test_invalid_mask_values(given: dict[int, str | int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        index_values(NAMES, given, void=[255])


def refused(values: list[int], given: dict[int, str | int] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        index_values(NAMES, given, void=[255]).classes_of(np.array([values]), "m.png")
    assert caught.value.kind == "value"
    return str(caught.value)


def test_unknown_values_come_with_a_fix() -> None:
    line = refused([0, 128, 255, 255])
    assert "m.png: value 128 on 1 pixels: a mask holds 0..2 (the 3 classes) or 255" in line
    assert line.endswith("--data.mask_values '{0: ground, 128: leaf, 255: stem}'")
    assert refused([0, 7]).endswith("or define the value with data.mask_values")
    assert "a mask holds 0 (ground), 2 (stem), 255 (leaf); " in refused([1], {255: "leaf"})


@pytest.mark.parametrize("values", [[0, 1, 3, 77], [1, 3, 7, 9], [0, 2, 3, 77]])
def test_no_mapping_is_proposed_that_changes_the_meaning_of_an_id(values: list[int]) -> None:
    meaning = index_values(tuple("abcd"), None, void=[255])
    with pytest.raises(DataError) as caught:
        meaning.classes_of(np.array([values], np.int32), "m.png")
    assert "--data.mask_values" not in str(caught.value)


@pytest.mark.parametrize("values", [[1, 2, 3, 4], [0, 1, 2, 77], [10, 20, 30, 40]])
def test_a_mapping_is_proposed_for_other_numbers(values: list[int]) -> None:
    meaning = index_values(tuple("abcd"), None, void=[255])
    with pytest.raises(DataError) as caught:
        meaning.classes_of(np.array([values], np.int32), "m.png")
    proposed = ", ".join(f"{value}: {name}" for value, name in zip(values, "abcd", strict=True))
    assert str(caught.value).endswith(f"--data.mask_values '{{{proposed}}}'")


def test_many_values_are_attributed_to_jpeg() -> None:
    ringing = [*range(12), *range(244, 256)]
    assert "24 values in one mask are typical of JPEG" in refused(ringing)
    assert "typical of JPEG" in refused(ringing, {255: "leaf"})


def test_the_option_round_trips(tmp_path: Path) -> None:
    meant = {0: "back: ground", 255: "it's [a] crack", 7: "yes"}
    keys = shlex.split(as_option(meant))
    config = parse_fit([*keys, "--data.root", str(tmp_path)]).config
    assert config.data.mask_values == meant
    assert from_yaml(to_yaml(config), source="x") == config


@pytest.mark.parametrize("given", [{-1: "leaf"}, {65_536: "leaf"}])
def test_values_out_of_range(given: dict[int, str | int]) -> None:
    with pytest.raises(ConfigError, match=r"data.mask_values, value is -?\d+: it must be between"):
        DataConfig(mask_values=given)


@pytest.mark.parametrize("text", ["{255: [a]}", "{a: b}", "crack"])
def test_invalid_mappings_in_a_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"x: data.mask_values is .*: it must be"):
        from_yaml(f"data: {{root: r, mask_values: {text}}}", source="x")


@pytest.mark.parametrize(
    "text", ["{255:crack}", "crack", "{a: b}", "[1]", "", "{null: a}", "{1.5: a}", "{yes: a}"]
)
def test_invalid_mappings_on_the_command_line(text: str) -> None:
    with pytest.raises(
        ConfigError, match="must be a mapping of values to class names such as"
    ) as caught:
        parse_fit(["--data.root", "r", "--data.mask_values", text])
    assert "\n" not in str(caught.value)


def test_values_as_json_strings() -> None:
    config = parse_fit(["--data.root", "r", "--data.mask_values", '{"255": "leaf"}']).config
    assert config.data.mask_values == {255: "leaf"}
    text = 'data: {root: r, mask_values: {"255": leaf}}'
    assert from_yaml(text, source="x").data.mask_values == {255: "leaf"}


def test_duplicate_values_raise() -> None:
    with pytest.raises(ConfigError, match="key '255' occurs twice"):
        parse_fit(["--data.root", "r", "--data.mask_values", "{255: leaf, 255: stem}"])


@pytest.mark.parametrize("layout", ["ade20k", "cityscapes", "voc", "camvid"])
def test_published_layouts_accept_mask_values(tmp_path: Path, layout: str) -> None:
    root = getattr(small_copies, layout)(tmp_path)
    names = {"ade20k": "flag", "cityscapes": "bicycle", "voc": "tvmonitor", "camvid": "bicyclist"}
    name = names[layout]
    data = DataConfig(root=str(root), mask_values={200: name})
    listing = open_data_set.list_set(data, 0)
    sample = listing.train[0]
    values = np.array(Image.open(sample.label))
    Image.fromarray(np.full_like(values, 200)).save(sample.label)
    assert (listing.load_label(sample) == listing.taxonomy.names.index(name)).all()


@pytest.mark.parametrize("layout", ["voc", "camvid", "cityscapes"])
def test_class_lists_accept_mask_values(tmp_path: Path, layout: str) -> None:
    root = getattr(small_copies, layout)(tmp_path)
    (root / "class_names.txt").write_text("__ignore__\n_background_\nleaf\n")
    listing = open_data_set.list_set(DataConfig(root=str(root), mask_values={200: "leaf"}), 0)
    sample = listing.train[0]
    values = np.resize(np.array([0, 200, 255], np.uint8), (12, 16))
    Image.fromarray(values).save(sample.label)
    assert listing.load_label(sample)[0, :3].tolist() == [0, 1, VOID]
    Image.fromarray(np.ones_like(values)).save(sample.label)
    with pytest.raises(DataError, match="value 1 on 192 pixels"):
        listing.load_label(sample)


def test_layouts_with_fixed_labels_reject_mask_values(tmp_path: Path) -> None:
    root = small_copies.sift_flow(tmp_path)
    data = DataConfig(root=str(root), mask_values={255: "sky"})
    with pytest.raises(ConfigError, match="format 'sift_flow' defines its labels"):
        open_data_set.list_set(data, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_black_and_white_in_every_mode(tmp_path: Path, mode: str) -> None:
    white = np.array([[0, 255, 255]], np.uint8)
    picture = Image.fromarray(white)
    if mode == "I;16":
        picture = Image.fromarray(white.astype(np.uint16))
    elif mode == "P":
        picture = Image.fromarray(white // 255)
        picture.putpalette([0, 0, 0, 255, 255, 255])
    elif mode != "L":
        picture = picture.convert(mode)
    picture.save(tmp_path / "m.png")
    meaning = index_values(("ground", "leaf"), {1: "leaf", 255: "leaf"}, void=[])
    assert read_index_mask(tmp_path / "m.png", meaning).tolist() == [[0, 1, 1]]


def test_the_configuration_of_a_run_keeps_mask_values() -> None:
    config = RunConfig(data=DataConfig(root="r", mask_values={255: "leaf", 3: 4}))
    assert from_yaml(to_yaml(config), source="x") == config
