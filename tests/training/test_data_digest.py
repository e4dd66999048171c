from __future__ import annotations

import io
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.config import DataConfig, RunConfig, TrainConfig
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import Sample
from ccfnet_tf.pipeline.convert_data_set import write_shards
from ccfnet_tf.training.check_data import RunData, check_data
from ccfnet_tf.training.data_digest import FILE, compare_with_start, digest_of, write_digest
from tests.datasets.layouts import small_copies


def config_of(root: Path | None, **data: object) -> RunConfig:
    settings = {"val_share": 0.25, "crop": 33, "scale": (2.0, 4.0)} | data
    where = None if root is None else str(root)
    return RunConfig(data=DataConfig(root=where, **settings), train=TrainConfig(batch=2))  # type: ignore[arg-type]


def plain(root: Path) -> Path:
    """Eight images of 24x20 with masks of three classes."""
    rng = np.random.default_rng(0)
    for side in ("images", "masks"):
        (root / side).mkdir(parents=True)
    for i in range(8):
        picture, mask = rng.integers(0, 255, (24, 20, 3), np.uint8), rng.integers(0, 3, (24, 20))
        Image.fromarray(picture).save(root / "images" / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(root / "masks" / f"{i}.png")
    (root / "classes.txt").write_text("sky\ntree\nroad\n")
    return root


def look(config: RunConfig) -> RunData:
    return check_data(config, Console(file=io.StringIO()))


def begin(config: RunConfig, run: Path) -> None:
    write_digest(run, digest_of(look(config)))


def go_on(config: RunConfig, run: Path, *, accept: bool = False) -> list[str]:
    """Compares the data with those of the start; returns the messages."""
    data, said = look(config), list[str]()
    compare_with_start(config, run, data, digest_of(data), accept=accept, say=said.append)
    return said


def refusal(config: RunConfig, run: Path, *, accept: bool = False) -> str:
    with pytest.raises(DataError) as caught:
        go_on(config, run, accept=accept)
    text = str(caught.value)
    assert text.startswith(f"{config.data.root}: the data have changed since {run} was started")
    assert "\n" not in text
    return text


def paint(file: Path, *, at: tuple[int, int] = (3, 4)) -> None:
    """Changes one pixel; the size of a PNG may stay the same."""
    pixels = np.array(Image.open(file))
    pixels[at] = (pixels[at] + 1) % 3
    Image.fromarray(pixels).save(file)


def picture(root: Path) -> str:
    paint(root / "images" / "3.png")
    return f"changed: {root}/images/3.png: "


def mask(root: Path) -> str:
    paint(root / "masks" / "5.png")
    return f"changed: {root}/masks/5.png: "


def both(root: Path) -> str:
    picture(root)
    mask(root)
    return f"changed: {root}/images/3.png (and 1 more): "


def another(root: Path) -> str:
    for side in ("images", "masks"):
        shutil.copy(root / side / "0.png", root / side / "new.png")
    return "new: 'new': "


def one_less(root: Path) -> str:
    (root / "images" / "7.png").unlink()
    (root / "masks" / "7.png").unlink()
    return "missing: '7'"


def renamed(root: Path) -> str:
    for side in ("images", "masks"):
        (root / side / "0.png").rename(root / side / "9.png")
    return "new: '9'; missing: '0': "


def several(root: Path) -> str:
    mask(root)
    renamed(root)
    return f"changed: {root}/masks/5.png; new: '9'; missing: '0': "


@pytest.mark.parametrize("change", [picture, mask, both, renamed, several])
def test_a_change_is_reported_and_can_be_accepted(
    change: Callable[[Path], str], tmp_path: Path
) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"
    config = config_of(root)
    begin(config, run)
    assert go_on(config, run) == []
    words = change(root)
    text = refusal(config, run)
    assert words in text
    assert text.endswith("or accept the changed data with --accept-changed-data")
    (line,) = go_on(config, run, accept=True)
    assert words in line
    assert line.endswith(f"accepted; {FILE} is updated to the changed data")


@pytest.mark.parametrize("change", [another, one_less])
def test_another_number_of_steps_is_never_accepted(
    change: Callable[[Path], str], tmp_path: Path
) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"
    config = config_of(root, val_share=0.0)
    if change is another:  # to a part of seven, which are three batches of two
        one_less(root)
    begin(config, run)
    words = change(root)
    for accept in (False, True):
        text = refusal(config, run, accept=accept)
        assert words in text
        assert "the number of steps per epoch has changed" in text
        assert "--accept-changed-data" not in text


def test_images_in_another_order_or_split_are_detected(tmp_path: Path) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"
    config = config_of(root)
    lists = {"train.txt": list("012345"), "val.txt": list("67")}

    def write(**changed: str) -> None:
        for name, names in (lists | {f"{k}.txt": list(v) for k, v in changed.items()}).items():
            (root / name).write_text("".join(f"{each}\n" for each in names))

    write()
    begin(config, run)
    write(train="102345")
    assert "other order or splits: '1' in train replaces '0'" in refusal(config, run)
    write(train="012346", val="57")
    assert "other order or splits: '6' in train replaces '5'" in refusal(config, run)
    write()
    assert go_on(config, run) == []


def test_changes_that_do_not_affect_training_are_ignored(tmp_path: Path) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"
    begin(config_of(root), run)
    moved = root.rename(tmp_path / "elsewhere")
    for file in moved.rglob("*.png"):
        file.touch()
    coded = moved / "masks" / "1.png"
    Image.open(coded).save(coded, compress_level=0)  # other bytes, the same label
    assert go_on(config_of(moved), run) == []


LAYOUTS = {
    "camvid": small_copies.camvid,
    "voc": small_copies.voc,
    "cityscapes": small_copies.cityscapes,
    "ade20k": small_copies.ade20k,
    "sift_flow": small_copies.sift_flow,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_file_layout(name: str, tmp_path: Path) -> None:
    root, run = LAYOUTS[name](tmp_path / "set"), tmp_path / "run"
    config = config_of(root)
    begin(config, run)
    assert go_on(config, run) == []
    sample = look(config).parts.train[0]
    content = bytearray(Path(sample.image).read_bytes())
    Path(sample.image).write_bytes(content + b"\0")  # readers pass over what follows an image
    assert f"changed: {sample.image}: " in refusal(config, run)


def test_a_label_in_a_common_annotation_file_is_compared_per_sample(tmp_path: Path) -> None:
    """One annotation file for all images: the digest is that of each image's own label."""
    root, run = tmp_path / "set", tmp_path / "run"
    box = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]
    tree = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in range(8)],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [box]}
            for i in range(8)
        ],
    }
    for i in range(8):
        small_copies.photo(root / "images" / f"{i}.png", i)
    (root / "annotations.json").write_text(json.dumps(tree))
    config = config_of(root)
    begin(config, run)
    tree["annotations"][3]["category_id"] = 1
    (root / "annotations.json").write_text(json.dumps(tree))
    assert "changed: " in refusal(config, run)
    assert "annotations.json: " in refusal(config, run)


@pytest.mark.parametrize("address", [False, True])
def test_shards(address: bool, tmp_path: Path) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"

    def shards(name: str) -> RunConfig:
        listing = list_set(config_of(root).data, 0)
        write_shards(listing, tmp_path / name, 2)
        place = config_of(tmp_path / name)
        if not address:
            return place
        remote = DataConfig(**(vars(place.data) | {"root": f"file://{tmp_path / name}"}))
        return RunConfig(data=remote, train=place.train)

    config = shards("one")
    begin(config, run)
    assert go_on(config, run) == []
    mask(root)
    text = refusal(shards("two"), run)
    assert ".tfrecord: record " in text
    assert "more" not in text  # image and label of a record are one change


def test_scenes_have_no_files(tmp_path: Path) -> None:
    config = config_of(None, format="scenes", scenes=12, scene_size=(32, 40))
    begin(config, tmp_path)
    assert go_on(config, tmp_path) == []


@pytest.mark.parametrize("place", [0, 2**16 - 1, -1, -(2**16)])
def test_a_large_file_is_identified_by_its_size_and_its_ends(place: int, tmp_path: Path) -> None:
    path = tmp_path / "large"
    sample = Sample("large", str(path), "")
    content = bytearray(3 * 2**20)
    path.write_bytes(content)
    before = fingerprint(sample)
    content[place] = 1
    path.write_bytes(content)
    assert fingerprint(sample) != before
    path.write_bytes(bytes(len(content) + 1))
    assert fingerprint(sample) != before


def test_every_byte_of_a_small_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "small"
    content = bytearray(2**18)
    path.write_bytes(content)
    before = fingerprint(Sample("small", str(path), ""))
    content[2**17] = 1
    path.write_bytes(content)
    assert fingerprint(Sample("small", str(path), "")) != before


def test_a_run_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    config = config_of(plain(tmp_path / "set"))
    assert go_on(config, tmp_path) == [
        f"{tmp_path}: has no {FILE}, so earlier changes of the data are unknown; it is written now"
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'{"version": 1}',
        b'{"version": 2, "train": [], "val": []}',
        b'{"version": 1, "train": 3, "val": []}',
        b'{"version": 1, "train": [["a", "b"]], "val": []}',
        b'{"version": 1, "train": [["a", 1, null]], "val": []}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_damaged_digest_is_set_aside_and_reported(content: bytes, tmp_path: Path) -> None:
    root, run = plain(tmp_path / "set"), tmp_path / "run"
    run.mkdir()
    (run / FILE).write_bytes(content)
    (line,) = go_on(config_of(root), run)
    assert line.startswith(
        f"warning: {run / FILE}: damaged: kept as {FILE}.damaged; earlier changes of"
    )
    assert (run / f"{FILE}.damaged").read_bytes() == content


@pytest.mark.parametrize(("before", "after"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_another_unicode_form_of_names_is_not_a_change(
    tmp_path: Path, before: str, after: str
) -> None:
    root = plain(tmp_path / "set")
    for side in ("images", "masks"):
        name = unicodedata.normalize(before, "caf\u00e9.png")
        (root / side / "3.png").rename(root / side / name)
    config = config_of(root)
    begin(config, tmp_path)
    # Earlier versions kept the spelling of the disk.
    path = tmp_path / FILE
    rows = json.loads(path.read_text())
    kept = {
        part: [[unicodedata.normalize(before, row[0]), *row[1:]] for row in rows[part]]
        for part in ("train", "val")
    }
    path.write_text(json.dumps(rows | kept))
    for side in ("images", "masks"):
        file = root / side / unicodedata.normalize(before, "caf\u00e9.png")
        file.rename(root / side / unicodedata.normalize(after, "caf\u00e9.png"))
    assert go_on(config, tmp_path) == []
    picture = root / "images" / unicodedata.normalize(after, "caf\u00e9.png")
    Image.new("RGB", (20, 24)).save(picture)
    assert "changed" in refusal(config, tmp_path)
