"""Gradient soak: differing gradients are counted per variable and reported."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import gradient_soak
from benchmarks.gradient_soak import NO_AMX, Setting, matrix
from benchmarks.gradient_soak_process import REMEDIES, RepeatedStep, repeat, set_gradients
from benchmarks.onednn_log import Log
from ccfnet_tf.errors import EXIT_DONE, EXIT_FINDINGS, ConfigError, RunError
from ccfnet_tf.network import fast_layers
from ccfnet_tf.network.fast_layers import Conv

CLASSES = 3
FAULTY = "fine_logits/kernel"

LINES = """\
onednn_verbose,v1,info,oneDNN v3.7.3 (commit N/A)
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with Intel AMX
onednn_verbose,v1,primitive,info,template:operation,engine,primitive,implementation,prop_kind
{"step": 1}
onednn_verbose,v1,primitive,exec,cpu,convolution,brgconv_bwd_w:avx512_core_amx,backward_weights,\
src_bf16:a:blocked:acdb::f0,attr-scratchpad:user,alg:convolution_direct,\
mb8_ic168oc128_ih61oh61kh3sh1dh0ph1_iw61ow61kw3sw1dw0pw1,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,jit_1x1:avx2,backward_weights,\
src_f32:a:blocked:acdb::f0,attr-scratchpad:user,alg:convolution_direct,\
mb8_ic9oc8_ih61oh61kh1sh1dh0ph0_iw61ow61kw1sw1dw0pw0,0.5
onednn_verbose,v1,primitive,exec,cpu,convolution,brgconv:avx512_core_amx,forward_training,\
src_bf16:a:blocked:acdb::f0,attr-scratchpad:user,alg:convolution_direct,\
mb8_ic168oc128_ih61oh61kh3sh1dh0ph1_iw61ow61kw3sw1dw0pw1,0.5
""".splitlines()


@pytest.fixture
def batch() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 33, 33, 3))
    return tf.constant(images, tf.float32), tf.constant(rng.integers(0, CLASSES, (2, 33, 33)))


@pytest.mark.slow
def test_a_fault_is_counted_under_its_variable(
    toy: Callable[..., Any], batch: tuple[tf.Tensor, tf.Tensor]
) -> None:
    model, repetition = toy(CLASSES), tf.Variable(-1)

    class Faulty(type(model)):  # type: ignore[misc]
        def _learn(self, *arguments: Any) -> Any:
            gradients, seen = super()._learn(*arguments)
            now = repetition.assign_add(1)
            index = [v.path for v in self.trainable_variables].index(FAULTY)
            bad = tf.where(now == 2, np.nan, tf.where(now == 4, 1.0, 0.0))
            shape = gradients[index].shape
            places = tf.scatter_nd([[1, 2, 5, 0]], bad[None], shape)
            gradients[index] += places
            return gradients, seen

    model.__class__ = Faulty
    model.compile(optimizer="adamw")
    reported: list[int] = []
    counted = repeat(RepeatedStep(model, batch), 20, reported.append)
    assert (counted.steps, counted.differ, counted.not_finite) == (20, 2, 1)
    assert counted.first_finite
    assert set(counted.variables) == {FAULTY}
    found = counted.variables[FAULTY]
    assert (found.differ, found.not_finite) == (2, 1)
    assert found.places == [[1], [2], [5], [0]]
    assert found.largest > 0
    assert reported == [10, 20]


@pytest.mark.slow
def test_every_repetition_is_a_complete_step_from_the_same_state(
    toy: Callable[..., Any], batch: tuple[tf.Tensor, tf.Tensor]
) -> None:
    model = toy(CLASSES)
    model.compile(optimizer="adamw")
    step = RepeatedStep(model, batch)
    before = [weight.copy() for weight in model.get_weights()]
    first = step.run()
    after = [weight.copy() for weight in model.get_weights()]
    assert any(
        (a != b).any() for a, b in zip(before, after, strict=True)
    )  # the weights were updated
    again = step.run()
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(after, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(step.names) == {*(v.path for v in model.trainable_variables), "loss"}


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("remedy", REMEDIES)
def test_every_remedy_has_the_same_gradient(remedy: Any, padding: str) -> None:
    rng = np.random.default_rng(0)
    shape = (3, 3, 41, 5)
    out = (2, 7, 61, 5)
    size = (2, 7, 61, 41) if padding == "SAME" else (2, 9, 63, 41)
    x, pull = (tf.constant(rng.normal(size=each), tf.float32) for each in (size, out))
    found, plain = (REMEDIES[name](x, shape, pull, padding, 1) for name in (remedy, "none"))
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-4)


def test_custom_gradients_can_be_disabled_and_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("own_gradients", "kernel_gradient"):  # restored after the test
        monkeypatch.setattr(fast_layers, name, getattr(fast_layers, name))
    layer = Conv(4, 3, padding="same", dtype="mixed_bfloat16")
    layer.build((1, 3, 61, 9))

    def widths(own: bool, remedy: Any) -> set[tuple[int, int]]:
        set_gradients(own=own, remedy=remedy)

        @tf.function
        def step(x: tf.Tensor) -> Any:
            with tf.GradientTape() as tape:
                output = layer(x, training=True)
            return tape.gradient(output, layer.trainable_variables[0].value)

        graph = step.get_concrete_function(tf.TensorSpec((1, 3, 61, 9), tf.bfloat16)).graph
        kind = "Conv2DBackpropFilter"
        inputs = [op.inputs[0].shape for op in graph.get_operations() if op.type == kind]
        return {(shape[2], shape[3]) for shape in inputs}

    assert widths(True, "columns") == {(64, 9)}
    assert widths(True, "none") == widths(False, "columns") == {(61, 9)}
    assert widths(True, "channels") == {(61, 32)}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc fills memory")
@pytest.mark.slow
def test_filled_memory_is_nan() -> None:
    program = (
        "import tensorflow as tf; from benchmarks.gradient_soak_process import fill_memory;"
        "fill_memory();"
        "new = [tf.raw_ops.Empty(shape=[n], dtype=tf.float32, init=False) for n in (99, 10**6)];"
        "print([bool(tf.reduce_all(tf.math.is_nan(each))) for each in new])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[True, True]\n", done.stderr


def test_only_lines_of_onednn_are_parsed() -> None:
    log = Log()
    assert [log.read(line) for line in LINES] == [not line.startswith("{") for line in LINES]
    assert (log.version, log.isa) == ("3.7.3", "Intel AVX-512 with Intel AMX")
    assert log.implementations == ["brgconv_bwd_w:avx512_core_amx"]
    (problem,) = log.kernels
    assert "ic168oc128_ih61" in problem


def test_the_matrix_limits_onednn_only_on_processors_with_amx() -> None:
    with_amx, without = matrix(["avx512f", "amx_bf16"]), matrix(["avx2"])
    assert Setting("bfloat16", "keras", isa=NO_AMX) in with_amx
    assert {setting.isa for setting in without} == {""}
    for settings in (with_amx, without):
        assert len(set(settings)) == len(settings)
        assert {setting.precision for setting in settings} == {"bfloat16", "float32"}
        assert (
            {setting.remedy for setting in settings} == set(REMEDIES) == set(gradient_soak.REMEDIES)
        )
    assert gradient_soak.environment(Setting("float32", isa=NO_AMX))["ONEDNN_MAX_CPU_ISA"] == NO_AMX


def _counts(differ: int) -> dict[str, Any]:
    found = {"differ": differ, "not_finite": differ, "largest": 0.0, "places": [[2], [1, 2], [31]]}
    return {
        "steps": 7,
        "seconds": 0.5,
        "differ": differ,
        "not_finite": differ,
        "first_finite": True,
        "variables": {FAULTY: found} if differ else {},
    }


@pytest.mark.parametrize(
    "found", [{"differ": 1}, {"not_finite": 7}, {"first_finite": False}, {"not_finite": 0}]
)
def test_the_exit_code_is_0_only_if_all_repetitions_are_finite_and_identical(
    found: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_soak, "run", lambda *_, **__: {**_counts(0), **found})
    assert gradient_soak.main(["--steps", "7"]) == (found != {"not_finite": 0})


def test_counts_are_in_the_table_and_in_the_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[dict[str, Any], dict[str, str]]] = []

    def run(request: dict[str, Any], environment: dict[str, str], **others: Any) -> dict[str, Any]:
        asked.append((request, environment))
        if others.get("log"):
            for line in LINES:
                others["log"].read(line)
        return _counts(3 if request["remedy"] == "none" else 0)

    monkeypatch.setattr(gradient_soak, "run", run)
    file = tmp_path / "soak.json"
    args = ["--steps", "7", "--matrix", "--fill", "--json", str(file)]
    args += ["--model.backbone", "mobilenet_v2", "--data.crop", "65"]
    assert gradient_soak.main(args) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    (row,) = [line for line in printed.splitlines() if f"| {FAULTY} 3 |" in line]
    assert (
        "| bfloat16 | ours, none | all | brgconv_bwd_w:avx512_core_amx | 7 | 3 | 3 | 500 |" in row
    )
    assert f"{FAULTY} not finite in 3 steps, at indices [[2], [1, 2], [31]]" in printed
    tree = json.loads(file.read_text())
    assert [each["counted"]["differ"] for each in tree["rows"]].count(3) == 1
    assert (tree["backbone"], tree["crop"], tree["fill"]) == ("mobilenet_v2", 65, True)
    short, long = asked[:2]
    assert (short[0]["steps"], short[0]["fill"], short[1]["ONEDNN_VERBOSE"]) == (0, False, "1")
    assert (long[0]["steps"], long[0]["fill"]) == (7, True)
    assert "ONEDNN_VERBOSE" not in long[1]
    assert gradient_soak.main(["--steps", "7"]) == EXIT_DONE


@pytest.mark.slow
def test_a_failed_process_is_reported_and_the_others_continue(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = gradient_soak.run

    def run(request: dict[str, Any], environment: dict[str, str], **others: Any) -> dict[str, Any]:
        if request["remedy"] == "slices":
            return real(request | {"config": "seed: -1"}, environment, **others)
        return _counts(0)

    monkeypatch.setattr(gradient_soak, "run", run)
    assert gradient_soak.main(["--steps", "7", "--matrix"]) == EXIT_FINDINGS
    printed = capsys.readouterr().out
    assert "seed is -1" in printed
    assert printed.count("| 7 | 0 | 0 |") == len(matrix(gradient_soak.instruction_sets())) - 1


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (["--steps", "0"], ConfigError, "--steps is 0: it must be 1 or more"),
        (["--load", "-1"], ConfigError, "--load is -1: it must be 0 or more"),
        (["no_such_run"], RunError, "no_such_run: no such folder"),
        (["RUN", "--train.batch", "2"], ConfigError, "a RUN has its own configuration"),
        (["--train.bach", "2"], ConfigError, "unknown key 'train.bach'"),
        (["--remedy", "unknown"], ConfigError, "invalid choice: 'unknown'"),
    ],
)
def test_invalid_arguments_are_refused(
    args: list[str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        gradient_soak.main(args)


def test_busy_processes_are_killed_at_the_end() -> None:
    with gradient_soak.load(2) as started:
        assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
def test_a_real_network_is_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "soak.json"
    args = ["--steps", "2", "--precision", "float32", "--json", str(file), "--fill"]
    args += ["--model.backbone", "mobilenet_v2", "--data.crop", "65", "--data.scenes", "10"]
    assert gradient_soak.main([*args, "--train.batch", "2"]) == EXIT_DONE
    (row,) = json.loads(file.read_text())["rows"]
    assert row["counted"]["steps"] == 2
    assert row["log"]["version"]
    assert "| float32 | ours, columns | all | " in capsys.readouterr().out
