"""Paths in the files of a data set are only opened below its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.open_data_set import list_set, parts_of
from ccfnet_tf.errors import DataError
from tests.datasets.layouts.small_copies import SIZE, mask, photo, values

HEIGHT, WIDTH = SIZE
PIXELS = {"height": HEIGHT, "width": WIDTH}
TRIANGLE = [[1, 1], [9, 1], [9, 9]]
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def labelme(root: Path, named: str) -> None:
    for stem, image in (("x", named), ("a", "a.jpg")):
        shape = {"label": stem, "shape_type": "polygon", "points": TRIANGLE}
        tree = {"shapes": [shape], "imagePath": image, "imageHeight": HEIGHT, "imageWidth": WIDTH}
        (root / f"{stem}.json").write_text(json.dumps(tree))


def coco(root: Path, named: str) -> None:
    images = [{"id": i, "file_name": name} | PIXELS for i, name in enumerate((named, "a.jpg"))]
    outlines = [
        {"image_id": i, "category_id": i + 1, "segmentation": [[1, 1, 9, 1, 9, 9]]} for i in (0, 1)
    ]
    tree = {"images": images, "annotations": outlines, "categories": CATEGORIES}
    (root / "annotations.json").write_text(json.dumps(tree))


def coco_panoptic(root: Path, named: str) -> None:
    names = (named, "a.jpg")
    segments = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    images = [{"id": i, "file_name": name} for i, name in enumerate(names)]
    masks = [named.replace(".jpg", ".png"), "a.png"]
    outlines = [
        {"image_id": i, "file_name": name, "segments_info": segments}
        for i, name in enumerate(masks)
    ]
    tree = {"images": images, "annotations": outlines, "categories": CATEGORIES}
    (root / "panoptic_train.json").write_text(json.dumps(tree))
    mask(root / "panoptic_train" / "a.png", values([1, 2]))


def cvat_images(root: Path, named: str) -> None:
    shapes = {n: f'<polygon label="{n}" points="1,1;9,1;9,9"/>' for n in "ab"}
    folder, _, name = named.rpartition("/")
    other = (name, folder, "a") if folder.startswith("..") else (named, "", "a")
    entries = (other, ("a.jpg", "", "b"))
    images = "".join(
        f'<image name="{name}" subset="{subset}" width="{WIDTH}" height="{HEIGHT}">'
        f"{shapes[label]}</image>"
        for name, subset, label in entries
    )
    (root / "annotations.xml").write_text(f"<annotations>{images}</annotations>")


def label_studio(root: Path, named: str) -> None:
    def task(image: str, label: str) -> dict[str, object]:
        value = {"points": TRIANGLE, "polygonlabels": [label]}
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        result = [{"type": "polygonlabels", "value": value} | size]
        return {"data": {"image": image}, "annotations": [{"result": result}]}

    (root / "project.json").write_text(json.dumps([task(named, "a"), task("a.jpg", "b")]))


def hugging_face(root: Path, named: str) -> None:
    mask(root / "a.png", values([0, 1]))
    rows = ("file_name,mask", f"{named},{named.replace('.jpg', '.png')}", "a.jpg,a.png")
    (root / "metadata.csv").write_text("\n".join(rows))
    (root / "classes.txt").write_text("a\nb\n")


def folder(root: Path, named: str) -> None:
    photo(root / "images" / "a.jpg")
    mask(root / "masks" / "a.png", values([0, 1]))
    (root / "classes.txt").write_text("a\nb\n")
    (root / "train.txt").write_text(f"a\n{named}\n")


def voc(root: Path, named: str) -> None:
    photo(root / "JPEGImages" / "a.jpg")
    mask(root / "SegmentationClass" / "a.png", values([0, 1]))
    (root / "class_names.txt").write_text("a\nb\n")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"a\n{named.removesuffix('.jpg')}\n")


def camvid(root: Path, named: str) -> None:
    photo(root / "train" / "a.png")
    mask(root / "trainannot" / "a.png", values([0, 1]))
    (root / "class_names.txt").write_text("a\nb\n")
    png = named.replace(".jpg", ".png").replace("outside", "train")
    lines = ("train/a.png trainannot/a.png", f"{png} trainannot/{Path(png).name}")
    (root / "train.txt").write_text("\n".join(lines))


WRITERS: tuple[Callable[[Path, str], None], ...] = (
    labelme,
    coco,
    coco_panoptic,
    cvat_images,
    label_studio,
    hugging_face,
    folder,
    voc,
    camvid,
)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("named", ["{}/outside/x.jpg", "../outside/x.jpg", "b/../../outside/x.jpg"])
@pytest.mark.parametrize("relative", [False, True])
def test_only_files_below_the_folder_are_opened(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writer: Callable[[Path, str], None],
    named: str,
    relative: bool,
) -> None:
    photo(tmp_path / "outside" / "x.jpg")
    photo(tmp_path / "train" / "x.png")
    for stem in ("outside/x", "train/x", "trainannot/x"):
        mask(tmp_path / f"{stem}.png", values([1, 2]))
    root = tmp_path / "set"
    photo(root / "a.jpg")
    (root / "b").mkdir()
    writer(root, named.format(tmp_path))
    if relative:
        monkeypatch.chdir(root)
    given = Path() if relative else root
    assert detect(given) == writer.__name__
    if writer in (folder, labelme):  # no sample remains, or the list is rejected
        with pytest.raises(DataError, match="x"):
            list_set(DataConfig(root=str(given)), 0)
        return
    listing = list_set(DataConfig(root=str(given)), 0)
    assert listing.unpaired  # reported, not skipped silently
    for samples in parts_of(listing).values():
        for sample in samples:
            for file in (sample.image, sample.label):
                if Path(file).exists():
                    assert Path(file).resolve().is_relative_to(root.resolve())


@pytest.mark.parametrize("writer", [labelme, coco, cvat_images, label_studio])
def test_a_path_outside_is_matched_inside_by_its_last_components(
    tmp_path: Path, writer: Callable[[Path, str], None]
) -> None:
    photo(tmp_path / "outside" / "x.jpg")
    root = tmp_path / "set"
    photo(root / "a.jpg")
    photo(root / "deep" / "x.jpg", 1)
    writer(root, "../outside/x.jpg")
    listing = list_set(DataConfig(root=str(root)), 0)
    assert str(root / "deep" / "x.jpg") in [sample.image for sample in listing.train]
