from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.tile_seams import Seams, main, seams, table
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.inference.segmenter_protocol import HeadOutputs
from ccfnet_tf.inference.tiles import Tiling
from tests.inference.local_network import LocalCascade, noise


def test_a_network_that_sees_less_than_the_overlap_has_no_seams() -> None:
    image, network = noise(300, 411), LocalCascade(radius=16)
    found = seams(image, network, Tiling(128, 0.5), network.head_outputs(image))
    assert found.tiles == 4 * 6
    assert found.other_labels < 1e-3
    assert max(found.at_joins, found.elsewhere) < 1e-5
    assert found.steps == pytest.approx(1.0, abs=1e-3)


def test_a_network_that_sees_its_border_has_seams_at_the_joins() -> None:
    """Attention is higher within 40 pixels of the border of what the network is given."""

    class Bordered(LocalCascade):
        def head_outputs(self, image: np.ndarray, /) -> HeadOutputs:
            inside = np.zeros(image.shape[:2], bool)
            inside[40:-40, 40:-40] = True
            outputs = super().head_outputs(image)
            border = np.where(inside, np.float32(-2), np.float32(2))
            return outputs._replace(attention=border + outputs.attention / 100)

    image = noise(448, 448)
    network = Bordered()
    whole = network.head_outputs(image)
    narrow, wide = (seams(image, network, Tiling(256, share), whole) for share in (0.25, 0.5))
    assert narrow.at_joins > 3 * narrow.elsewhere
    assert max(wide.at_joins, wide.elsewhere) < 1e-6
    assert narrow.steps > 3
    assert wide.steps == pytest.approx(1.0, abs=1e-3)
    assert max(narrow.other_labels, wide.other_labels) < 1e-3


def test_the_table_has_means_over_images() -> None:
    images = [Seams(12, 0.01, 0.02, 0.005, 1.5), Seams(12, 0.03, 0.04, 0.007, 2.5)]
    head, _, row = table({Tiling(512, 0.375): images})
    assert head.startswith("| tile | overlap | tiles |")
    assert row == "| 512 | 0.375 | 12 | 2.00 % | 0.0300 | 0.0060 | 2.00 |"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "0"], "--images is 0: expected a number from 1"),
        (["--enlarge", "0"], "--enlarge is 0"),
        (["--tile", "8"], "--tile is '8'"),
        (["--overlaps", "0.9"], r"--overlap is '0\.9'"),
    ],
)
def test_wrong_options_are_refused(options: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        main([str(tmp_path), *options])


def test_a_run_is_measured(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--images", "1", "--enlarge", "2", "--tile", "64", "--overlaps", "0.25", "0.5"]
    assert main([str(run), *options]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split(" | ")[:2] for row in rows[2:]] == [["| 64", "0.25"], ["| 64", "0.5"]]
    with pytest.raises(ConfigError, match="is not cut: make --tile smaller or --enlarge larger"):
        main([str(run), "--images", "1"])
