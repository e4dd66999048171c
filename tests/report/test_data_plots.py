from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from ccfnet_tf.datasets.audit.class_counts import Census
from ccfnet_tf.datasets.audit.stats import Stats
from ccfnet_tf.errors import ResourceError
from ccfnet_tf.labels import Taxonomy, distinct_colours
from ccfnet_tf.report.data_plots import stats_figure


def stats(*pixels: int) -> Stats:
    counts = np.array(pixels, np.int64)
    census = Census(counts, (counts > 0).astype(np.int64), counts, 5, 1)
    return Stats(census, {(10, 20): 3, (20, 10): 1}, (10**5,) * 3, (2 * 10**7,) * 3)


def draw(path: Path, found: Stats, names: tuple[str, ...]) -> np.ndarray:
    taxonomy = Taxonomy(names, distinct_colours(len(names)))
    stats_figure(found, taxonomy, path)
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert picture.ndim == 3
    return np.asarray(picture[..., 2::-1])


def bar(picture: np.ndarray, index: int, count: int) -> int:
    """Returns the width of the bar of a class in pixels, without its edge line."""
    colour = distinct_colours(count)[index]
    return int((picture == colour).all(axis=-1).sum(axis=1).max())


def test_bar_lengths_are_proportional_to_the_shares(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", stats(100, 50, 0), ("sky", "sea", "sand"))
    sky, sea, sand = (bar(picture, index, 3) for index in range(3))
    assert sky > 200
    assert sea == pytest.approx(sky / 2, abs=3)
    assert sand == 0


def test_the_axis_is_logarithmic_above_a_ratio_of_100(tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", stats(99_000, 990, 10), ("sky", "sea", "sand"))
    sky, sea, sand = (bar(picture, index, 3) for index in range(3))
    assert sky - sea == pytest.approx(sea - sand, abs=4)  # each is a hundredth of the previous one
    assert sand > 10


def test_height_grows_with_the_number_of_classes(tmp_path: Path) -> None:
    few, many = (
        draw(tmp_path / "a.png", stats(*range(1, n + 1)), tuple(f"class {i}" for i in range(n)))
        for n in (3, 40)
    )
    assert many.shape[1] == few.shape[1]
    assert many.shape[0] > 1.8 * few.shape[0]
    assert 5 < bar(many, 10, 40) < bar(many, 20, 40) < bar(many, 39, 40)


@pytest.mark.parametrize("name", ["$a_{$", "\u5929\u7a7a", "<b>", "x" * 200])
def test_any_name_can_be_drawn(tmp_path: Path, name: str) -> None:
    picture = draw(tmp_path / "a.png", stats(100, 50), (name, "sea"))
    assert bar(picture, 0, 2) > 200
    # No text is clipped at the border.
    assert all((side == 255).all() for side in (picture[0], picture[-1], picture[:, 0]))


def test_empty_stats(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", Stats.empty(2), ("sky", "sea"))


def test_an_unwritable_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="choose a writable folder"):
        draw(tmp_path / "file" / "a.png", stats(1, 1), ("sky", "sea"))


@pytest.mark.parametrize("name", ["天空と海", "하늘", "Ελλάς", "Жук", "$a^b$"])
def test_names_are_drawn_in_every_script(name: str, tmp_path: Path) -> None:
    picture = draw(tmp_path / "a.png", stats(10, 20), (name, "sea"))
    boxes = draw(tmp_path / "b.png", stats(10, 20), ("\ue000" * len(name), "sea"))
    left = picture[:, : picture.shape[1] // 5]
    assert (left < 100).any()  # a name is drawn
    assert picture.shape != boxes.shape or (picture != boxes).any()
