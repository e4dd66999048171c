from __future__ import annotations

import numpy as np
import pytest

from ccfnet_tf.config import DataConfig
from ccfnet_tf.errors import DataError
from ccfnet_tf.inference.writers import colour_image
from ccfnet_tf.labels import VOID, Sample, Taxonomy
from ccfnet_tf.pipeline.batch import training_batches
from ccfnet_tf.report.samples_sheet import contact_sheet, version

TAXONOMY = Taxonomy(("sky", "sea", "moon"), ((10, 200, 30), (250, 0, 130), (90, 90, 250)))
DATA = DataConfig(crop=33, scale=(0.5, 2.0), rotate=20.0, cutout=0.2)
SAMPLES = [Sample(f"p{i}", f"{i}.jpg", f"{i}.png") for i in range(8)]


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    index = int(sample.name[1:])
    rng = np.random.default_rng(index)
    image = rng.integers(60, 200, (40, 60, 3), np.uint8)
    label = np.zeros((40, 60), np.int32)
    label[20:] = 1
    label[:4, :4] = VOID
    return image, label


def colours(sheet: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(row) for row in np.unique(sheet.reshape(-1, 3), axis=0).tolist()}


def test_a_sheet() -> None:
    sheet = contact_sheet(SAMPLES, load, TAXONOMY, DATA, 0, count=3, versions=2)
    assert sheet.dtype == np.uint8
    assert 3 * 240 < sheet.shape[1] < 4 * 240
    assert 3 * (160 + 2 * 240) < sheet.shape[0] < 3 * (160 + 2 * 240) + 450
    seen = colours(sheet)
    assert {(10, 200, 30), (250, 0, 130), (0, 0, 0)} <= seen  # sky, sea, void
    assert (90, 90, 250) not in seen  # no image contains the moon, and the legend leaves it out
    again = contact_sheet(SAMPLES, load, TAXONOMY, DATA, 0, count=3, versions=2)
    np.testing.assert_array_equal(sheet, again)


def test_columns_are_image_label_and_overlay() -> None:
    sheet = contact_sheet(SAMPLES[:1], load, TAXONOMY, DATA, 0, versions=0)
    image, _ = load(SAMPLES[0])
    top, left = 14 + 24 + 24, 14  # below name and titles
    cells = [sheet[top : top + 160, left + n * 248 : left + n * 248 + 240] for n in range(3)]
    np.testing.assert_array_equal(cells[0][2::4, 2::4], image)
    np.testing.assert_array_equal(cells[1][90, 100], TAXONOMY.palette[1])
    np.testing.assert_array_equal(cells[1][2, 2], 0)
    expected = 0.6 * image[30, 30] + 0.4 * np.array(TAXONOMY.palette[1])
    np.testing.assert_allclose(cells[2][122, 122], expected, atol=1)


def test_versions_are_columns_with_their_label_below() -> None:
    data = DataConfig(crop=240, scale=(1.0, 1.0), colour=0.0, flip=False)
    sheet = contact_sheet(SAMPLES[:1], load, TAXONOMY, data, 0, versions=4)
    assert sheet.shape[1] == 2 * 14 + 4 * 240 + 3 * 8  # four columns
    image, label = version(*load(SAMPLES[0]), data, seed=0, epoch=3, place=0)
    top, left = 14 + 24 + 24 + 160 + 8 + 24, 14 + 3 * 248
    np.testing.assert_array_equal(sheet[top : top + 240, left : left + 240], image)
    below = sheet[top + 242 : top + 482, left : left + 240]
    np.testing.assert_array_equal(below, colour_image(label, TAXONOMY))


def test_seeds_choose_different_samples_and_fewer_are_allowed() -> None:
    sheets = [contact_sheet(SAMPLES, load, TAXONOMY, DATA, s, count=2, versions=0) for s in (0, 1)]
    assert sheets[0].shape == sheets[1].shape
    assert (sheets[0] != sheets[1]).any()
    all_of_them = contact_sheet(SAMPLES, load, TAXONOMY, DATA, 0, count=99, versions=0)
    assert all_of_them.shape[0] > 8 * 160


def test_versions_are_what_training_sees() -> None:
    batches = training_batches(SAMPLES, load, DATA, batch=8, seed=5, first_step=1)
    images, labels = next(iter(batches))
    seen = {
        label.tobytes(): image for image, label in zip(images.numpy(), labels.numpy(), strict=True)
    }
    assert len(seen) == 8
    for place, sample in enumerate(SAMPLES):
        image, label = version(*load(sample), DATA, seed=5, epoch=1, place=place)
        trained = seen[label.tobytes()]
        np.testing.assert_allclose(image, trained, atol=1)  # a graph may round differently


def test_a_bad_sample_is_named() -> None:
    def broken(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        raise DataError(f"{sample.image}: damaged")

    with pytest.raises(DataError, match="damaged"):
        contact_sheet(SAMPLES, broken, TAXONOMY, DATA, 0)
