"""What `predict` is told to write, to leave out and to say."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.errors import ConfigError, ResourceError
from ccfnet_tf.inference.downscale import SmallerImages, parse_box
from ccfnet_tf.inference.find_inputs import find_jobs
from ccfnet_tf.inference.predict import Outcome, Wanted, parse_save, predict_all
from ccfnet_tf.inference.segmenter_protocol import Prediction
from ccfnet_tf.inference.writers import ENDINGS, KINDS
from tests.inference.by_brightness import ByBrightness

RAMP = np.repeat(np.linspace(0, 255, 120).astype(np.uint8)[None, :, None], 90, 0).repeat(3, 2)


def put(path: Path, image: np.ndarray = RAMP) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def run(
    source: Path, out: Path, wanted: Wanted | None = None, trained: tuple[int, int] | None = None
) -> tuple[Outcome, list[str], ByBrightness]:
    network = ByBrightness()
    console = Console(file=io.StringIO(), width=400)
    outcome = predict_all(
        network, [str(source)], out, wanted=wanted, trained=trained, console=console
    )
    return outcome, console.file.getvalue().splitlines(), network  # type: ignore[attr-defined]


def test_save_chooses_what_is_written(tmp_path: Path) -> None:
    source = put(tmp_path / "a.png")
    kinds, film = parse_save("risk_npy, label")
    assert not film
    outcome, _, _ = run(source, tmp_path / "out", Wanted(kinds=kinds, film=film))
    assert outcome.pictures == 1
    assert names(tmp_path / "out") == ["a.label.png", "a.risk.npy"]


@pytest.mark.parametrize("text", ["", " , ", "labels", "label,mask", "label overlay"])
def test_save_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--save .*expected some of label, color"):
        parse_save(text)


def test_every_kind_is_named_by_save() -> None:
    assert parse_save(",".join(ENDINGS) + ",film") == (tuple(ENDINGS), True)


def test_skip_existing_writes_what_is_missing_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    run(tmp_path / "in", out)
    (out / "a.label.png").write_text("mine")
    (out / "b.overlay.png").unlink()  # as a kill leaves it
    outcome, _, network = run(tmp_path / "in", out, Wanted(skip_existing=True))
    assert (outcome.pictures, outcome.skipped, outcome.failures) == (1, 2, ())
    assert len(network.seen) == 1
    assert (out / "a.label.png").read_text() == "mine"
    assert len(names(out)) == 3 * len(KINDS)


def test_skip_existing_asks_for_the_files_that_are_wanted(tmp_path: Path) -> None:
    source, out = put(tmp_path / "a.png"), tmp_path / "out"
    run(source, out)
    wanted = Wanted(kinds=("label", "difficulty_npy"), skip_existing=True)
    assert run(source, out, wanted)[0].pictures == 1
    assert run(source, out, wanted)[0].skipped == 1


def test_size_is_what_the_network_sees_and_results_keep_theirs(tmp_path: Path) -> None:
    source = put(tmp_path / "a.png")
    wanted = Wanted(legends=False, box=parse_box("60"))
    _, _, network = run(source, tmp_path / "out", wanted)
    assert network.seen == [(45, 60)]
    label = cv2.imread(str(tmp_path / "out" / "a.label.png"), cv2.IMREAD_UNCHANGED)
    assert label.shape == (90, 120)
    assert (label != np.minimum(RAMP[..., 0] // 85, 2)).mean() < 0.02


@pytest.mark.parametrize("maps", [False, True])
def test_smaller_pictures_stay_as_they_are(maps: bool) -> None:
    network = ByBrightness(maps=maps)
    smaller = SmallerImages(network, (90, 120))
    exact = ByBrightness().predict(RAMP)
    np.testing.assert_array_equal(smaller.predict(RAMP).labels, exact.labels)
    shrinking = SmallerImages(network, (40, 999))
    answer = shrinking.predict(RAMP)
    assert network.seen[-1] == (40, 53)
    assert (answer.labels.dtype, answer.difficulty.dtype) == (np.int32, np.float32)
    assert answer.labels.shape == answer.difficulty.shape == (90, 120)
    for name in ("attention", "difficulty"):
        np.testing.assert_allclose(getattr(answer, name), getattr(exact, name), atol=0.02)
    assert (answer.labels != exact.labels).mean() < 0.05
    small = network.predict(cv2.resize(RAMP, (53, 40), interpolation=cv2.INTER_AREA))
    if isinstance(small, Prediction):  # otherwise the risk of labels that are not interpolated
        probabilities = cv2.resize(small.probabilities, (120, 90))
        np.testing.assert_allclose(answer.risk, 1 - probabilities.max(-1), atol=1e-6)


@pytest.mark.parametrize("text", ["", "0", "31", "-5", "1e3", "640x", "10x640", "1x2x3", "٣٢٠"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--size is"):
        parse_box(text)


def test_pictures_far_larger_than_those_of_training_are_said_once(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "b.png")
    said = run(tmp_path / "in", tmp_path / "1", trained=(40, 50))[1]
    (line,) = (line for line in said if "warning" in line)
    assert "a.png: 120x90 pixels" in line
    assert "at most 50x40" in line
    assert "--size 50" in line
    assert run(tmp_path / "in", tmp_path / "2", trained=(45, 60))[1] == []
    assert run(tmp_path / "in", tmp_path / "3")[1] == []


@pytest.mark.parametrize(("side", "lines"), [(50, 0), (119, 0), (120, 1), (640, 1)])
def test_a_size_that_shrinks_nothing_is_said_once(side: int, lines: int, tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "in" / "b.png")
    said = run(tmp_path / "in", tmp_path / "out", Wanted(box=(side, side)), trained=(20, 20))[1]
    assert len(said) == lines  # no advice to give --size to who gave it
    assert all("note: --size has no effect on a.png: its 120x90 pixels" in line for line in said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.heic", "HEIC is not supported: save it as JPEG or PNG"),
        ("a.HEIF", "HEIC is not supported"),
        ("a.nef", "raw files are not supported"),
        ("a.psd", "not supported: save it as JPEG or PNG"),
    ],
)
@pytest.mark.parametrize("how", ["folder", "file", "glob"])
def test_pictures_that_cannot_be_read_are_named(
    name: str, said: str, how: str, tmp_path: Path
) -> None:
    put(tmp_path / "in" / "b.png")
    (tmp_path / "in" / name).write_bytes(b"\0\0\0\x18ftypheic")
    given = {"folder": "in", "file": f"in/{name}", "glob": "in/*"}[how]
    outcome = run(tmp_path / given, tmp_path / "out")[0]
    (failure,) = outcome.failures
    assert failure.source == str(tmp_path / "in" / name)
    assert said in failure.reason
    assert outcome.pictures == (how != "file")


def test_avif_and_other_names_of_known_kinds_are_read(tmp_path: Path) -> None:
    every = ["a.avif", "b.jfif", "c.JPE", "d.tga", "e.jp2", "f.pnm", "g.apng"]
    for name in every:
        form = {"jfif": "JPEG", "jpe": "JPEG", "apng": "PNG"}.get(name.split(".")[1].lower())
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(RAMP).save(tmp_path / "in" / name, format=form)
    outcome = run(tmp_path / "in", tmp_path / "out")[0]
    assert (outcome.pictures, outcome.failures) == (len(every), ())


def test_a_picture_under_another_name_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png")
    shutil.copy(tmp_path / "in" / "a.png", tmp_path / "in" / "IMG_0001")
    (tmp_path / "in" / "notes.txt").write_text("none")
    outcome = run(tmp_path / "in", tmp_path / "out")[0]
    (failure,) = outcome.failures
    assert "is a PNG image by its content" in failure.reason
    assert outcome.others == {".txt": 1}


def test_a_link_to_a_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.png")
    put(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    (failure,) = run(tmp_path / "in", tmp_path / "out")[0].failures
    assert "link to a folder" in failure.reason


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tiff", "a.apng"])
def test_frames_that_are_left_out_are_named(name: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.roll(RAMP, 9 * n, 1)) for n in range(3)]
    form = "PNG" if name.endswith("apng") else None
    frames[0].save(tmp_path / name, format=form, save_all=True, append_images=frames[1:])
    outcome = run(tmp_path / name, tmp_path / "out")[0]
    (failure,) = outcome.failures
    assert "3 frames or pages, and only the first was labelled" in failure.reason
    assert outcome.pictures == 1


def test_smaller_copies_in_a_file_are_no_frames(tmp_path: Path) -> None:
    pages = [Image.fromarray(RAMP), Image.fromarray(RAMP[::2, ::2])]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "b.jpg", format="MPO", save_all=True, append_images=pages[:1])
    (tmp_path / "in").mkdir()
    for name in ("a.tiff", "b.jpg"):
        (tmp_path / name).rename(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out")[0].failures == ()


def test_a_folder_that_cannot_be_made_is_refused_before_the_network(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def never() -> ByBrightness:
        raise AssertionError

    with pytest.raises(ResourceError, match="is a file, expected a folder"):
        predict_all(never, [str(put(tmp_path / "a.png"))], tmp_path / "file" / "deep" / "er")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("camera:0", "camera_0"),
        ("rtsp://user:secret@10.0.0.7:554/live/front?x=1", "front"),
        ("http://cam.local/video.mjpg", "video"),
        ("rtsp://10.0.0.7:554", "10.0.0.7_554"),
        ("rtsp://user:se/c#r?e@t@10.0.0.7", "10.0.0.7"),
    ],
)
def test_streams_are_videos_with_a_name(text: str, name: str) -> None:
    (job,) = find_jobs([text], Path("nowhere")).jobs
    assert (job.source, job.is_video) == (text, True)
    assert job.name.startswith(name)


@pytest.mark.parametrize("text", ["0", "2", "/dev/video2"])
def test_a_camera_as_others_name_it_is_told_how_it_is_named_here(text: str, tmp_path: Path) -> None:
    found = find_jobs([text], tmp_path)
    assert found.jobs == []
    (failure,) = found.failures
    assert failure.source == text
    assert failure.reason == f"a camera is given by its number: camera:{text[-1]}"


def test_a_folder_whose_name_is_a_number_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    assert [job.name for job in find_jobs(["0"], tmp_path / "out").jobs] == ["a"]


@pytest.mark.parametrize("text", ["camera:", "camera:x", "ftp://a/b", "foo://a"])
def test_what_is_no_stream_is_a_failure(text: str) -> None:
    found = find_jobs([text], Path("nowhere"))
    assert found.jobs == []
    assert "expected" in found.failures[0].reason
