"""Advice for folders of unknown layout: contents, the closest layout, and how to reach it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from ccfnet_tf.datasets.layout_helpers import PHOTOS, contents
from ccfnet_tf.datasets.split_names import part_in, part_of

_IMAGE_WORDS = ("image", "img", "picture", "photo", "frame", "rgb", "input", "jpeg", "raw")
_MASK_WORDS = ("mask", "label", "annot", "ann_dir", "seg", "gt", "ground", "target", "truth")
_MASK_ENDS = ("_mask", "-mask", "_label", "_seg", "_gt", "_segmentation", "_labels", "_annotation")
_FILES = 2000  # maximum number of files searched for a hint
_PAIRS = 3  # maximum number of folder pairs in a hint

_DATUMARO = "Datumaro format: `datum convert -f voc_segmentation -- --save-media` converts it"

# Glob pattern -> description of a data set that has such a file or folder.
_SIGNS = (
    ("*.zip", "an archive: unpack it and use the unpacked folder"),
    ("*.tar*", "an archive: unpack it and use the unpacked folder"),
    ("meta.json", "Supervisely format: export it as COCO, or as Pascal VOC with masks"),
    ("**/*.vott", "VoTT format: export it as COCO with another tool"),
    ("**/*.parquet", "a Hugging Face data set in Parquet: save images and masks as files"),
    (
        "**/labels/**/*.txt",
        "YOLO polygons (labels/*.txt): export the set as COCO, or as masks",
    ),
    ("data.yaml", "YOLO polygons (data.yaml): export the set as COCO, or as masks"),
    (
        "Annotations/*.xml",
        "Pascal VOC boxes (Annotations/*.xml), without pixel labels: export SegmentationClass/",
    ),
    (
        "**/task-*-annotation-*.png",
        "Label Studio brush masks, one PNG per label: export them as JSON",
    ),
    ("**/via_*.json", "VGG Image Annotator format: export the set as COCO"),
    ("*.ndjson", "Labelbox format: export the set as COCO, or as masks"),
    (
        "train.csv",
        "a table of run lengths (train.csv), as on Kaggle: convert them to one index PNG per image",
    ),
)


# Keys that must all occur near the start of a JSON file -> description of the file.
_JSON_SIGNS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b'"asset"', b'"regions"'), "VoTT format: export it as COCO with another tool"),
    ((b'"vottProjectId"',), "VoTT format: export it as COCO with another tool"),
    ((b'"Labeled Data"',), "Labelbox format: export the set as COCO, or as masks"),
    ((b'"data_row"',), "Labelbox format: export the set as COCO, or as masks"),
    ((b'"shape_attributes"',), "VGG Image Annotator format: export the set as COCO"),
    ((b'"metadata"', b'"instances"'), "SuperAnnotate format: export the set as COCO"),
    ((b'"item"', b'"annotations"'), "V7 Darwin format: export the set as COCO"),
    ((b'"image"', b'"annotations"', b'"polygon"'), "V7 Darwin format: export the set as COCO"),
    ((b'"exterior"', b'"objects"'), "Supervisely format: export it as COCO"),
    ((b'"poly2d"',), "Scalabel format (BDD100K): use its bitmasks, or convert it to COCO"),
    (
        (b'"imgHeight"', b'"objects"'),
        "Cityscapes polygons: create _labelIds.png with cityscapesScripts",
    ),
    ((b'"items"', b'"categories"'), _DATUMARO),
)
_JSON_FILES = 20  # maximum number of JSON files searched for a hint
_HEAD = 65536  # bytes


def nearest_layout(root: Path) -> str:
    """Returns the contents of a folder and how to convert it to a supported layout."""
    files = list(islice(_files(root), _FILES))
    seen = f"found: {contents(root)}"
    images = [path for path in files if path.suffix.lower() in PHOTOS]
    known = next((what for pattern, what in _SIGNS if next(root.glob(pattern), None)), None)
    known = known or _named_by_json(path for path in files if path.suffix.lower() == ".json")
    if not images or (known and not _pairs(images, root)):
        return f"{seen}: {known or _no_images(root)}; data/README.md describes the layouts"
    advice = (
        _folder_pairs_advice(root, images) or _masks_next_to_images(images) or _no_mask_folder()
    )
    return f"{seen}: {advice}; or set the layout with --data.format (data/README.md)"


def _files(root: Path) -> Iterator[Path]:
    patterns = ("*", "*/*", "*/*/*", "*/*/*/*")
    paths = chain.from_iterable(root.glob(pattern) for pattern in patterns)
    return (path for path in paths if path.suffix and not path.name.startswith("."))


def _named_by_json(paths: Iterator[Path]) -> str | None:
    """Identifies a format by the contents of JSON files; returns `None` if unknown."""
    for path in islice(paths, _JSON_FILES):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError:
            continue  # unreadable files give no hint
        for keys, what in _JSON_SIGNS:
            if all(key in head for key in keys):
                return f"{path.name} is {what}"
    return None


def _no_images(root: Path) -> str:
    return f"no images within four levels of {root}: use the folder that contains them"


def _pairs(images: list[Path], root: Path) -> list[dict[str, str]]:
    """Returns pairs of folders of images and masks, matched by name.

    Paired folders have the same parent and split: train_images/ is paired with train_masks/.
    """
    folders = Counter(path.parent.relative_to(root).as_posix() for path in images)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for folder, _ in folders.most_common():
        names = folder.split("/")
        positions = list(reversed(range(len(names))))
        last = next((i for i in positions if _role(names[i])), None)
        if last is None:  # train/ next to train_masks/ contains the images
            last = next((i for i in positions if part_of(names[i])), None)
        if last is not None:
            key = "/".join(names[:last]), part_in(names[last]) or ""
            path = "/".join(names[: last + 1])
            found.setdefault(key, {}).setdefault(_role(names[last]) or "images", path)
    return [{"part": part} | pair for (_, part), pair in sorted(found.items()) if len(pair) == 2]


def _role(name: str) -> str:
    """Returns the likely contents of a folder: `images`, `masks` or an empty string."""
    lowered = name.lower()
    if any(word in lowered for word in _MASK_WORDS):
        return "masks"
    return "images" if any(word in lowered for word in _IMAGE_WORDS) else ""


def _folder_pairs_advice(root: Path, images: list[Path]) -> str:
    pairs = _pairs(images, root)[:_PAIRS]
    if not pairs:
        return ""
    renames = [
        f"rename {pair[side]}/ to {new}/"
        for pair in pairs
        for side in ("images", "masks")
        if pair[side] != (new := _renamed(pair[side], pair["part"], side))
    ]
    steps = [*renames] or ["keep both folders where they are"]
    if not any((root / name).is_file() for name in ("classes.txt", "colours.txt", "colors.txt")):
        steps.append("add classes.txt (one class name per line, the first is value 0)")
    return f"the closest layout is 'folder' (images/, masks/, classes.txt): {', '.join(steps)}"


def _renamed(folder: str, part: str, side: str) -> str:
    return "/".join((*folder.split("/")[:-1], *([part] if part else []), side))


def _masks_next_to_images(images: list[Path]) -> str:
    """Returns advice for masks in the same folder as their images."""
    stems = {path.stem for path in images}
    for ending in _MASK_ENDS:
        pairs = [stem for stem in stems if stem + ending in stems]
        if pairs:
            name = min(pairs)
            return (
                f"masks are next to their images ('{name[:40]}{ending}'): the closest layout is "
                f"'folder': move them to masks/ without '{ending}', the images to images/, and "
                "add classes.txt"
            )
    return ""


def _no_mask_folder() -> str:
    return (
        "no pair of image and mask folders: the closest layout is 'folder': images in images/, "
        "for each a PNG of class ids of the same name in masks/, class names in classes.txt"
    )
