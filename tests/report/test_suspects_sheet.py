from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.evaluation.suspects import Region
from ccfnet_tf.labels import VOID, Taxonomy
from ccfnet_tf.report.suspects_sheet import CELL_HEIGHT, WIDTH, close_up, draw_panel, suspects_sheet

TAXONOMY = Taxonomy(("sky", "sea", "moon"), ((10, 200, 30), (250, 0, 130), (90, 90, 250)))


def panel(height: int = 120, width: int = 160) -> object:
    image = np.full((height, width, 3), 77, np.uint8)
    label = np.zeros((height, width), np.int32)
    label[:, -2:] = VOID
    predicted = label.copy()
    predicted[40:50, 60:80] = 1
    region = Region(60, 40, np.ones((10, 20), bool), 0, 1, 2.0)
    return draw_panel(image, label, predicted, region, TAXONOMY)


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_columns_are_image_region_label_and_prediction() -> None:
    drawn = panel()
    assert drawn.cells.shape == (24 + CELL_HEIGHT, WIDTH, 3)
    lefts = [14 + column * 248 for column in range(4)]
    cells = [drawn.cells[24:, left : left + 240] for left in lefts]
    assert {(77, 77, 77), (255, 255, 0)} <= colours(cells[0])  # the image, and the outline
    assert {(77, 77, 77), (255, 255, 0)} <= colours(cells[1])
    assert TAXONOMY.palette[1] not in colours(cells[2])
    np.testing.assert_array_equal(cells[3][90, 120], TAXONOMY.palette[1])
    # The close-up is larger: the outline is longer than in the image.
    yellow = [(cell == (255, 255, 0)).all(axis=-1).sum() for cell in cells]
    assert yellow[1] > 2 * yellow[0] > 0
    assert drawn.ids == (0, 1)  # The close-up ends before the void columns.


def test_a_sheet_has_every_panel_and_the_names_of_its_classes() -> None:
    sheet = suspects_sheet([("1  a.png", panel()), ("2  b.png", panel())], TAXONOMY)
    assert sheet.shape[1] == WIDTH
    assert 2 * (24 + 24 + CELL_HEIGHT) < sheet.shape[0] < 2 * (24 + 24 + CELL_HEIGHT) + 120
    assert {TAXONOMY.palette[0], TAXONOMY.palette[1]} <= colours(sheet[-60:])
    assert TAXONOMY.palette[2] not in colours(sheet)  # No panel shows the moon.


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (40, 40), (3000, 2000)])
def test_a_close_up_contains_the_box_and_stays_inside_the_image(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, y = (int(rng.integers(0, side)) for side in size[::-1])
        width = int(rng.integers(1, size[1] - x + 1))
        height = int(rng.integers(1, size[0] - y + 1))
        rows, columns = close_up((x, y, width, height), size)
        assert 0 <= rows.start <= y < y + height <= rows.stop <= size[0]
        assert 0 <= columns.start <= x < x + width <= columns.stop <= size[1]


@pytest.mark.parametrize("size", [(51, 81), (400, 90), (60, 900)])
def test_images_of_any_shape_fit_their_cells(size: tuple[int, int]) -> None:
    assert panel(*size).cells.shape == (24 + CELL_HEIGHT, WIDTH, 3)
