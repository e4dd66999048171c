"""Commands of docs/serving.md and export/serving, run as they stand there but for the port."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from ccfnet_tf.serving.server import DevelopmentServer
from tests.serving.served import NAMES, Exported, picture, png

ROOT = Path(__file__).resolve().parents[2]
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def run(command: str, server: DevelopmentServer, folder: Path) -> str:
    port = server.rest.split("/")[2].split(":")[1]
    here = re.sub(r"(?<=127\.0\.0\.1[:/])8501", port, command)
    done = subprocess.run(
        ["bash", "-c", here], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def commands_with_curl() -> list[str]:
    text = (ROOT / "docs" / "serving.md").read_text()
    part = text.split("## With curl")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n)+", part, re.M)
    return [re.sub(r"^    ", "", block, flags=re.M) for block in blocks]


@needs_curl
def test_curl_gets_what_is_predicted_locally(
    server: DevelopmentServer, exported: Exported, tmp_path: Path
) -> None:
    labels, classes = commands_with_curl()
    image = picture(40, 50)
    (tmp_path / "photo.jpg").write_bytes(png(image))  # the name does not count
    run(labels, server, tmp_path)
    found = cv2.imread(str(tmp_path / "labels.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, exported.local.predict(image).labels)
    answer = json.loads(run(classes, server, tmp_path))
    assert answer["predictions"][0]["names"] == list(NAMES)


def test_the_health_check_finds_the_model(server: DevelopmentServer, tmp_path: Path) -> None:
    compose = yaml.safe_load((ROOT / "export" / "serving" / "compose.yaml").read_text())
    *_, command = compose["services"]["ccfnet"]["healthcheck"]["test"]
    run(command, server, tmp_path)
    with pytest.raises(AssertionError):
        run(command.replace("/ccfnet ", "/other "), server, tmp_path)
