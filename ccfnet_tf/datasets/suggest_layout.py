"""Advice on a folder of no known layout: what was seen, the nearest layout, what to rename."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from ccfnet_tf.datasets.pairing import PHOTOS, contents
from ccfnet_tf.datasets.split_names import part_in, part_of

_PICTURE_WORDS = ("image", "img", "picture", "photo", "frame", "rgb", "input", "jpeg", "raw")
_MASK_WORDS = ("mask", "label", "annot", "ann_dir", "seg", "gt", "ground", "target", "truth")
_MASK_ENDS = ("_mask", "-mask", "_label", "_seg", "_gt", "_segmentation", "_labels", "_annotation")
_FILES = 2000  # looked at for a hint
_PAIRS = 3  # of folders that a hint names

_DATUMARO = "Datumaro's own format: `datum convert -f voc_segmentation -- --save-media` converts it"

# A file or folder, and what a set that has it is.
_SIGNS = (
    ("*.zip", "an archive: unpack it, and give the folder that is in it"),
    ("*.tar*", "an archive: unpack it, and give the folder that is in it"),
    ("meta.json", "Supervisely's own format: export it as COCO, or as Pascal VOC with masks"),
    ("**/*.vott", "VoTT's own format: export it in another tool as COCO"),
    ("**/*.parquet", "a Hugging Face set in Parquet: save images and masks as files"),
    (
        "**/labels/**/*.txt",
        "YOLO's outlines (labels/*.txt): export the set as COCO, or as masks",
    ),
    ("data.yaml", "YOLO's outlines (data.yaml): export the set as COCO, or as masks"),
    (
        "Annotations/*.xml",
        "Pascal VOC's boxes (Annotations/*.xml), which label no pixels: export SegmentationClass/",
    ),
    (
        "**/task-*-annotation-*.png",
        "Label Studio's brush strokes as PNG, a file a label: export them as JSON",
    ),
    ("**/via_*.json", "VGG Image Annotator's own format: export the set as COCO"),
    ("*.ndjson", "Labelbox's own format: export the set as COCO, or as masks"),
    (
        "train.csv",
        "run lengths in a table (train.csv), as Kaggle has them: make an index PNG of each image",
    ),
)


# What a JSON file of a tool holds near its beginning, all of it, and what the file is.
_JSON_SIGNS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b'"asset"', b'"regions"'), "VoTT's own format: export it in another tool as COCO"),
    ((b'"vottProjectId"',), "VoTT's own format: export it in another tool as COCO"),
    ((b'"Labeled Data"',), "Labelbox's own format: export the set as COCO, or as masks"),
    ((b'"data_row"',), "Labelbox's own format: export the set as COCO, or as masks"),
    ((b'"shape_attributes"',), "VGG Image Annotator's own format: export the set as COCO"),
    ((b'"metadata"', b'"instances"'), "SuperAnnotate's own format: export the set as COCO"),
    ((b'"item"', b'"annotations"'), "Darwin's own format (V7): export the set as COCO"),
    ((b'"image"', b'"annotations"', b'"polygon"'), "Darwin's own format (V7): export it as COCO"),
    ((b'"exterior"', b'"objects"'), "Supervisely's own format: export it as COCO"),
    ((b'"poly2d"',), "Scalabel's own format (BDD100K): use its bitmasks, or convert it to COCO"),
    ((b'"imgHeight"', b'"objects"'), "Cityscapes' outlines: make _labelIds.png with its scripts"),
    ((b'"items"', b'"categories"'), _DATUMARO),
)
_JSON_FILES = 20  # looked at for a hint
_HEAD = 65536  # bytes


def nearest_layout(root: Path) -> str:
    """Returns what is in a folder, and how it would become one of a known layout."""
    files = list(islice(_files(root), _FILES))
    seen = f"found: {contents(root)}"
    pictures = [path for path in files if path.suffix.lower() in PHOTOS]
    known = next((what for pattern, what in _SIGNS if next(root.glob(pattern), None)), None)
    known = known or _named_by_json(path for path in files if path.suffix.lower() == ".json")
    if not pictures or (known and not _pairs(pictures, root)):
        return f"{seen}: {known or _nothing(root)}; data/README.md shows the layouts"
    advice = _folders(root, pictures) or _beside(pictures) or _loose()
    return f"{seen}: {advice}; or say which layout it is with --data.format (data/README.md)"


def _files(root: Path) -> Iterator[Path]:
    patterns = ("*", "*/*", "*/*/*", "*/*/*/*")
    paths = chain.from_iterable(root.glob(pattern) for pattern in patterns)
    return (path for path in paths if path.suffix and not path.name.startswith("."))


def _named_by_json(paths: Iterator[Path]) -> str | None:
    """Returns what a set is by what its JSON files hold; `None` where they say nothing."""
    for path in islice(paths, _JSON_FILES):
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD)
        except OSError:
            continue  # what cannot be looked at shows no sign
        for keys, what in _JSON_SIGNS:
            if all(key in head for key in keys):
                return f"{path.name} is {what}"
    return None


def _nothing(root: Path) -> str:
    return f"no images within four folders of {root}: give the folder that holds them"


def _pairs(pictures: list[Path], root: Path) -> list[dict[str, str]]:
    """Returns folders that belong together: each `images` and `masks`, by what they are called.

    They lie beside each other and are of the same part: train_images/ goes with train_masks/.
    """
    folders = Counter(path.parent.relative_to(root).as_posix() for path in pictures)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for folder, _ in folders.most_common():
        names = folder.split("/")
        places = list(reversed(range(len(names))))
        last = next((i for i in places if _role(names[i])), None)
        if last is None:  # train/ beside train_masks/ holds the images
            last = next((i for i in places if part_of(names[i])), None)
        if last is not None:
            key = "/".join(names[:last]), part_in(names[last]) or ""
            whole = "/".join(names[: last + 1])
            found.setdefault(key, {}).setdefault(_role(names[last]) or "images", whole)
    return [{"part": part} | pair for (_, part), pair in sorted(found.items()) if len(pair) == 2]


def _role(name: str) -> str:
    """Returns what a folder is likely to hold, `images` or `masks`, or an empty string."""
    lowered = name.lower()
    if any(word in lowered for word in _MASK_WORDS):
        return "masks"
    return "images" if any(word in lowered for word in _PICTURE_WORDS) else ""


def _folders(root: Path, pictures: list[Path]) -> str:
    pairs = _pairs(pictures, root)[:_PAIRS]
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
        steps.append("add classes.txt (a class name a line, the first is value 0)")
    return f"nearest is the layout 'folder' (images/, masks/, classes.txt): {', '.join(steps)}"


def _renamed(folder: str, part: str, side: str) -> str:
    return "/".join((*folder.split("/")[:-1], *([part] if part else []), side))


def _beside(pictures: list[Path]) -> str:
    """Returns advice for masks that lie beside their images."""
    stems = {path.stem for path in pictures}
    for ending in _MASK_ENDS:
        pairs = [stem for stem in stems if stem + ending in stems]
        if pairs:
            name = min(pairs)
            return (
                f"masks lie beside their images ('{name[:40]}{ending}'): nearest is the layout "
                f"'folder': move them to masks/ without '{ending}', the images to images/, and "
                "add classes.txt"
            )
    return ""


def _loose() -> str:
    return (
        "no folder of masks goes with one of images: nearest is 'folder': images in images/, "
        "a PNG of class ids for each in masks/ under the same name, class names in classes.txt"
    )
