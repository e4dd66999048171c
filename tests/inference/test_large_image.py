"""The memory of a real network on a large image."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.memory import peak_of

LIMIT = 4 * 10**9

# Smooth noise; random weights; the files that `predict` writes without --save.
LARGE = """
import sys
from pathlib import Path
from ccfnet_tf.inference.keras_network import KerasNetwork
from ccfnet_tf.inference.predict import Wanted, predict_all
from ccfnet_tf.inference.tiles import Tiling
from ccfnet_tf.inference.wrap_segmenter import Wrapping
from ccfnet_tf.network.ccfnet import build_ccfnet
from tests.inference.local_network import noise
from PIL import Image

folder, classes = Path(sys.argv[1]), int(sys.argv[2])
Image.fromarray(noise(4000, 6000)).save(folder / "large.png", compress_level=1)
model = build_ccfnet(
    classes, backbone="mobilenet_v2", backbone_weights=None, head_channels=8,
    attention_input="features_and_coarse", fine_input="pyramid_and_detail",
)
wanted = Wanted(wrapping=Wrapping(tiling=Tiling(512, 0.25)))
given = [str(folder / "large.png")]
outcome = predict_all(KerasNetwork(model), given, folder / "out", wanted=wanted)
assert outcome.pictures == 1, outcome
print(Path("/proc/self/status").read_text())
"""


@pytest.mark.slow
@pytest.mark.parametrize("classes", [8, 33])
def test_an_image_of_24_million_pixels_takes_less_than_4_gb(
    classes: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Probabilities of all of it would be 0.8 GB for 8 classes, 3.2 GB for 33, in each head."""
    command = [sys.executable, "-c", LARGE, str(tmp_path), str(classes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert ended.returncode == 0, ended.stderr
    record_property("peak", f"{peak_of(ended.stdout) / 1e9:.2f} GB for {classes} classes")
    assert peak_of(ended.stdout) < LIMIT
    assert len(list((tmp_path / "out").iterdir())) == 4
