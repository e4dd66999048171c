from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.write_layouts import COPIES, SIZE, Scenes, scenes
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.layout_registry import detect
from ccfnet_tf.datasets.open_data_set import read_parts


@pytest.fixture(scope="module")
def drawn() -> Scenes:
    return scenes(3)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_has_its_layout_and_contains_the_scenes(
    name: str, drawn: Scenes, tmp_path: Path
) -> None:
    COPIES[name](tmp_path, drawn)
    assert detect(tmp_path) == name.split(",", maxsplit=1)[0]
    parts = read_parts(DataConfig(root=str(tmp_path), val_share=0.0), 0)
    samples = {s.name: s for s in (*parts.train, *parts.test)}
    assert check(list(samples.values()), parts.load, len(parts.taxonomy.names)).sizes[0] == SIZE
    checked = []
    for sample, (image, label) in zip(sorted(samples), drawn, strict=False):
        got, mask = parts.load(samples[sample])
        assert np.abs(got.astype(int) - image).mean() < 12  # JPEG
        names = np.array([*parts.taxonomy.names, "void"])
        read_as = {k: set(np.unique(names[mask[label == k]])) for k in np.unique(label)}
        exact = name not in ("labelme", "coco")  # outlines also fill what they enclose
        assert not exact or all(len(found) == 1 for found in read_as.values()), read_as
        checked.append(len(read_as))
    assert checked
