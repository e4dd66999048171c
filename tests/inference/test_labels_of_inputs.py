"""Predictions that abstain are compared with the labels of images that belong to a data set."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.inference.labels_of_inputs import Known, LabelsOfInputs
from ccfnet_tf.inference.predict import Outcome, Wanted, predict_all
from ccfnet_tf.labels import VOID, Sample, Taxonomy
from tests.inference.by_brightness import TAXONOMY
from tests.inference.test_abstain import RAMP, Risky

LABEL = (RAMP[..., 0] // 85).astype(np.uint8).clip(0, 2)
"""What `Risky` predicts; pixels up to grey 127 are kept at a threshold of .5."""


def data_set(root: Path, *, wrong_rows: int = 10, classes: Sequence[str] = TAXONOMY.names) -> Path:
    """Writes a set in the layout `folder`: one image per split, labels wrong in the first rows."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    label = LABEL.copy()
    label[:wrong_rows] = (label[:wrong_rows] + 1) % 3
    label[-10:] = 255
    for split in ("train", "test"):
        for side, pixels, suffix in (("images", RAMP, "png"), ("masks", label, "png")):
            (root / split / side).mkdir(parents=True)
            Image.fromarray(pixels).save(root / split / side / f"{split}.{suffix}")
    return root


def predict(inputs: Sequence[Path], out: Path, known: Known | None = None) -> tuple[str, Outcome]:
    file = io.StringIO()
    outcome = predict_all(
        Risky(),
        [str(path) for path in inputs],
        out,
        wanted=Wanted(kinds=("label",), abstain_above=0.5),
        known=known,
        errors=Console(file=file, width=1000),
    )
    return file.getvalue(), outcome


@pytest.mark.parametrize("given", [".", "test", "test/images", "test/images/test.png"])
def test_accuracy_of_what_is_kept_is_counted_over_labelled_pixels(
    tmp_path: Path, given: str
) -> None:
    root = data_set(tmp_path / "set")
    said, outcome = predict([root / given], tmp_path / "out")
    assert said == ""
    assert outcome.compared == (2 if given == "." else 1)
    assert outcome.accuracy == pytest.approx(20 / 30)  # 10 of 40 rows wrong, 10 void
    assert outcome.coverage == (RAMP[..., 0] / 255 <= 0.5).mean()


def test_images_without_labels_count_for_the_coverage_alone(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.full_like(RAMP, 255)).save(tmp_path / "photos" / "bright.png")
    said, outcome = predict([root / "test", tmp_path / "photos"], tmp_path / "out")
    assert said == ""
    assert outcome.compared == 1
    assert outcome.accuracy == pytest.approx(20 / 30)
    assert outcome.coverage == (RAMP[..., 0] / 255 <= 0.5).mean() / 2


def test_without_a_data_set_nothing_is_compared(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    said, outcome = predict([tmp_path / "a.png"], tmp_path / "out")
    assert (said, outcome.accuracy, outcome.compared) == ("", None, 0)


def test_other_classes_are_not_compared(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", classes=("dark", "light", "grey"))
    said, outcome = predict([root / "test"], tmp_path / "out")
    assert outcome.accuracy is None
    assert said == (
        f"note: labels are not compared: {root}: its classes (dark, light, grey) are not those of "
        "the network (dark, grey, light)\n"
    )


def test_the_label_map_of_the_run_is_applied(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", wrong_rows=0, classes=("black", "grey", "white"))
    (tmp_path / "map.yaml").write_text("dark: [black]\ngrey: [grey]\nlight: [white]\n")
    data = DataConfig(root="/moved", label_map=str(tmp_path / "map.yaml"), lists="/moved/lists")
    said, outcome = predict([root / "test"], tmp_path / "out", Known(data, ()))
    assert (said, outcome.accuracy) == ("", 1.0)


def test_a_set_that_already_has_the_classes_needs_no_label_map(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", wrong_rows=0)
    (tmp_path / "map.yaml").write_text("dark: [black]\ngrey: [grey]\nlight: [white]\n")
    data = DataConfig(root="/moved", label_map=str(tmp_path / "map.yaml"), mask_values={7: "mud"})
    said, outcome = predict([root / "test"], tmp_path / "out", Known(data, ()))
    assert (said, outcome.accuracy) == ("", 1.0)


def test_the_data_set_of_the_run_may_have_any_layout(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for folder, pixels in (("train", RAMP), ("trainannot", LABEL)):
        (root / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(root / folder / "a.png")
    (root / "classes.txt").write_text("dark\ngrey\nlight\n")
    known = Known(DataConfig(root=str(root), format="camvid"), ())
    said, outcome = predict([root / "train"], tmp_path / "out", known)
    assert (said, outcome.accuracy) == ("", 1.0)
    said, outcome = predict([root / "train"], tmp_path / "others")  # an export does not know it
    assert (said, outcome.compared) == ("", 0)


def test_folders_above_the_data_set_are_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.json").write_text('{"shapes": [], "imagePath": "a.png"}')
    for name in ("val", "valannot", "valid", "validannot", "photos/images", "photos/masks"):
        (tmp_path / name).mkdir(parents=True)
    Image.fromarray(RAMP).save(tmp_path / "photos" / "images" / "a.png")
    said, outcome = predict([tmp_path / "photos"], tmp_path / "out")
    assert (said, outcome.compared) == ("", 0)


def test_a_label_that_cannot_be_read_is_said_and_left_out(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    (root / "train" / "masks" / "train.png").write_bytes(b"no image")
    said, outcome = predict([root], tmp_path / "out")
    assert said.startswith(f"note: {root}/train/images/train.png: its label is not compared: ")
    assert outcome.compared == 1
    assert outcome.failures == ()


def test_a_label_of_another_size_is_said_and_left_out(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    Image.fromarray(LABEL[:, :100]).save(root / "test" / "masks" / "test.png")
    said, outcome = predict([root / "test"], tmp_path / "out")
    assert said == (
        f"note: {root}/test/images/test.png: its label is not compared: it has 100x40 pixels, the "
        "image 120x40\n"
    )
    assert (outcome.accuracy, outcome.compared) == (None, 0)


def test_many_labels_that_cannot_be_compared_are_one_note(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    for split in ("train", "test"):
        Image.fromarray(LABEL[:, :100]).save(root / split / "masks" / f"{split}.png")
    said, _ = predict([root], tmp_path / "out")
    assert said.count("\n") == 1
    assert said.endswith("the image 120x40 (and 1 more such notes)\n")


def test_a_pixel_that_lost_its_label_is_neither_right_nor_wrong(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", wrong_rows=0)
    image = root / "test" / "images" / "test.png"
    labels = LabelsOfInputs([image], TAXONOMY, None)
    labels.count(image, np.full(LABEL.shape, VOID, np.int32))
    assert (labels.images, labels.kept, labels.accuracy) == (1, 0, None)
    labels.count(tmp_path / "other.png", LABEL.astype(np.int32))
    assert labels.images == 1


def test_a_linked_image_is_found(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen" / "a.png").symlink_to(root / "test" / "images" / "test.png")
    said, outcome = predict([tmp_path / "chosen"], tmp_path / "out")
    assert (said, outcome.compared) == ("", 1)


def test_the_sample_of_the_repository_is_compared(tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "data" / "sample"
    shutil.copytree(sample, tmp_path / "sample")
    names = tuple((sample / "classes.txt").read_text().split())
    taxonomy = Taxonomy(names, tuple((k, k, k) for k in range(len(names))))
    images = sorted((tmp_path / "sample").glob("*/images/*"))
    labels = LabelsOfInputs(images, taxonomy, None)
    for image in images:
        with Image.open(image) as opened:
            labels.count(image, np.zeros(opened.size[::-1], np.int32))
    assert labels.problems == []
    assert labels.images == len(images) == 12
    assert 0 < (labels.accuracy or 0) < 1


def test_training_images_are_counted(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set")
    trained = [fingerprint(Sample("", str(root / "train" / "images" / "train.png"), ""))]
    other = root / "test" / "images" / "test.png"
    other.write_bytes(other.read_bytes() + b"0")  # both splits have the same image otherwise
    known = Known(DataConfig(root=str(root)), trained)
    _, outcome = predict([root], tmp_path / "out", known)
    assert (outcome.compared, outcome.trained) == (2, 1)
