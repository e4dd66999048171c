from __future__ import annotations

import numpy as np

from ccfnet_tf.datasets.scenes.canvas import Canvas
from ccfnet_tf.labels import VOID


def canvas() -> Canvas:
    return Canvas((20, 30), np.random.default_rng(0))


def test_label_takes_the_class_that_covers_half() -> None:
    ground = canvas()
    mask = np.zeros((20, 30), np.float32)
    mask[5, 5:8] = 0.25, 0.5, 1.0
    ground.paint(mask, (1.0, 0.5, 0.0), 3)
    np.testing.assert_array_equal(ground.label[5, 4:9], [0, 0, 3, 3, 0])
    np.testing.assert_allclose(ground.image[0, 5, 4:9], [0, 0.25, 0.5, 1, 0])
    np.testing.assert_allclose(ground.image[1], ground.image[0] / 2)


def test_a_region_shares_pixels_and_coordinates() -> None:
    whole, split = canvas(), canvas()
    for ground in (whole, split.around(15, 10, 8)):
        ground.paint(ground.polygon([(11, 6), (20, 6), (20, 13), (11, 13)]), (1, 1, 1), 2)
        ground.paint(ground.blobs([(15.3, 9.6, 3)]), (0, 1, 1), 4)
        ground.paint(ground.strokes([[(12, 5), (18, 14)]], 1), (1, 0, 1), 5)
    np.testing.assert_array_equal(whole.label, split.label)
    np.testing.assert_array_equal(whole.image, split.image)


def test_a_region_outside_the_image_is_small_and_harmless() -> None:
    ground = canvas()
    part = ground.around(-50, 90, 5)
    part.paint(part.polygon([(-55, 85), (-45, 85), (-45, 95)]), (1, 1, 1), 2)
    assert not ground.label.any()


def test_void_edge_surrounds_a_class() -> None:
    ground = canvas()
    ground.label[8:12, 8:12] = 6
    ground.void_edge(6)
    assert (ground.label == 6).sum() == 16
    assert (ground.label == VOID).sum() == 16
    assert ground.label[7, 7] == 0
