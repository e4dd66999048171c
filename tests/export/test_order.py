"""What an export is asked for, and what is allowed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ccfnet_tf.artifacts.contract import Contract, Difference, read_contract, tolerance
from ccfnet_tf.export import artifact as module
from ccfnet_tf.export.litert import LiteRTOptions
from ccfnet_tf.export.order import Order

ORDERS = [
    Order("saved_model"),
    Order("saved_model", precision="bfloat16"),
    Order("onnx"),
    *(Order("tflite", LiteRTOptions((40, 48), how)) for how in ("none", "fp16", "dynamic", "int8")),  # type: ignore[arg-type]
]


def contract_of(order: Order, difference: Difference) -> Contract:
    return Contract(
        format=order.format,
        run={},
        versions={},
        classes=[],
        palette=[],
        options=order.options,
        inputs={},
        outputs={},
        files={},
        difference=vars(difference),
        measured={},
    )


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_what_is_allowed_at_first_is_allowed_later(order: Order) -> None:
    allowed = tolerance(order.kind)
    contract = contract_of(order, replace(allowed, percentile=0.02, mean=0.004, other_labels=0.01))
    assert contract.kind == order.kind
    later = module._allowed(contract)
    if order.kind == "tflite int8":  # was judged by its accuracy, which is not measured again
        assert later == Difference(1.0, percentile=0.04, mean=0.008, other_labels=0.021)
    else:
        assert later == allowed


@pytest.mark.slow
@pytest.mark.usefixtures("toy_network")
def test_a_file_in_bfloat16_is_held_against_keras_in_float32(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_run, loaded = module.load_run, list[str]()

    def watched(path: Path, **how: Any) -> Any:
        loaded.append(how.get("precision", "float32"))
        return load_run(path, **how)

    monkeypatch.setattr(module, "load_run", watched)
    order = Order("saved_model", precision="bfloat16")
    quiet = Console(quiet=True)
    artifact = module.export_run(run, tmp_path, order, data_root=None, console=quiet)
    assert loaded == ["float32", "bfloat16"]
    assert read_contract(artifact).options == {"precision": "bfloat16"}
