from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.abstain import Abstaining, parse_threshold
from ccfnet_tf.inference.predict import Wanted, predict_all
from ccfnet_tf.inference.segmenter_protocol import Maps, Prediction
from ccfnet_tf.inference.writers import label_image
from ccfnet_tf.labels import VOID
from ccfnet_tf.palettes import accessible_colours
from tests.inference.by_brightness import ByBrightness

RAMP = np.repeat(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)


class Risky(ByBrightness):
    """The brighter a pixel, the larger its risk."""

    def predict(self, image: np.ndarray, /) -> Prediction | Maps:
        found = super().predict(image)
        return found._replace(risk=found.difficulty)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("above", [0.0, 0.5, 1.0])
def test_pixels_above_the_risk_are_void_and_counted(above: float, maps: bool) -> None:
    network = Abstaining(Risky(maps=maps), above)
    found, every = network.predict(RAMP), Risky(maps=maps).predict(RAMP)
    assert type(found) is type(every)
    sure = RAMP[..., 0] / 255 <= above
    np.testing.assert_array_equal(found.labels, np.where(sure, every.labels, VOID))
    np.testing.assert_array_equal(found.risk, every.risk)
    assert found.labels.dtype == np.int32
    network.predict(RAMP)
    assert (network.pixels, network.kept) == (2 * sure.size, 2 * sure.sum())


def test_files_and_coverage(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    wanted = Wanted(kinds=("label", "color"), abstain_above=0.5, palette="accessible")
    console = Console(file=io.StringIO())
    outcome = predict_all(
        Risky(), [str(tmp_path / "a.png")], tmp_path / "out", wanted=wanted, console=console
    )
    sure = RAMP[..., 0] / 255 <= 0.5
    assert outcome.coverage == sure.mean()
    label = cv2.imread(str(tmp_path / "out" / "a.label.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(label, np.where(sure, RAMP[..., 0] // 85, 255))
    colour = np.asarray(Image.open(tmp_path / "out" / "a.color.png"))
    assert set(map(tuple, colour[sure])) == set(accessible_colours(3)[:2])
    assert set(map(tuple, colour[~sure])) == {(0, 0, 0)}


def test_without_a_threshold_every_pixel_has_a_label(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert predict_all(Risky(), [str(tmp_path / "a.png")], tmp_path / "out").coverage is None


@pytest.mark.parametrize(("classes", "kind"), [(255, np.uint8), (256, np.uint16)])
def test_void_is_no_class_of_the_label_file(classes: int, kind: type) -> None:
    picture = label_image(np.array([[VOID, classes - 1]], np.int32), classes=classes)
    assert picture.dtype == kind
    assert picture.tolist() == [[np.iinfo(kind).max, classes - 1]]
    assert label_image(np.array([[classes - 1]]), classes=classes).dtype == np.uint8


@pytest.mark.parametrize("text", ["", "half", "-0.1", "1.5", "nan", "50%", "inf"])
def test_a_threshold_that_is_no_probability_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--abstain-above is .* expected a risk from 0 to 1"):
        parse_threshold(text)
