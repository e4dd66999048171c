from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.find_problems import Finding, Report, fingerprint, inspect
from ccfnet_tf.datasets.layouts import stanford_background
from ccfnet_tf.datasets.layouts.stanford_background import TWINS
from ccfnet_tf.datasets.mask_values_to_classes import index_values
from ccfnet_tf.datasets.open_data_set import list_set, parts_of
from ccfnet_tf.datasets.samples import Listing
from ccfnet_tf.errors import DataError
from ccfnet_tf.labels import VOID, Sample, Taxonomy, distinct_colours

NAMES = ("sky", "sea", "sand")

Pair = tuple[np.ndarray | DataError, np.ndarray | DataError]


def pair(seed: int, *ids: int, size: tuple[int, int] = (4, 6)) -> Pair:
    """Returns a unique image and a label with these ids."""
    rng = np.random.default_rng(seed)
    label = np.resize(np.array(ids, np.int32), size)
    return rng.integers(0, 255, (*size, 3), np.uint8), label


def make(**parts: dict[str, Pair]) -> Listing:
    pairs = {name: each for part in parts.values() for name, each in part.items()}

    def label(sample: Sample) -> np.ndarray:
        found = pairs[sample.name][1]
        if isinstance(found, DataError):
            raise found
        return found

    def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = pairs[sample.name][0]
        if isinstance(image, DataError):
            raise image
        return image, label(sample)

    samples = {
        part: tuple(Sample(name, f"{name}.jpg", f"{name}.png") for name in chosen)
        for part, chosen in parts.items()
    }
    return Listing(
        Taxonomy(NAMES, distinct_colours(3)),
        samples["train"],
        samples.get("val"),
        samples.get("test", ()),
        load,
        label,
    )


def test_a_valid_set() -> None:
    listing = make(train={"a": pair(0, 0, 1, 2), "b": pair(1, 0, VOID)}, test={"c": pair(2, 1)})
    steps: list[str] = []
    report = inspect(listing, advance=lambda: steps.append(threading.current_thread().name))
    assert report == Report({"train": 2, "test": 1}, NAMES, (), ())
    assert report.ok
    assert steps == ["MainThread"] * 3


def test_bad_files_are_reported_by_kind() -> None:
    value = DataError("c.png: value 9 on 3 pixels: the rule", kind="value")
    listing = make(
        train={
            "a": pair(0, 0, 1, 2),
            "b": (DataError("b.jpg: truncated"), pair(1, 0)[1]),
            "c": (DataError("c.jpg: truncated"), value),
            "d": (pair(3, 0)[0], pair(4, 0, size=(6, 4))[1]),
        },
        val={"e": (pair(5, 0)[0], value)},
    )
    lonely = DataError("z.jpg: no mask z.png", kind="missing")
    report = inspect(replace(listing, unpaired=(lonely,)))
    assert [(f.kind, f.part, f.file) for f in report.findings] == [
        ("missing", "", "z.jpg"),
        ("unreadable", "train", "b.jpg"),
        ("unreadable", "train", "c.jpg"),
        ("value", "train", "c.png"),
        ("size", "train", "d.jpg"),
        ("value", "val", "c.png"),
    ]
    assert report.findings[0].text == "no mask z.png"
    assert report.findings[3].text == "value 9 on 3 pixels: the rule"
    assert report.counts == {"train": 4, "val": 1}
    assert not report.ok
    assert not report.notes


def test_a_missing_file_is_reported_once() -> None:
    listing = make(train={"a": (pair(0, 0)[0], DataError("a.png: no such file"))})
    lonely = DataError("a.png: no such file: unpack the set anew", kind="missing")
    report = inspect(replace(listing, unpaired=(lonely,)))
    assert [(f.kind, f.file) for f in report.findings] == [("missing", "a.png")]


def test_a_path_may_contain_a_colon() -> None:
    listing = make(train={"s3: a": (DataError("s3: a.jpg: truncated"), pair(0, 0, 1, 2)[1])})
    assert inspect(listing).findings == (Finding("unreadable", "train", "s3: a.jpg", "truncated"),)


def test_internal_errors_propagate() -> None:
    def broken(_: Sample) -> tuple[np.ndarray, np.ndarray]:
        raise MemoryError

    with pytest.raises(MemoryError):
        inspect(replace(make(train={"a": pair(0, 0)}), load=broken))


def test_duplicates_across_splits_are_findings_and_within_a_split_notes() -> None:
    same = pair(7, 0, 1, 2)
    other_label = (same[0], pair(0, 1)[1])
    report = inspect(
        make(
            train={"a": same, "b": pair(8, 0), "c": other_label},
            val={"d": pair(9, 0)},
            test={"e": same, "f": same, "g": pair(8, 2)},
        )
    )
    assert [(f.kind, f.part, f.file) for f in report.findings] == [
        ("duplicate", "test", "e.jpg"),
        ("duplicate", "test", "g.jpg"),
    ]
    assert report.findings[0].text.startswith("same pixels as a.jpg, which is in train:")
    assert [(n.kind, n.part, n.file) for n in report.notes] == [
        ("duplicate", "train", "c.jpg"),
        ("duplicate", "test", "f.jpg"),
    ]
    assert report.notes[1].text.startswith("same pixels as e.jpg:")


def test_fingerprints_differ_by_one_pixel_and_by_shape() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[3, 5, 2] = 1
    prints = {fingerprint(each) for each in (image, other, image.reshape(6, 4, 3))}
    assert len(prints) == 3
    assert fingerprint(image[::-1, ::-1]) == fingerprint(image)  # independent of the memory layout


def test_classes_missing_in_train() -> None:
    report = inspect(
        make(
            train={"a": pair(0, 0)},
            val={"b": pair(1, 0)},
            test={"c": pair(2, 0), "d": pair(3, 1), "e": pair(4, 1, 0)},
        )
    )
    found = [("absent", "test", "d.png"), ("absent", "", "")]
    assert [(f.kind, f.part, f.file) for f in report.findings] == found
    assert "class 'sea' (as do 1 more of test)" in report.findings[0].text
    assert "class 'sand' occurs nowhere: fix the masks" in report.findings[1].text
    assert report.notes == ()


def test_allowed_absent_classes_are_notes() -> None:
    listing = make(train={"a": pair(0, 0)}, test={"b": pair(1, 1)})
    report = inspect(listing, allow_absent=True)
    assert report.ok
    assert [(n.kind, n.part) for n in report.notes] == [("absent", "test"), ("absent", "")]


def test_void_instead_of_a_class_is_reported() -> None:
    listing = make(train={"a": pair(0, 0, 1, VOID)})
    masks = index_values(NAMES, None, void=[255])
    text = inspect(replace(listing, mask_values=masks)).findings[-1].text
    assert "if 255 means 'sand', set --data.mask_values '{255: sand}'" in text
    assert "mask_values" not in inspect(listing).findings[-1].text


@pytest.mark.parametrize("together", [False, True])
def test_mixed_mask_values_are_noted(together: bool) -> None:
    """Most masks contain 0 and 255, one contains 0 and 1."""
    labels = {"a": pair(0, 0, VOID), "b": pair(1, 0, VOID), "c": pair(2, 0, 1)}
    listing = make(train=labels | ({"d": pair(3, 0, 1, VOID)} if together else {}))
    names = NAMES[:2]
    masks = index_values(names, None, void=[255])
    listing = replace(listing, taxonomy=Taxonomy(names, distinct_colours(2)), mask_values=masks)
    found = [note.text for note in inspect(listing).notes]
    if together:
        assert found == []
    else:
        (text,) = found
        assert "2 labels contain 255, the void value, and 1 contain 'sea', but none both" in text
        assert "--data.mask_values '{1: sea, 255: sea}'" in text
    assert inspect(replace(listing, mask_values=None)).notes == ()


def test_notes_of_the_layout_are_passed_on() -> None:
    report = inspect(replace(make(train={"a": pair(0, 0, 1, 2)}), notes=("x: looks like a part",)))
    assert report.ok
    assert report.notes == (Finding("set", "", "x", "looks like a part"),)


def test_a_fourth_band_is_noted(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for path in paths:
        Image.new("RGBA", (4, 4), (60, 80, 40, 25)).save(path)
    listing = make(train={"a": pair(0, 0, 1, 2)})
    samples = tuple(replace(listing.train[0], image=str(path)) for path in paths)
    notes = inspect(replace(listing, train=samples)).notes
    assert [(n.kind, n.file) for n in notes if n.kind == "band"] == [
        ("band", f"{paths[0]} and 2 more")
    ]


def test_a_label_without_any_class_is_noted() -> None:
    report = inspect(make(train={"a": pair(0, 0, 1, 2), "b": pair(1, VOID)}))
    assert report.ok
    assert [(n.kind, n.part, n.file) for n in report.notes] == [("void", "train", "b.png")]


def test_json_has_everything() -> None:
    same = pair(0, 0, 1)
    report = inspect(make(train={"a": same, "b": same}, test={"c": same}))
    tree = json.loads(json.dumps(report.to_json()))
    assert tree["ok"] is False
    assert tree["counts"] == {"train": 2, "test": 1}
    assert tree["classes"] == list(NAMES)
    assert [(f["kind"], f["file"]) for f in tree["findings"]] == [
        ("duplicate", "c.jpg"),
        ("absent", ""),
    ]
    assert [(n["kind"], n["file"]) for n in tree["notes"]] == [("duplicate", "b.jpg")]
    assert set(tree["notes"][0]) == {"kind", "part", "file", "text"}


def stanford(root: Path, fold: int = 0) -> Listing:
    data = DataConfig(format="stanford_background", root=str(root), fold=fold)
    return stanford_background.read(data, root, 0)


def stems(findings: tuple[Finding, ...]) -> set[str]:
    return {Path(finding.file).stem for finding in findings if finding.kind == "duplicate"}


def test_twins_of_stanford(stanford_root: Path) -> None:
    whole = stanford(stanford_root)
    samples = {s.name: s for part in parts_of(whole).values() for s in part}
    ones, others = (tuple(samples[twins[side]] for twins in TWINS) for side in (0, 1))
    equal = {other for _, other in TWINS[:3]}  # the other three pairs are near-duplicates
    together = inspect(replace(whole, train=ones + others, test=()))
    assert not stems(together.findings)
    assert stems(together.notes) == equal
    apart = inspect(replace(whole, train=ones, test=others))
    assert stems(apart.findings) == equal
    assert not stems(apart.notes)


@pytest.mark.slow
def test_all_of_stanford(stanford_root: Path) -> None:
    report = inspect(stanford(stanford_root))
    assert report.ok
    assert report.counts == {"train": 572, "test": 143}
    assert {note.kind for note in report.notes} == {"duplicate"}
    assert stems(report.notes) == {"6000318", "6000324", "6000348"}


def coloured(root: Path, masks: list[list[list[int]]], layout: str = "folder") -> Report:
    """Checks a set of masks with these colours, one row of pixels each."""
    pictures, labels = {"folder": ("images", "masks"), "camvid": ("train", "trainannot")}[layout]
    for number, pixels in enumerate(masks):
        mask = np.array([pixels], np.uint8)
        for side, pixel in ((pictures, np.full_like(mask, number * 9)), (labels, mask)):
            path = root / side / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixel).save(path)
    (root / "classes.txt").write_text("sky\nsea\n")
    if layout == "camvid":
        (root / "classes.txt").unlink()
    return inspect(list_set(DataConfig(root=str(root)), 0))


RED, BLACK, BLUE = [255, 0, 0], [0, 0, 0], [0, 0, 255]


@pytest.mark.parametrize("layout", ["folder", "camvid"])
def test_unknown_colours_are_reported(tmp_path: Path, layout: str) -> None:
    report = coloured(tmp_path, [[RED, RED, BLACK], [BLUE, RED, RED]], layout)
    labels = tmp_path / ("masks" if layout == "folder" else "trainannot")
    assert [f.kind for f in report.findings[:2]] == ["value", "value"]
    notes = [str(note) for note in report.notes if note.kind == "colours"]
    end = "to colours.txt"
    assert notes[0].startswith(
        "3 unknown colours in 2 masks; add one line per colour to colours.txt"
    )
    assert notes[1:] == [
        f"{labels / '0.png'}: 255 0 0 on 4 pixels, also in 1 more: add `255 0 0 NAME` {end}",
        f"{labels / '0.png'}: 0 0 0 on 1 pixels: add `0 0 0 NAME` {end}",
        f"{labels / '1.png'}: 0 0 255 on 1 pixels: add `0 0 255 NAME` {end}",
    ]


def test_the_suggested_lines_fix_the_set(tmp_path: Path) -> None:
    masks = [[RED, RED, BLACK], [BLUE, RED, RED]]
    notes = [note.text for note in coloured(tmp_path, masks).notes if note.kind == "colours"]
    lines = [note.split("`")[1] for note in notes[1:]]
    text = "".join(line.replace("NAME", f"class {i}\n") for i, line in enumerate(lines))
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "colours.txt").write_text(text)
    report = inspect(list_set(DataConfig(root=str(tmp_path)), 0))
    assert report.ok
    assert report.classes == ("class 0", "class 1", "class 2")
    (tmp_path / "colours.txt").write_text("255 0 0 sky\n0 0 0 sea\n")  # a row is missing
    report = inspect(list_set(DataConfig(root=str(tmp_path)), 0))
    assert [n.text for n in report.notes if n.kind == "colours"][1].startswith(
        "0 0 255 on 1 pixels"
    )


def test_many_colours_are_attributed_to_smoothing(tmp_path: Path) -> None:
    many = [[i % 256, i // 256, 7] for i in range(400)]
    report = coloured(tmp_path, [[*many[:200], *[RED] * 9], [*many[200:], *[RED] * 9]])
    notes = [note for note in report.notes if note.kind == "colours"]
    assert "401 unknown colours" in notes[0].text
    assert "smoothing" in notes[0].text
    assert len(notes) == 20
    assert notes[1].text.startswith("255 0 0 on 18 pixels")


@pytest.mark.parametrize(("bits", "dark"), [(16, False), (12, True), (10, True)])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_dark_deep_images_are_noted(tmp_path: Path, suffix: str, bits: int, dark: bool) -> None:
    report = coloured(tmp_path, [[[0, 0, 0], [1, 1, 1]]])
    assert report.ok
    (tmp_path / "images" / "0.png").unlink()
    grey = np.array([[7, 2**bits - 1]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "images" / f"0{suffix}")
    report = inspect(list_set(DataConfig(root=str(tmp_path)), 0))
    assert report.ok
    assert [note.kind for note in report.notes] == ["dark"] * dark
