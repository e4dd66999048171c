"""`calibrate` on a toy network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.datasets.samples import fingerprint
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.labels import Sample
from ccfnet_tf.network import ccfnet
from ccfnet_tf.network.heads import HardGate
from ccfnet_tf.network.labels_and_maps import hard_threshold
from ccfnet_tf.runs.calibration_file import CALIBRATION
from ccfnet_tf.runs.run_folder import load_run
from ccfnet_tf.training.data_digest import Row, write_digest
from tests.cli.conftest import write_weights


def test_weights_that_were_trained_on_are_calibrated_again(
    run: Path, toy: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["calibrate", str(run)]) == 0
    first = json.loads((run / CALIBRATION).read_text())
    write_weights(run, toy(3), seed=2)
    assert cli.main(["evaluate", str(run)]) == 2
    assert "run `ccfnet-tf calibrate` again" in capsys.readouterr().err
    assert cli.main(["calibrate", str(run)]) == 0
    second = json.loads((run / CALIBRATION).read_text())
    assert second["sha256"] != first["sha256"]
    # What the calibration is fitted to does not depend on the one that was there.
    (run / CALIBRATION).write_text("damaged")
    assert cli.main(["calibrate", str(run)]) == 0
    assert json.loads((run / CALIBRATION).read_text()) == second


def test_validation_images_that_were_trained_on_are_warned_of(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = (run.parent / "data" / "train" / "images").iterdir()  # one is for validation
    rows = [Row("x", fingerprint(Sample("", str(image), "")), "") for image in images]
    write_digest(run, {"train": [], "val": [], "earlier": rows})
    assert cli.main(["calibrate", str(run)]) == 0
    assert f"before {run} (model.init_from, or data" in (printed := capsys.readouterr().err)
    assert "has seen 1 of the 1 images to calibrate on" in printed
    assert "the risk of new images will be too low" in printed


def test_the_threshold_of_a_hard_blend_is_chosen_on_the_validation_split(
    run: Path, toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gates: list[HardGate] = []

    def build(classes: int, **_: Any) -> Any:
        gates.append(HardGate(0.999, name="gate"))
        return toy(classes, gate=gates[-1])

    monkeypatch.setattr(ccfnet, "build_ccfnet", build)
    write_weights(run, toy(3), seed=3, scale=0.03)  # attention is not certain everywhere
    assert cli.main(["calibrate", str(run)]) == 0
    threshold = json.loads((run / CALIBRATION).read_text())["blend_threshold"]
    assert 0.001 < threshold < 0.9
    assert cli.main(["evaluate", str(run), "--split", "val"]) == 0
    measured = json.loads((run / "evaluation.json").read_text())
    ious = [point["mean_iou"] for point in measured["switch"]["attention"]]
    assert measured["refine"]["mean_iou"] == pytest.approx(max(ious))
    assert max(ious) > max(measured[head]["mean_iou"] for head in ("coarse", "fine"))
    # Whatever loads the run uses the threshold: predictions, exports, servers.
    network, model = KerasNetwork(run), load_run(run)
    limit = np.log(threshold / (1 - threshold))
    assert network.hard_threshold == hard_threshold(model) == pytest.approx(limit)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    heads = network.head_outputs(image)
    branch = np.where((heads.attention > limit)[..., None], heads.fine, heads.coarse)
    np.testing.assert_allclose(np.exp(heads.refine), np.exp(branch), atol=1e-5)
    # It is fitted anew from the threshold of the configuration.
    (run / CALIBRATION).write_text("damaged")
    assert cli.main(["calibrate", str(run)]) == 0
    assert json.loads((run / CALIBRATION).read_text())["blend_threshold"] == threshold
