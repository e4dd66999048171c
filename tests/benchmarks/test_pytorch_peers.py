from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import REPOSITORY, pytorch_peers
from benchmarks.pytorch_peers import Timed
from ccfnet_tf.errors import EXIT_USER_ERROR, ConfigError, ResourceError

FOLDER = Path(pytorch_peers.__file__).parent

SIDE = """\
import json, sys
print(json.dumps({"versions": {"torch": "2"}, "gmac": {"PSPNet": 20.0}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["phase"] == "inference":
        sys.exit("memory ran out")
    print(json.dumps({"seconds": 3.0 if asked["precision"] == "float32" else 1.5}), flush=True)
"""


def test_a_missing_environment_is_one_line_with_the_fix(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pytorch_peers"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert (done.returncode, done.stderr.count("\n")) == (EXIT_USER_ERROR, 1)
    assert done.stderr.startswith("peers: .venv-peers/bin/python: no such file: create")


def test_an_environment_without_torch_is_named(tmp_path: Path) -> None:
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-P", str(FOLDER / "pytorch_peers_torch.py"), "{}"]
    with log, pytest.raises(ResourceError, match=r"python.*: exited with 1: .*'torch'"):
        pytorch_peers.Side(command, log)


def test_a_side_responds_to_each_request_and_its_exit_is_reported(tmp_path: Path) -> None:
    log = (tmp_path / "log").open("w+")
    with log:
        side = pytorch_peers.Side([sys.executable, "-c", SIDE], log)
        assert (side.versions, side.gmac) == ({"torch": "2"}, {"PSPNet": 20.0})
        assert side.seconds(Timed("PSPNet", 20.0, "training", "float32")) == 3.0
        assert side.seconds(Timed("PSPNet", 20.0, "training", "bfloat16")) == 1.5
        with pytest.raises(ResourceError, match="exited with 1: memory ran out"):
            side.seconds(Timed("PSPNet", 20.0, "inference", "float32"))
        side.close()


def test_time_per_gmac_is_compared(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = [
        Timed("CCFNet", 60.0, "training", "float32", 12.0),
        Timed("PSPNet", 20.0, "training", "float32", 5.0),
        Timed("PSPNet", 20.0, "inference", "float32", 0.8),
        Timed("CCFNet", 60.0, "inference", "float32", 3.0),
    ]
    ratios = [pytorch_peers.relative_to_ccfnet(timed, measured) for timed in measured]
    assert ratios == pytest.approx([1.0, 1.25, 0.8, 1.0])
    from rich.console import Console

    Console(width=80).print(pytorch_peers.table(measured, 240, 4))
    printed = capsys.readouterr().out
    assert [cell.strip() for cell in _row(printed, "PSPNet")] == [
        "training float32",
        "PSPNet",
        "20.0",
        "1250",
        "62.50",
        "1.25",
    ]
    options = pytorch_peers._parse(["--batch", "4"])
    tree = pytorch_peers.as_json(measured, {"torch": "2"}, options)
    assert json.loads(json.dumps(tree))["speeds"][1]["ms_per_gmac"] == 62.5


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--size", "241"], "--size is 241: it must be a multiple of 8"),
        (["--batch", "1"], "--batch is 1: it must be 2 or more"),
        (["--rounds", "0"], "--rounds is 0"),
    ],
)
def test_invalid_arguments_are_refused(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pytorch_peers.main(args)


def test_the_torch_side_does_not_import_this_package() -> None:
    tree = ast.parse((FOLDER / "pytorch_peers_torch.py").read_text())
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    first = {name.split(".")[0] for name in names}
    assert first - set(sys.stdlib_module_names) == {"torch", "segmentation_models_pytorch"}


def _row(printed: str, name: str) -> list[str]:
    return next(line for line in printed.splitlines() if name in line).split("│")[1:-1]
