"""Inputs other than data sets, runs and artifacts, damaged 300 times.

Four modules cover every file that is read:

- test_fuzz_data: class lists, colours, name lists, exports of annotation tools (JSON, XML, CSV,
  pickle), polygons, manifest and records of shards.
- test_fuzz_runs: config.yaml, classes.json, picture_sizes.json, data_digest.json, metrics.csv,
  environment.json, checkpoints, --config, label maps, export.json.
- test_fuzz_artifacts: ONNX, LiteRT, graphs and variables of SavedModels.
- test_fuzz_inputs: images, masks, MATLAB files, videos, --group-by tables, lists and
  near-duplicates of `data split`, evaluation.json and crossval.yaml, backbone weights and archives,
  reference.npz, and the files read by export/embedded/run.py.

The package writes warm-up records but never reads them.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import cv2
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from PIL import Image
from rich.console import Console

from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.sequences import groups_of
from ccfnet_tf.datasets.open_data_set import list_set
from ccfnet_tf.errors import ConfigError, RunError
from ccfnet_tf.exporters.verify.reference import read_references
from ccfnet_tf.inference import find_inputs
from ccfnet_tf.inference.predict import Wanted, predict_all
from ccfnet_tf.inference.segmenter_protocol import Prediction
from ccfnet_tf.io import read_images as pictures
from ccfnet_tf.io.matlab import read_matrix
from ccfnet_tf.io.video_writer import quiet_video
from ccfnet_tf.network import backbone_weights
from ccfnet_tf.network.backbone_weights import named_variables
from ccfnet_tf.runtimes.manifest import REFERENCE
from ccfnet_tf.training import crossval
from tests import test_export_embedded
from tests.datasets.layouts import small_copies
from tests.hostile.conftest import write_set
from tests.hostile.test_fuzz_runs import GIGABYTES_2, damaged, fuzz
from tests.inference.by_brightness import ByBrightness
from tests.memory import grows_at_most, peak_of
from tests.training.test_crossval import config as crossval_config
from tests.training.test_crossval import finished

# Decoders warn of odd metadata: a warning is not a fault here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def dealt(tmp_path: Path) -> Path:
    """A data set with the lists of `data split`."""
    root, lists = write_set(tmp_path / "set"), tmp_path / "lists"
    copy = root / "images" / "0.png"
    (root / "images" / "1.png").write_bytes(copy.read_bytes())
    assert cli.main(["data", "split", str(root), "--folds", "2", "--out", str(lists)]) == 0
    return root


def test_groups(dealt: Path, count: int) -> None:
    samples = list_set(DataConfig(root=str(dealt)), 0).train
    table = dealt / "groups.csv"
    table.write_text("name,film\n" + "".join(f'{i}.png,"film {i % 2}"\n' for i in range(6)))
    fuzz(table, lambda: groups_of(str(table), samples, dealt), count)


@pytest.mark.parametrize("name", ["fold_0/train.txt", "fold_0/test.txt", "near_duplicates.txt"])
def test_lists_of_folds(name: str, dealt: Path, count: int) -> None:
    lists = dealt.parent / "lists"
    data = DataConfig(root=str(dealt), lists=str(lists), fold=0)
    assert list_set(data, 0).train
    fuzz(lists / name, lambda: list_set(data, 0), count)


@pytest.fixture
def folds(dealt: Path, tmp_path: Path) -> Path:
    """Runs of two folds that appear finished."""
    out = tmp_path / "out"
    for fold, accuracy in enumerate((0.5, 0.75)):
        finished(out, fold, accuracy)
    return out


def never(*_: object) -> NoReturn:
    raise RunError("would be trained")


@pytest.mark.slow
def test_crossval(folds: Path, dealt: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = crossval_config(dealt, lists=str(dealt.parent / "lists"))
    monkeypatch.setattr(crossval, "_call", never)
    monkeypatch.setattr(crossval, "_refuse_absent", lambda *_: None)
    crossval._claim(crossval.resolved_paths(settings), folds.parent / "new", resume=False)
    (folds.parent / "new" / crossval.CROSSVAL_CONFIG).rename(folds / crossval.CROSSVAL_CONFIG)

    def go_on() -> None:
        options = parse_fit(["--resume", "--out", str(folds)], verb="crossval")
        console = Console(file=io.StringIO())
        crossval.crossval(options.config, folds, resume=True, console=console)

    monkeypatch.setattr(crossval, "_claim", lambda *_, **__: None)
    fuzz(folds / "fold_0" / "evaluation.json", go_on, count)
    fuzz(folds / crossval.CROSSVAL_CONFIG, go_on, count)


PICTURE = np.random.default_rng(0).integers(0, 255, (40, 44, 3), np.uint8)
SAVED: dict[str, dict[str, Any]] = {
    "a.jpg": {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"},
    "progressive.jpg": {"progressive": True},
    "a.png": {},
    "a.bmp": {},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "jpeg.tif": {"compression": "jpeg"},
    "a.webp": {"lossless": True},
    "a.avif": {},
    "a.gif": {"save_all": True, "append_images": [Image.new("RGB", (44, 40))]},
    "a.apng": {"save_all": True, "append_images": [Image.new("RGB", (44, 40))], "format": "PNG"},
    "a.jp2": {},
    "a.tga": {"compression": "tga_rle"},
    "a.ppm": {},
}


def look(file: Path) -> None:
    pictures.image_size(file)
    pictures.extra_band(file)
    pictures.count_frames(file)
    pictures.read_image(file)


@pytest.mark.parametrize("name", SAVED)
def test_images(name: str, tmp_path: Path, count: int) -> None:
    file = tmp_path / name
    Image.fromarray(PICTURE).save(file, **SAVED[name])
    look(file)
    fuzz(file, lambda: look(file), count)


def test_every_image_suffix_is_tested() -> None:
    alike = {".jpeg", ".jpe", ".jfif", ".tiff", ".pgm", ".pbm", ".pnm"}
    assert {Path(name).suffix for name in SAVED} | alike == set(find_inputs.IMAGE_SUFFIXES)


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "RGBA", "1", "I;16"])
def test_masks(kind: str, tmp_path: Path, count: int) -> None:
    file = tmp_path / "a.png"
    if kind == "I;16":
        Image.fromarray(PICTURE[..., 0].astype(np.uint16)).save(file)
    else:
        Image.fromarray(PICTURE).convert(kind).save(file)

    def read() -> None:
        pictures.read_coloured_mask(file)
        pictures.read_mask(file)

    read()
    fuzz(file, read, count)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab(compressed: bool, tmp_path: Path, count: int) -> None:
    file = tmp_path / "a.mat"
    file.write_bytes(small_copies.mat(small_copies.values([0, 1, 2]), compressed=compressed))
    read_matrix(file, "S")
    fuzz(file, lambda: read_matrix(file, "S"), count)


def film(file: Path, code: str) -> Path:
    quiet_video()
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*code), 12, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    assert file.stat().st_size
    return file


VIDEOS = [("a.mp4", "mp4v"), ("a.avi", "MJPG")]
MORE_VIDEOS = [
    *[("a.mkv", "mp4v"), ("a.mov", "MJPG"), ("a.flv", "FLV1"), ("a.3gp", "mp4v")],
    *[("a.webm", "VP80"), ("a.avi", "XVID"), ("a.wmv", "WMV2")],
]


@pytest.mark.parametrize(
    ("name", "code"),
    [*VIDEOS, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE_VIDEOS)],
)
def test_videos(
    name: str, code: str, tmp_path: Path, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    file = film(tmp_path / name, code)
    wanted = Wanted(kinds=("label",), film=False, overwrite=True)

    def predict() -> None:
        console = Console(file=io.StringIO(), width=10_000)
        outcome = predict_all(
            ByBrightness(), [str(file)], tmp_path / "out", wanted=wanted, console=console
        )
        for failure in outcome.failures:
            raise ConfigError(failure.reason)

    capfd.readouterr()
    predict()
    fuzz(file, predict, count)
    assert capfd.readouterr() == ("", "")


def test_frames_that_would_need_gigabytes(program: Any, tmp_path: Path) -> None:
    quiet_video()
    file = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"MJPG"), 12, (9000, 9000))
    writer.write(np.zeros((9000, 9000, 3), np.uint8))
    writer.release()
    (failure,) = predict_all(ByBrightness(), [str(file)], tmp_path / "out").failures
    assert failure.reason == (
        "frames of 9000x9000 pixels: at most 80 million are supported; shrink the video"
    )
    with pytest.raises(program.RunError, match="frames of more than 80000000 pixels"):
        list(program.read_frames(file, []))


def backbone() -> keras.Model:
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, name="conv")(images)
    return keras.Model(images, keras.layers.BatchNormalization(name="norm")(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["new.weights.h5", "old.h5"])
def test_weights_of_a_backbone(name: str, tmp_path: Path, count: int) -> None:
    model, file = backbone(), tmp_path / name
    if name.startswith("new"):
        model.save_weights(file)
    else:
        with h5py.File(file, "w") as opened:
            legacy_h5_format.save_weights_to_hdf5_group(opened, model)
    fuzz(file, lambda: backbone_weights.load_backbone_weights(model, "toy", file), count)


def test_npz_files_of_a_backbone(tmp_path: Path, count: int) -> None:
    model, file = backbone(), tmp_path / "a.npz"
    arrays = {key: variable.numpy() for key, variable in named_variables(model).items()}
    np.savez(file, **arrays)
    fuzz(file, lambda: backbone_weights.load_backbone_weights(model, "toy", file), count)


@pytest.mark.parametrize("name", ["model.ckpt.index", "model.ckpt.data-00000-of-00001", "a.tar.gz"])
def test_archives_of_a_backbone(name: str, tmp_path: Path, count: int) -> None:
    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="stem_conv")(images)
    model, archive = keras.Model(images, x), tmp_path / "a.tar.gz"
    key = "efficientnet-lite0/stem/conv2d/kernel/ExponentialMovingAverage"
    prefix = str(tmp_path / "model.ckpt")
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=[key], shape_and_slices=[""], tensors=[model.weights[0].value]
    )

    def pack() -> None:
        with tarfile.open(archive, "w:gz") as target:
            for path in tmp_path.glob("model.ckpt.*"):
                target.add(path, path.name)

    def load() -> None:
        if name != archive.name:
            pack()
        backbone_weights.load_backbone_weights(model, "efficientnet_lite0", archive)

    pack()
    fuzz(tmp_path / name, load, count)


def packed(file: h5py.Group) -> None:
    file.create_dataset("x", (1 << 31,), "f4", chunks=(1 << 20,), compression="gzip", fillvalue=1)


def elsewhere(file: h5py.Group) -> None:
    file.create_dataset("x", (9,), "u1", external=[("/etc/hostname", 0, 9)])


def linked(file: h5py.Group) -> None:
    file["x"] = h5py.ExternalLink("other.h5", "/x")


@pytest.mark.parametrize("change", [packed, elsewhere, linked])
def test_weights_with_links_to_other_files(
    change: Callable[[h5py.Group], None], tmp_path: Path
) -> None:
    model, file = backbone(), tmp_path / "a.weights.h5"
    model.save_weights(file)
    with h5py.File(file, "a") as opened:
        change(opened)
    with (
        grows_at_most(1 << 28),
        pytest.raises(ConfigError, match=r"a\.weights\.h5 does not match toy: the file is damaged"),
    ):
        backbone_weights.load_backbone_weights(model, "toy", file)


@pytest.mark.parametrize(
    "trial", ["import os; os.kill(os.getpid(), 11)", "import time; time.sleep(60)"]
)
def test_weights_that_crash_or_hang_their_process(
    trial: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, file = backbone(), tmp_path / "a.weights.h5"
    model.save_weights(file)
    monkeypatch.setattr(backbone_weights, "_TRIAL", trial)
    monkeypatch.setattr(backbone_weights, "_TRIAL_SECONDS", 1.0)
    with pytest.raises(ConfigError, match="does not match toy: the file is damaged"):
        backbone_weights.load_backbone_weights(model, "toy", file)


def test_references(tmp_path: Path, count: int) -> None:
    file = tmp_path / REFERENCE
    file.parent.mkdir(exist_ok=True)
    zeros = np.zeros((40, 44), np.float32)
    third = np.full((40, 44, 3), 1 / 3, np.float32)
    prediction = Prediction(zeros.astype(np.int32), zeros, zeros, zeros, third)
    arrays = {"image/0": PICTURE, "settled/0": zeros == 0, "clear_branch/0": zeros == 0}
    arrays |= {f"{name}/0": values for name, values in prediction._asdict().items()}
    with file.open("wb") as opened:
        np.savez_compressed(opened, **arrays)
    assert len(list(read_references(tmp_path))) == 1

    def read() -> None:
        with contextlib.suppress(ValueError):  # Reported by the check in one line.
            list(read_references(tmp_path))

    fuzz(file, read, count)


@pytest.fixture(scope="module")
def program() -> Any:
    return test_export_embedded.load()


def for_boards(program: Any, read: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        try:
            read()
        except program.RunError as error:
            raise ConfigError(str(error)) from error

    return call


def test_manifests_of_the_embedded_program(program: Any, tmp_path: Path, count: int) -> None:
    file = tmp_path / "export.json"
    tree = {"classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]], "calibration": {}}
    file.write_text(json.dumps(tree))
    read = for_boards(program, lambda: program.read_classes(tmp_path / "a.tflite", b""))
    read()
    fuzz(file, read, count)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "lzw.tif", "a.webp"])
def test_images_of_the_embedded_program(name: str, tmp_path: Path, count: int) -> None:
    """In a separate process: OpenCV reads its size limit, set by the program, at import."""
    file = tmp_path / name
    Image.fromarray(PICTURE).save(file, **SAVED[name])
    original = file.read_bytes()
    for number, content in enumerate(damaged(original, name, count)):
        file.with_name(f"{number}{file.suffix}").write_bytes(content)
    Image.new("1", (9500, 9500)).save(tmp_path / "large.png")
    code = (
        "import pathlib, runpy, sys\n"
        "read = runpy.run_path(sys.argv[1])['read_frames']\n"
        "bad = []\n"
        "done = [frame.name for frame in read(pathlib.Path(sys.argv[2]), bad)]\n"
        "print(pathlib.Path('/proc/self/status').read_text(), len(done), len(bad))\n"
    )
    command = [sys.executable, "-c", code, str(test_export_embedded.SCRIPT), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert peak_of(ended.stdout) < GIGABYTES_2
    done, bad = map(int, ended.stdout.split()[-2:])
    assert done > 0
    assert done + bad == len(list(tmp_path.iterdir()))
    output = [line for line in ended.stderr.splitlines() if line.startswith("run.py: ")]
    assert len(output) == bad
    assert any("large.png" in line for line in output)


@pytest.mark.parametrize(("name", "code"), VIDEOS)
def test_videos_of_the_embedded_program(
    name: str, code: str, program: Any, tmp_path: Path, count: int
) -> None:
    file = film(tmp_path / name, code)
    fuzz(file, for_boards(program, lambda: list(program.read_frames(file, []))), count)
