"""export/embedded/run.py, with small networks that LiteRT runs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "export" / "embedded" / "run.py"
SIZE = (48, 64)
NAMES = ["red", "green", "blue", "dark"]
PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]
MISSING = "/nowhere"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("embedded_run", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = load()


def write_network(folder: Path, *, labels: bool = False, batch: int = 1) -> Path:
    """A network that predicts the strongest of red, green and blue, or dark."""
    import tensorflow as tf

    def answer(images: Any) -> dict[str, Any]:
        scores = tf.concat([images / 16.0, tf.fill([batch, *SIZE, 1], 4.0)], -1)
        probabilities = tf.nn.softmax(scores)
        hard = 1.0 - tf.reduce_max(probabilities, -1)
        best = tf.cast(tf.argmax(probabilities, -1, output_type=tf.int32), tf.uint8)
        # Not three times the same tensor: the converter would make one output of them.
        maps = {"attention": hard / 2.0, "difficulty": hard, "risk": hard / 4.0}
        if not labels:
            return {"labels": best, "probabilities": probabilities, **maps}
        stored = {name: tf.cast(255.0 * each + 0.5, tf.uint8) for name, each in maps.items()}
        return {"labels": best, **stored}

    module = tf.Module()
    spec = tf.TensorSpec([batch, *SIZE, 3], tf.float32, name="images")
    module.serve = tf.function(answer, input_signature=[spec])
    # Converted from a SavedModel, since only then the file has the names of the signature.
    tf.saved_model.save(module, str(folder / "saved"), {"serving_default": module.serve})
    path = folder / "ccfnet.tflite"
    path.write_bytes(
        tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved")).convert(),
    )
    manifest = {
        "classes": NAMES,
        "palette": PALETTE,
        "options": {"size": f"{SIZE[0]}x{SIZE[1]}"},
        "calibration": {},
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest()},
    }
    (folder / "export.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("probabilities"))


@pytest.fixture(scope="module")
def labels_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_network(tmp_path_factory.mktemp("labels"), labels=True)


def scene(height: int, width: int) -> np.ndarray:
    """Red on the left and green on the right, BGR."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 2] = 250
    image[:, width // 2 :, 1] = 250
    return image


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    cv2.imwrite(str(folder / "large.png"), scene(131, 201))
    cv2.imwrite(str(folder / "small.png"), scene(20, 30))
    (folder / "notes.txt").write_text("no image")
    video = cv2.VideoWriter(
        str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12, (96, 80)
    )
    for _ in range(4):
        video.write(scene(80, 96))
    video.release()
    return folder


@pytest.mark.parametrize("shape", [SIZE, (131, 201), (20, 30), (20, 200), (200, 20), (1, 1)])
@pytest.mark.parametrize("kind", ["network", "labels_network"])
def test_outputs_have_the_size_of_the_input(
    kind: str, shape: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    result = runner.Network(path, path.read_bytes(), cpu=True, threads=1)
    image = scene(*shape)
    result.choose(image)
    labels, *maps = result.answer(image)
    expected = np.where(image[..., 2] > 0, 0, 1)
    assert {each.shape for each in (labels, *maps)} == {shape}
    inside = np.ones(shape, bool)  # A resized edge may be off by one or two pixels.
    if shape[0] > SIZE[0] or shape[1] > SIZE[1]:
        inside[:, max(0, shape[1] // 2 - 4) : shape[1] // 2 + 4] = False
    np.testing.assert_array_equal(labels[inside], expected[inside])
    for each in maps:
        assert each[inside].max(initial=0.0) < 0.01


def test_red_is_red(network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "red.png", tmp_path / "out" / "drawn.png"
    image = np.zeros((200, 300, 3), np.uint8)
    image[..., 2] = 200
    cv2.imwrite(str(path), image)
    assert runner.main([str(network), str(path), "--cpu", "--out", str(out)]) == 0
    drawn = cv2.imread(str(out))
    assert drawn.shape == image.shape
    # Away from text and inset: 60 % of the image, 40 % of the red of the palette.
    assert abs(drawn[150, 150].astype(int) - [0, 0, 222]).max() <= 1
    output = capsys.readouterr()
    assert "running on the CPU" in output.out
    assert "1 images" in output.out
    assert output.err == ""


def test_the_inset_shows_the_difficulty() -> None:
    classes = runner.Classes(NAMES, np.array(PALETTE, np.uint8))
    labels, difficulty = np.zeros((80, 80), np.uint8), np.zeros((80, 80), np.float32)
    difficulty[40:] = 1.0
    zero = np.zeros_like(difficulty)
    answered = runner.Answered(labels, zero, difficulty, zero)
    drawn = runner.draw(scene(80, 80), answered, classes, "")
    inset = drawn[60:, 60:].astype(int).sum(-1)
    assert inset[3:9, 3:17].max() < 50
    assert inset[12:17, 3:17].min() > 400


def test_a_folder_gives_one_output_per_image(network: Path, inputs: Path, tmp_path: Path) -> None:
    assert runner.main([str(network), str(inputs), "--cpu", "--out", str(tmp_path / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["large.overlay.png", "small.overlay.png"]


def test_a_bad_image_in_a_folder_is_reported_and_the_others_are_drawn(
    network: Path, inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, out = inputs / "a_first.png", tmp_path / "out"
    bad.write_bytes(b"\x89PNG\r\n")
    assert runner.main([str(network), str(inputs), "--cpu", "--out", str(out)]) == 1
    output = capfd.readouterr()
    assert output.err == f"run.py: {bad}: not an image that OpenCV can read: damaged?\n"
    assert "1 of 3 images could not be read" in output.out
    assert len(list(out.iterdir())) == 2


def test_an_unreadable_input_creates_no_output(
    network: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad, out = tmp_path / "bad.png", tmp_path / "out"
    bad.write_bytes(b"\x89PNG\r\n")
    refused_with("damaged?", [str(network), str(bad), "--out", str(out)], capfd)
    assert not out.exists()


def test_a_missing_output_option_is_reported(
    network: Path, inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.main([str(network), str(inputs), "--cpu"]) == 0
    assert "only measuring the speed: --out saves" in capsys.readouterr().out


@pytest.mark.parametrize("out", ["drawn.mp4", "drawn.avi", "folder"])
def test_a_video_gives_a_video(
    labels_network: Path, inputs: Path, tmp_path: Path, out: str
) -> None:
    given = ["--cpu", "--threads", "1", "--out", str(tmp_path / out)]
    assert runner.main([str(labels_network), str(inputs.parent / "clip.avi"), *given]) == 0
    path = tmp_path / out
    video = cv2.VideoCapture(str(path if path.suffix else path / "clip.overlay.mp4"))
    frames = 0
    while video.read()[0]:
        frames += 1
    assert frames == 4
    assert video.get(cv2.CAP_PROP_FPS) == 12
    video.release()


def test_the_frame_rate_is_measured_over_the_last_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    rate = runner.Rate()
    for _ in range(40):
        now += 1.0
        assert rate.next() == pytest.approx(1.0)
    for _ in range(30):
        now += 0.1
        result = rate.next()
    assert result == pytest.approx(10.0)


def test_without_a_driver_the_cpu_is_used_and_reported(network: Path, inputs: Path) -> None:
    done = in_its_own_process(network, inputs, VK_DRIVER_FILES=MISSING, VK_ICD_FILENAMES=MISSING)
    _, first, last = done.stdout.splitlines()
    assert "GPU not used: no GPU driver was found; running on the CPU, 1 thread" in first
    assert "2 images" in last


def test_the_gpu_is_used_if_there_is_one(network: Path, inputs: Path) -> None:
    driver = os.environ.get("VK_DRIVER_FILES", "")
    if not (driver and Path(driver).is_file()):
        pytest.skip("no Vulkan driver: VK_DRIVER_FILES does not name a file")
    done = in_its_own_process(network, inputs)
    if "No adapters" in done.stderr or "libvulkan" in done.stderr:
        pytest.skip("libvulkan.so.1 is not here")
    assert "running on the GPU" in done.stdout, done.stdout + done.stderr


def in_its_own_process(
    network: Path, inputs: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process and checks its imports."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end:\n    code = end.code\n"
        "assert not {'tensorflow', 'ccfnet_tf', 'keras'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    code = f"import sys; sys.argv = sys.argv[1:]\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(SCRIPT), str(network), str(inputs), "--threads", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done


def probabilities(largest: float) -> dict[str, np.ndarray]:
    value = np.full((1, 4, 5, 2), 0.5, np.float32)
    value[..., 0], value[..., 1] = largest, 1.0 - largest
    maps = {name: np.zeros((1, 4, 5), np.float32) for name in runner.MAPS}
    return {"labels": value.argmax(-1), "probabilities": value, **maps}


@pytest.mark.parametrize(
    ("gpu", "output"),
    [(0.8, "differ from the CPU's by up to 0.1"), (0.2, "0.0% equal"), (float("nan"), "nan")],
)
def test_a_gpu_with_different_outputs_is_refused(gpu: float, output: str) -> None:
    with pytest.raises(runner.RunError, match=output):
        runner._difference(probabilities(gpu), probabilities(0.9))


def test_a_gpu_with_equal_outputs_is_used() -> None:
    assert runner._difference(probabilities(0.895), probabilities(0.9)) == pytest.approx(0.005)


def test_a_tie_of_two_coarse_classes_does_not_refuse_a_gpu() -> None:
    gpu, cpu = probabilities(0.9), probabilities(0.9)
    for each in (gpu, cpu):
        each |= {name: np.zeros((1, 20, 10), np.float32) for name in runner.MAPS}
    gpu["difficulty"][0, 0, :2] = 0.9
    assert runner._difference(gpu, cpu) == 0.0
    gpu["difficulty"][0, 0, 2] = np.nan
    with pytest.raises(runner.RunError, match=r"98\.5% equal pixels"):
        runner._difference(gpu, cpu)
    gpu["risk"][0, 0, 0] = 0.9
    with pytest.raises(runner.RunError, match=r"up to 0\.9"):
        runner._difference(gpu, cpu)


def test_a_validation_error_in_the_log_is_refused() -> None:
    with pytest.raises(runner.RunError, match="validation error"):
        runner._refuse_bad_log("INFO: all is well\nValidation error: Texture size (width: 32)\n")


def cut(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-40])
    return "its SHA-256 differs"


def other_file(path: Path) -> str:
    (path.parent / "export.json").write_text(json.dumps({"classes": [], "palette": []}))
    path.write_bytes(b"not a network at all")
    return "its identifier is not TFL3"


def no_contract(path: Path) -> str:
    (path.parent / "export.json").unlink()
    return "export.json: No such file"


def spoilt_contract(path: Path) -> str:
    (path.parent / "export.json").write_text("{")
    return "export.json: not valid"


def uneven_palette(path: Path) -> str:
    (path.parent / "export.json").write_text(json.dumps({"classes": NAMES, "palette": PALETTE[1:]}))
    return "export.json: not valid"


def older_contract(path: Path) -> str:
    manifest = path.parent / "export.json"
    tree = json.loads(manifest.read_text())
    del tree["calibration"]
    manifest.write_text(json.dumps(tree))
    return "today's `attention`: export the run again"


def no_model(path: Path) -> str:
    path.unlink()
    return "No such file"


@pytest.mark.parametrize(
    "spoil",
    [cut, other_file, no_contract, spoilt_contract, uneven_palette, older_contract, no_model],
)
def test_a_damaged_network_is_a_one_line_error(
    network: Path,
    inputs: Path,
    tmp_path: Path,
    spoil: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy" / network.name
    copy.parent.mkdir()
    for name in (network.name, "export.json"):
        (copy.parent / name).write_bytes((network.parent / name).read_bytes())
    refused_with(spoil(copy), [str(copy), str(inputs), "--cpu"], capfd)


def refused_with(output: str, arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert runner.main(arguments) == 2
    error = capfd.readouterr().err
    assert output in error
    assert error.startswith("run.py: ")
    assert len(error.splitlines()) == 1


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["/nowhere.mp4"], "/nowhere.mp4: no such file or folder"),
        (["97"], "camera 97: OpenCV cannot open it"),
        (["INPUTS/notes.txt"], "notes.txt: OpenCV cannot open it"),
        (["EMPTY"], "contains no images"),
        (["EMPTY/broken.png"], "not an image that OpenCV can read: damaged?"),
        (["EMPTY/huge.png"], "not an image that OpenCV can read: too large?"),
        (["INPUTS", "--threads", "0"], "--threads is 0"),
        (["INPUTS", "--out", "EMPTY/one.png"], "expected a folder"),
        (["INPUTS/small.png", "--out", "INPUTS/small.png"], "is the input file"),
        (["INPUTS/small.png", "--out", "EMPTY/drawn.mp4"], "expected a folder or .bmp"),
        (["INPUTS/small.png", "--out", "INPUTS/notes.txt/x"], "--out"),
        (["INPUTS", "--show"], "no display"),
    ],
)
@pytest.mark.usefixtures("no_screen")
def test_bad_input_is_a_one_line_error(
    network: Path,
    inputs: Path,
    arguments: list[str],
    output: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    empty = inputs.parent / "empty"
    empty.mkdir()
    if "broken" in arguments[0]:
        (empty / "broken.png").write_bytes(b"\x89PNG\r\n")
    if "huge" in arguments[0]:
        (empty / "huge.png").write_bytes(png_of_one_row(60_000, 60_000))
    given = [each.replace("INPUTS", str(inputs)).replace("EMPTY", str(empty)) for each in arguments]
    refused_with(output, [str(network), *given, "--cpu"], capfd)


def png_of_one_row(width: int, height: int) -> bytes:
    """Returns a PNG whose header declares more data than it has."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    row = zlib.compress(bytes(1 + 3 * width))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_two_images_with_the_same_name_are_refused(
    network: Path, inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(inputs / "small.jpg"), scene(20, 30))
    refused_with("same result file as small.jpg", [str(network), str(inputs)], capfd)


def test_a_network_with_a_batch_size_above_1_is_refused(
    tmp_path: Path, inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_network(tmp_path, batch=2)
    refused_with("input has 2 images of 3 channels: expected 1", [str(path), str(inputs)], capfd)


def test_ctrl_c_finishes_the_video(
    network: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, original = [], runner.draw

    def interrupted(*arguments: Any) -> Any:
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(1)
        return original(*arguments)

    monkeypatch.setattr(runner, "draw", interrupted)
    out = tmp_path / "drawn.mp4"
    clip = str(inputs.parent / "clip.avi")
    assert runner.main([str(network), clip, "--cpu", "--out", str(out)]) == 130
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    video.release()
