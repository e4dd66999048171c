from __future__ import annotations

from pathlib import Path

import pytest

from ccfnet_tf.datasets.layout_helpers import pair


def lonely(images: list[str], labels: list[str]) -> list[str]:
    pictures = {name: Path(f"i/{name}.jpg") for name in images}
    masks = {name: Path(f"m/{name}.png") for name in labels}
    _, errors = pair(pictures, masks, within="i/ or m/")
    assert {error.kind for error in errors} <= {"missing"}
    return [str(error) for error in errors]


@pytest.mark.parametrize("label", ["a_mask", "mask-a", "A", "a_gt_", "a.jpg", "a segmentation"])
def test_a_label_with_another_name_is_reported_once(label: str) -> None:
    (line,) = lonely(["a"], [label])
    named = (
        f"{Path(f'm/{label}.png')} may be it: a label must have the name of its image: rename it"
    )
    assert line == f"{Path('i/a.jpg')}: no label of that name in i/ or m/; {named}"


def test_unpaired_files() -> None:
    one, other = lonely(["a", "c"], ["ab", "c"])
    assert one.startswith(f"{Path('i/a.jpg')}: no label of that name")
    assert other.startswith(f"{Path('m/ab.png')}: no image of that name")
    assert "may be it" not in one + other
    assert len(lonely(["a"], ["a_mask", "mask_a"])) == 3  # ambiguous
