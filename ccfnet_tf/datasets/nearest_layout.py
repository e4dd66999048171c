"""Advice on a folder of no known layout: what was seen, the nearest layout, what to rename."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from ccfnet_tf.datasets.pairing import PHOTOS, contents

_PICTURE_WORDS = ("image", "img", "picture", "photo", "frame", "rgb", "input", "jpeg", "raw")
_MASK_WORDS = ("mask", "label", "annot", "ann_dir", "seg", "gt", "ground", "target", "truth")
_MASK_ENDS = ("_mask", "-mask", "_label", "_seg", "_gt", "_segmentation", "_labels", "_annotation")
_FILES = 2000  # looked at for a hint

# A file or folder, and what a set that has it is.
_SIGNS = (
    ("*.zip", "an archive: unpack it, and give the folder that is in it"),
    ("*.tar*", "an archive: unpack it, and give the folder that is in it"),
    ("meta.json", "Supervisely's own format: export it as COCO, or as Pascal VOC with masks"),
    (
        "annotations/default.json",
        "Datumaro's own format: `datum convert -f voc_segmentation -- --save-media` converts it",
    ),
    ("**/*.parquet", "a Hugging Face set in Parquet: save pictures and masks as files"),
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
)


def nearest_layout(root: Path) -> str:
    """Returns what is in a folder, and how it would become one of a known layout."""
    files = list(islice(_files(root), _FILES))
    seen = f"found: {contents(root)}"
    pictures = [path for path in files if path.suffix.lower() in PHOTOS]
    known = next((what for pattern, what in _SIGNS if next(root.glob(pattern), None)), None)
    if not pictures or (known and not _by_name(pictures, root)):
        return f"{seen}: {known or _nothing(root)}; data/README.md shows the layouts"
    advice = _folders(root, pictures) or _beside(pictures) or _loose()
    return f"{seen}: {advice}; or say which layout it is with --data.format (data/README.md)"


def _files(root: Path) -> Iterator[Path]:
    patterns = ("*", "*/*", "*/*/*", "*/*/*/*")
    paths = chain.from_iterable(root.glob(pattern) for pattern in patterns)
    return (path for path in paths if path.suffix and not path.name.startswith("."))


def _nothing(root: Path) -> str:
    return f"no pictures within four folders of {root}: give the folder that holds them"


def _by_name(pictures: list[Path], root: Path) -> dict[str, str]:
    """Returns which of two folders of pictures is `images` and which is `masks`."""
    folders = Counter(path.parent.relative_to(root).as_posix() for path in pictures)
    found: dict[str, str] = {}
    for folder, _ in folders.most_common():
        lowered = folder.lower()
        if any(word in lowered.rsplit("/", 1)[-1] for word in _MASK_WORDS):
            found.setdefault("masks", folder)
        elif any(word in lowered.rsplit("/", 1)[-1] for word in _PICTURE_WORDS):
            found.setdefault("images", folder)
    return found if len(found) == 2 else {}


def _folders(root: Path, pictures: list[Path]) -> str:
    found = _by_name(pictures, root)
    if not found:
        return ""
    renames = [
        f"rename {folder}/ to {_renamed(folder, name)}/"
        for name, folder in sorted(found.items())
        if folder != _renamed(folder, name)
    ]
    steps = [*renames] or ["keep both folders where they are"]
    if not any((root / name).is_file() for name in ("classes.txt", "colours.txt")):
        steps.append("add classes.txt (a class name a line, the first is value 0)")
    return f"nearest is the layout 'folder' (images/, masks/, classes.txt): {', '.join(steps)}"


def _renamed(folder: str, name: str) -> str:
    return "/".join((*folder.split("/")[:-1], name))


def _beside(pictures: list[Path]) -> str:
    """Returns advice for masks that lie beside their pictures."""
    stems = {path.stem for path in pictures}
    for ending in _MASK_ENDS:
        pairs = [stem for stem in stems if stem + ending in stems]
        if pairs:
            name = min(pairs)
            return (
                f"masks lie beside their pictures ('{name[:40]}{ending}'): nearest is the layout "
                f"'folder': move them to masks/ without '{ending}', the pictures to images/, and "
                "add classes.txt"
            )
    return ""


def _loose() -> str:
    return (
        "pictures without a folder of masks: nearest is the layout 'folder': pictures in images/, "
        "a PNG of class ids for each in masks/ under the same name, class names in classes.txt"
    )
