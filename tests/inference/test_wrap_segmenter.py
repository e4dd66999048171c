from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.cli.main import main
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR
from ccfnet_tf.inference.predict import Wanted, predict_all
from ccfnet_tf.inference.segmenter_protocol import CascadeSegmenter
from ccfnet_tf.inference.test_time import Augmentation
from ccfnet_tf.inference.tiles import Tiling
from ccfnet_tf.inference.wrap_segmenter import UNWRAPPED, Wrapping, wrap
from ccfnet_tf.runtimes import open_segmenter
from ccfnet_tf.runtimes.open_segmenter import Source
from tests.inference.by_brightness import ByBrightness
from tests.inference.local_network import LocalCascade, noise

BOTH = Wrapping(Augmentation((0.5, 1.0), flip=True), Tiling(64, 0.25))


def test_a_cascade_stays_one_and_other_networks_do_not_become_one() -> None:
    assert isinstance(wrap(LocalCascade(), BOTH), CascadeSegmenter)
    assert not isinstance(wrap(ByBrightness(), BOTH), CascadeSegmenter)
    network = LocalCascade()
    assert wrap(network, UNWRAPPED) is network


def test_views_are_those_of_each_tile() -> None:
    network, image = LocalCascade(), noise(64, 112)
    tiled = wrap(network, BOTH).predict(image)
    assert network.seen == [(32, 32), (32, 32), (64, 64), (64, 64)] * 2
    at_once = wrap(network, Wrapping(BOTH.augmentation)).predict(image)
    assert (tiled.labels != at_once.labels).mean() < 0.01
    np.testing.assert_allclose(tiled.attention, at_once.attention, atol=1e-3)
    np.testing.assert_allclose(tiled.risk, at_once.risk, atol=1e-3)


def test_tiles_are_those_of_the_shrunk_image(tmp_path: Path) -> None:
    source, out, network = tmp_path / "a.png", tmp_path / "out", ByBrightness()
    Image.fromarray(noise(100, 200)).save(source)
    wanted = Wanted(kinds=("label",), box=(100, 100), wrapping=Wrapping(tiling=Tiling(64, 0.25)))
    predict_all(network, [str(source)], out, wanted=wanted)
    assert network.seen == [(50, 64), (50, 52)]
    assert cv2.imread(str(out / "a.label.png"), cv2.IMREAD_UNCHANGED).shape == (100, 200)


def test_frames_of_videos_are_wrapped(tmp_path: Path) -> None:
    source, network = tmp_path / "a.avi", ByBrightness()
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"MJPG"), 12, (96, 64))
    for _ in range(2):
        writer.write(noise(64, 96))
    writer.release()
    wanted = Wanted(kinds=("label",), film=False, wrapping=BOTH)
    assert predict_all(network, [str(source)], tmp_path / "out", wanted=wanted).frames == 2
    assert network.seen[:4] == [(32, 32), (32, 32), (64, 64), (64, 64)]
    assert len(network.seen) == 2 * 2 * 4


def test_progress_shows_the_tiles_of_an_image(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(noise(100, 200)).save(source)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    wanted = Wanted(kinds=("label",), wrapping=Wrapping(tiling=Tiling(64, 0.25)))
    predict_all(ByBrightness(), [str(source)], tmp_path / "out", wanted=wanted, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "tiles" in shown
    assert "/8" in shown


def test_tiles_are_not_warned_of_as_large_images(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    Image.fromarray(noise(100, 200)).save(source)
    console = Console(file=io.StringIO(), width=400)
    wanted = Wanted(kinds=("label",), wrapping=Wrapping(tiling=Tiling(64, 0.25)))
    predict_all(
        ByBrightness(),
        [str(source)],
        tmp_path / "out",
        wanted=wanted,
        trained=(40, 50),
        console=console,
    )
    assert "warning" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_options_of_predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, source = LocalCascade(), tmp_path / "a.png"

    class Opened(Source):
        def open(self, threads: int | None = None) -> LocalCascade:
            return network

    monkeypatch.setattr(open_segmenter, "find_source", lambda _: Opened("onnx", "network"))
    Image.fromarray(noise(64, 96)).save(source)
    given = ["predict", "network", str(source), "--save", "label", "--out", str(tmp_path / "out")]
    options = ["--tile", "64", "--overlap", "0.5", "--tta", "scales=0.5,1", "flip"]
    assert main([*given, *options]) == EXIT_DONE
    assert network.seen == [(32, 32), (32, 32), (64, 64), (64, 64)] * 2
    assert (tmp_path / "out" / "a.label.png").is_file()


@pytest.mark.parametrize(
    "options",
    [
        ["--tta", "scales=0"],
        ["--tta", "flip", "sideways"],
        ["--tta"],
        ["--tile", "31"],
        ["--overlap", "0.9", "--tile", "512"],
        ["--overlap", "0.25"],
    ],
)
def test_wrong_options_are_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["predict", str(tmp_path / "run"), str(tmp_path / "a.png"), *options]
    assert main(given) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert options[0] in line
