"""Which images are chosen, and the file of a toy run."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import result_images
from benchmarks.result_images import LARGEST, choose, main, read_shown, to_jpeg
from ccfnet_tf.cli import main as cli
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.writers import map_image
from ccfnet_tf.report.gallery import CORRECTED, ERRORS, RIGHT
from ccfnet_tf.runs.run_folder import read_run


def chosen(pixels: list[int], coarse: list[int], refine: list[int]) -> list[list[int]]:
    return choose(*(np.array(each, np.int64) for each in (pixels, coarse, refine)))


def test_the_rule_by_hand() -> None:
    """Image n of eleven has 10 - n of 10 pixels right; 2 and 6 have more right than by coarse."""
    refine = [*range(10, -1, -1)]
    coarse = [10, 9, 1, 7, 6, 5, 2, 3, 2, 1, 0]
    # Image 5 is in the middle. Next to it is 4, since 6 is shown already, then 7.
    assert chosen([10] * 11, coarse, refine) == [[2, 6, 0], [5, 4, 7], [10, 9, 8]]


def test_of_equal_images_the_first_is_chosen() -> None:
    """Also where the same accuracy is a fraction of other numbers of pixels."""
    pixels = [3, 6, 9, 30] * 4
    right = [each // 3 for each in pixels]
    assert chosen(pixels, right, right) == [[0, 1, 2], [7, 8, 6], [3, 4, 5]]


@pytest.mark.parametrize("images", range(10))
def test_with_fewer_images_all_are_shown_once(images: int) -> None:
    """Images without a labelled pixel, every other one here, are left out."""
    pixels = [10, 0] * images
    groups = chosen(pixels, [5, 0] * images, [7, 0] * images)
    assert sorted(index for group in groups for index in group) == [*range(0, 2 * images, 2)]
    assert [len(group) for group in groups] == [max(0, min(3, images - n)) for n in (0, 3, 6)]


@pytest.mark.parametrize("seed", range(20))
def test_the_rule_one_image_at_a_time(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 6, rng.integers(1, 30))
    coarse, refine = (rng.integers(0, pixels + 1) for _ in range(2))
    known = np.flatnonzero(pixels).tolist()
    middle = Fraction(len(known) - 1, 2)

    def accuracy(hits: np.ndarray, index: int) -> Fraction:
        return Fraction(int(hits[index]), int(pixels[index]))

    ranks = {i: n for n, i in enumerate(sorted(known, key=lambda i: (accuracy(refine, i), i)))}
    keys: list[Callable[[int], Any]] = [
        lambda i: (accuracy(coarse, i) - accuracy(refine, i), i),
        lambda i: (abs(ranks[i] - middle), ranks[i]),
        lambda i: ranks[i],
    ]
    expected: list[list[int]] = []
    for key in keys:
        expected.append([])
        for _ in range(min(3, len(known))):
            expected[-1].append(min(known, key=key))
            known.remove(expected[-1][-1])
    assert choose(pixels, coarse, refine) == expected


def test_the_file_of_a_run(run: Path) -> None:
    out = run.parent / "docs" / "images.jpg"
    with pytest.raises(DataError, match=f"run `ccfnet-tf evaluate {run}`"):
        main([str(run), "--out", str(out)])
    assert cli.main(["evaluate", str(run)]) == 0
    assert main([str(run), "--out", str(out)]) == 0
    assert out.stat().st_size <= LARGEST

    # Five images of 40 x (40 + 10 n) pixels in two groups, the first of which is full.
    shown = [each for group in read_shown(read_run(run)) for each in group]
    drawn = np.array(Image.open(out))
    line, gap, margin, width = 28 + 9, 8, 14, 240
    cells = [round(width * 40 / (40 + 10 * int(Path(each.name).name))) for each in shown]
    rows = sum(max(cell, 5 * 36) + gap + 2 for cell in cells)
    legends = 45 + 45 + 63  # classes, errors, the scale of the maps
    height = margin + 2 * (2 * line + 2 * gap) + rows + margin + legends
    assert drawn.shape == (height, 2 * margin + 9 * width + 8 * gap, 3)

    with (run / "images.csv").open(newline="") as file:
        figures = {each["image"]: each for each in csv.DictReader(file)}
    for each in shown:
        for head, counts in (("coarse", each.coarse), ("refine", each.refine)):
            found = (counts.pixel_accuracy, counts.mean_iou_present)
            columns = (f"{head}_pixel_accuracy", f"{head}_mean_iou")
            expected = [float(figures[each.name][column]) for column in columns]
            assert found == pytest.approx(expected, abs=1e-6)

    # The cells of the first image: itself, and where refine is right, as `evaluate` counted it.
    top = margin + 2 * line
    row = drawn[top : top + cells[0]].astype(float)
    images = run.parent / "data" / "test" / "images"
    image = Image.open(images / f"{Path(shown[0].name).name}.png")
    enlarged = np.array(image.resize((width, cells[0]), Image.Resampling.NEAREST))
    assert np.abs(row[:, margin : margin + width] - enlarged).mean() < 3
    network, left = KerasNetwork(run), margin + 6 * (width + gap)
    risk = map_image(network.predict_all_heads(np.array(image)).risk)
    enlarged = np.array(
        Image.fromarray(risk).resize((width, cells[0]), Image.Resampling.NEAREST)
    ).astype(float)
    assert np.abs(row[:, left : left + width] - enlarged).mean() < 8
    left += width + gap
    colours = np.array([colour for _, colour in ERRORS])
    distances = np.linalg.norm(row[:, left : left + width, np.newaxis] - colours, axis=-1)
    right = np.isin(distances.argmin(axis=-1), (RIGHT, CORRECTED)).mean()
    assert right == pytest.approx(shown[0].refine.pixel_accuracy, abs=0.02)

    # Nothing is overwritten, and an evaluation of another split or of other weights is refused.
    with pytest.raises(ConfigError, match="already exists"):
        main([str(run), "--out", str(out)])
    with pytest.raises(ConfigError, match=r"ends with \.jpg"):
        main([str(run), "--out", str(out.with_suffix(".png"))])
    text = (run / "evaluation.json").read_text()
    (run / "evaluation.json").write_text(text.replace('"split": "test"', '"split": "val"'))
    with pytest.raises(DataError, match="another split"):
        read_shown(read_run(run))
    (run / "evaluation.json").write_text(text)
    with (run / "checkpoints" / "best.npz").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(DataError, match="other weights"):
        read_shown(read_run(run))


def test_a_large_sheet_is_compressed_more(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 160, 3), np.uint8)
    assert len(to_jpeg(noise)) > 10_000
    monkeypatch.setattr(result_images, "LARGEST", 10_000)
    content = to_jpeg(noise)
    assert 7000 < len(content) <= 10_000
    assert Image.open(io.BytesIO(content)).size == (160, 100)
    monkeypatch.setattr(result_images, "LARGEST", 1000)
    with pytest.raises(DataError, match="160x100 pixels takes more than 1000 bytes"):
        to_jpeg(noise)
