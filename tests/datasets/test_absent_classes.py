from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.absent_classes import absent, allowed, explain
from ccfnet_tf.datasets.mask_values_to_classes import index_values

NAMES = ("ground", "leaf", "stem")
MASKS = index_values(NAMES, None, void=[255])


def test_absent() -> None:
    assert absent(NAMES, np.array([4, 0, 0])) == ("leaf", "stem")
    assert absent(NAMES, np.array([4, 1, 9])) == ()


def test_void_pixels_are_reported_as_the_likely_cause() -> None:
    line = explain(("leaf",), "nowhere", 1200, MASKS)
    assert line.startswith("class 'leaf' occurs nowhere, but 255, the void value, occurs on")
    assert "1,200 pixels: if 255 means 'leaf', set --data.mask_values '{255: leaf}'" in line
    assert line.endswith("if it is meant to be absent, add --data.absent_classes allow")
    assert "if 255 means one of them" in explain(("leaf", "stem"), "nowhere", 1, MASKS)


@pytest.mark.parametrize(("void", "masks"), [(0, MASKS), (9, None)])
def test_without_void_or_masks_no_value_is_suggested(void: int, masks: object) -> None:
    line = explain(("leaf",), "nowhere", void, masks)  # type: ignore[arg-type]
    assert "mask_values" not in line
    assert "--data.absent_classes allow" in line


def test_given_mask_values_are_kept_in_the_advice() -> None:
    given = index_values(NAMES, {0: "ground", 128: "leaf"}, void=[255])
    line = explain(("stem",), "nowhere", 9, given)
    assert "--data.mask_values '{0: ground, 128: leaf, 255: stem}'" in line


def test_long_lists_are_truncated() -> None:
    line = explain([f"c{i}" for i in range(9)], "nowhere", 0, None)
    assert "'c5' and 3 more occur nowhere" in line


def test_allowed() -> None:
    assert not allowed(DataConfig(root="r"))
    assert allowed(DataConfig(root="r", absent_classes="allow"))
    assert allowed(DataConfig(format="scenes"))
