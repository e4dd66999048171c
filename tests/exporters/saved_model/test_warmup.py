"""Warm-up records: written where TensorFlow Serving looks, and answered when they are replayed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from ccfnet_tf.exporters.saved_model.warmup import WARMUP, write_warmup
from ccfnet_tf.exporters.saved_model.writer import write_saved_model
from ccfnet_tf.labels import Taxonomy

TAXONOMY = Taxonomy(("sky", "grüße"), ((0, 0, 255), (0, 255, 0)))


def test_every_signature_answers_its_record(toy: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "1"
    write_saved_model(toy(2), TAXONOMY, folder)
    assert write_warmup(folder, "ccfnet")
    loaded = tf.saved_model.load(str(folder))  # kept: signatures do not hold the variables
    answered = []
    for record in tf.data.TFRecordDataset(str(folder / WARMUP)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert request.model_spec.name == "ccfnet"
        inputs = {key: tf.constant(tf.make_ndarray(each)) for key, each in request.inputs.items()}
        assert loaded.signatures[request.model_spec.signature_name](**inputs)
        answered.append(request.model_spec.signature_name)
    assert sorted(answered) == sorted(loaded.signatures)
    (names,) = loaded.signatures["classes"](ask=tf.constant([5]))["names"].numpy()
    assert [name.decode() for name in names] == list(TAXONOMY.names)


def test_without_its_package_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    assert not write_warmup(tmp_path, "ccfnet")
    assert list(tmp_path.iterdir()) == []
