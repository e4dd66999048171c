"""`calibrate` on a toy network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.cli import main as cli
from ccfnet_tf.runs.calibration_file import CALIBRATION
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
