from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccfnet_tf.benchmark import speed
from ccfnet_tf.benchmark.flops import Cost
from ccfnet_tf.benchmark.speed import Benchmark, Speed
from ccfnet_tf.cli import benchmark
from ccfnet_tf.cli import main as cli
from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR
from ccfnet_tf.training.check_data import RunData


@pytest.fixture
def tiny_run(tmp_path: Path) -> Path:
    """A run folder without any training."""
    run = tmp_path / "run"
    run.mkdir()
    config = RunConfig(
        data=DataConfig(format="scenes", scenes=10, scene_size=(40, 40), crop=33),
        model=ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4),
        train=TrainConfig(batch=2),
    )
    (run / "config.yaml").write_text(to_yaml(config))
    (run / "classes.json").write_text('{"names": ["a", "b"], "palette": [[0, 0, 0], [9, 9, 9]]}')
    return run


@pytest.mark.parametrize("network", ["toy", pytest.param("real", marks=pytest.mark.slow)])
def test_a_run_is_measured_in_one_table_and_one_file(
    network: str,
    tiny_run: Path,
    toy: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def build_toy(_: RunConfig, __: Any, data: RunData, *___: Any, fresh: bool) -> Any:
        assert not fresh
        model = toy(len(data.parts.taxonomy.names))
        model.compile("sgd")
        return model

    if network == "toy":
        monkeypatch.setattr(speed, "build_model", build_toy)
    monkeypatch.setattr(speed, "PRODUCT_SIDE", {"CPU": 64, "GPU": 64})
    monkeypatch.setattr(speed, "MIN_NATIVE_SPEEDUP", 1e9)  # Only float32: each takes seconds.
    file = tiny_run / "speed.json"
    args = ["benchmark", str(tiny_run), "--size", "41", "--rounds", "1", "--json", str(file)]
    assert cli.main(args) == EXIT_DONE
    printed = capsys.readouterr().out
    assert f"{tiny_run}: mobilenet_v2, 41x41 pixels, 2 images per step" in printed
    assert "training float32" in printed
    assert "left out: float16: matrix products reach" in printed

    tree = json.loads(file.read_text())
    assert (tree["size"], tree["batch"], tree["rounds"]) == (41, 2, 1)
    parts = tree["gmac"]
    assert parts.pop("sum") == pytest.approx(sum(parts.values()))
    assert set(parts) == {"backbone", "coarse", "attention", "fine"}
    assert set(tree["left_out"]) == {"bfloat16", "float16"}
    training, inference = tree["speeds"]
    assert (training["phase"], inference["phase"]) == ("training", "inference")
    for row, ways in ((training, 3), (inference, 1)):
        seconds = row["ms_an_image"] / 1000
        assert row["gflops"] == pytest.approx(2 * ways * sum(parts.values()) / seconds)
        assert row["share_of_matmul"] == pytest.approx(row["gflops"] / row["matmul_gflops"])
        assert row["peak_memory_mb"] > 100
    assert 0 <= training["waiting_share"] < 1
    assert training["ms_an_image_while_reading"] > 0
    assert inference["waiting_share"] is None
    assert not (tiny_run / "checkpoints").exists()


def test_precisions_that_gain_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PRODUCT_SIDE", {"CPU": 64, "GPU": 64})
    monkeypatch.setattr(speed, "MIN_NATIVE_SPEEDUP", 0.0)
    products, left_out = speed._products()
    assert (list(products), left_out) == (["float32", "bfloat16", "float16"], {})
    monkeypatch.setattr(speed, "MIN_NATIVE_SPEEDUP", 1e9)
    products, left_out = speed._products()
    assert (list(products), list(left_out)) == (["float32"], ["bfloat16", "float16"])


def test_the_table_fits_a_narrow_terminal_and_counts_training_thrice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    training = Speed("training", "bfloat16", 12.0, 12345.6, 13.0, stepped=30.0, waited=10.0)
    inference = Speed("inference", "bfloat16", 4.0, 2345.6)
    measured = Benchmark(
        241, 2, 3, Cost(20.0, 10.0, 10.0, 20.0), [training, inference], {"bfloat16": 120.0}
    )
    assert measured.gflops(training) == pytest.approx(2 * 3 * 60 * 2 / 12)
    assert measured.gflops(inference) == pytest.approx(2 * 60 * 2 / 4)
    from rich.console import Console

    Console(width=80).print(benchmark.table("the paper's form", benchmark.PAPER, measured))
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if "float16" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["training bfloat16", "6000", "60 of 120", "50%", "12346", "6500", "25.0%"],
        ["inference bfloat16", "2000", "60 of 120", "50%", "2346", "", ""],
    ]
    assert "backbone 20 + coarse 10 + attention 10 + fine 20 = 60" in printed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["no/such/run"], "no/such/run: no such folder"),
        (["--rounds", "0"], "--rounds is 0: it must be 1 or more"),
        (["--batch", "0"], "--batch is 0: it must be 1 or more"),
        (["--size", "8"], "--size is 8: the network needs at least 32"),
        (["--size", "40x50"], "--size is 40x50: a single run is trained on square crops"),
        (["--size", "0x9", "--compare"], "--size is 0x9: both sides must be 1 or more"),
        (["--size", "a"], "--size is 'a': expected HEIGHTxWIDTH, such as 240x320"),
        (["--json", "no/such/folder/x.json"], "--json no/such/folder/x.json: it must be a file"),
        (["--json", "."], "--json .: it must be a file"),
        (["--batches", "3"], "unrecognized arguments: --batches"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["benchmark", *args]) == EXIT_USER_ERROR
    output = capsys.readouterr().err
    assert message in output
    assert output.count("\n") == 1


def test_help_says_what_is_measured_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "--help"])
    assert "network of the paper" in " ".join(capsys.readouterr().out.split())
