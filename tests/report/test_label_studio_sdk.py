"""Label Studio's own package accepts the configuration and the tasks, and decodes the masks.

`make test-label-studio` installs label-studio-sdk and runs this file.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from ccfnet_tf.inference.feature_network import View
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.report.rank_images import Ranking, write_ranking
from ccfnet_tf.report.ranking_files import CONFIGURATION, TASKS, Ranked
from tests.inference.conftest import write_picture

# The package is not ours, and neither are the warnings that it raises when it is imported.
pytestmark = pytest.mark.filterwarnings("default")

NAMES = ("sky", 'a "b" & <c>', "sea", "never predicted")
TAXONOMY = Taxonomy(NAMES, ((1, 2, 3), (255, 0, 16), (0, 128, 255), (9, 9, 9)))
SIZES = {"a.png": (12, 20), "été/b.png": (40, 33), "one class.png": (300, 200)}


def labels_of(size: tuple[int, int]) -> np.ndarray:
    if size == SIZES["one class.png"]:
        return np.full(size, 2, np.int32)
    return np.random.default_rng(size[0]).choice(3, size).astype(np.int32)


class Labelled:
    """A network that predicts `labels_of`."""

    def view(self, image: np.ndarray) -> View:
        """Labels every pixel."""
        size = (image.shape[0], image.shape[1])
        return View(labels_of(size), np.zeros(size, np.float32), np.ones(3, np.float32))


@pytest.fixture
def sdk() -> SimpleNamespace:
    """The parts of label-studio-sdk that the tests use."""
    reason = "label-studio-sdk is not installed: make test-label-studio runs this test"
    pytest.importorskip("label_studio_sdk", reason=reason)
    names = ("label_interface", "converter", "converter.brush")
    interface, converter, brush = (import_module(f"label_studio_sdk.{name}") for name in names)
    return SimpleNamespace(
        LabelInterface=interface.LabelInterface,
        Converter=converter.Converter,
        decode=brush.decode_from_annotation,
    )


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The folder that `rank` writes."""
    ranked = [
        Ranked(path, 1.0 - position / 4, np.array([0.5, 0.0, 2.5, 0.0]), 0.25, ())
        for position, path in enumerate(SIZES)
    ]
    for path, size in SIZES.items():
        write_picture(tmp_path / "pool" / path, np.zeros((*size, 3), np.uint8))
    write_ranking(
        Ranking(tmp_path / "pool", tuple(ranked), len(ranked), 0, ()),
        Labelled(),  # type: ignore[arg-type]
        TAXONOMY,
        tmp_path / "out",
        model="run",
        prefix="/data/local-files/?d=pool/",
        console=Console(quiet=True),
    )
    return tmp_path / "out"


def test_the_sdk_accepts_configuration_and_tasks(sdk: SimpleNamespace, written: Path) -> None:
    interface = sdk.LabelInterface((written / CONFIGURATION).read_text(encoding="utf-8"))
    interface.validate()
    tasks = json.loads((written / TASKS).read_text(encoding="utf-8"))
    assert len(tasks) == len(SIZES)
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        (prediction,) = task["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
    prediction["result"][0]["value"]["brushlabels"] = ["no class"]  # so it does look at them
    assert not interface.validate_prediction(prediction)


def test_the_converter_of_the_sdk_decodes_the_predicted_labels(
    sdk: SimpleNamespace, written: Path
) -> None:
    configuration = (written / CONFIGURATION).read_text(encoding="utf-8")
    converter = sdk.Converter(configuration, project_dir=None)
    tasks = json.loads((written / TASKS).read_text(encoding="utf-8"))
    for number, (task, size) in enumerate(zip(tasks, SIZES.values(), strict=True)):
        # What a click on Submit makes of the prediction.
        accepted = [{"id": number, **prediction} for prediction in task["predictions"]]
        task |= {"id": number, "annotations": accepted}
        (item,) = converter.annotation_result_from_task(task)
        ((name, regions),) = item["output"].items()
        labels = np.full(size, -1)
        for layer, mask in sdk.decode(name, regions).items():
            assert set(np.unique(mask)) <= {0, 255}
            assert (labels[mask > 0] == -1).all()  # no two masks overlap
            labels[mask > 0] = NAMES.index(layer.removeprefix(f"{name}-").removesuffix("-0"))
        np.testing.assert_array_equal(labels, labels_of(size))
