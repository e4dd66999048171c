from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.errors import RunError
from ccfnet_tf.training import checkpoint
from ccfnet_tf.training.optimizer import make_optimizer


def small_model(seed: int, optimizer: str = "adamw") -> keras.Model:
    keras.utils.set_random_seed(seed)
    inner = keras.Input((4,))
    x = keras.layers.Dense(3, name="body")(inner)
    backbone = keras.Model(inner, keras.layers.BatchNormalization(name="norm")(x), name="backbone")
    inputs = keras.Input((4,))
    x = keras.layers.Dropout(0.5, name="drop")(backbone(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    config = TrainConfig(optimizer=optimizer)  # type: ignore[arg-type]
    model.compile(optimizer=make_optimizer(config, steps=10, model=model), loss="mse")
    return model


def step(model: keras.Model) -> None:
    rng = np.random.default_rng(0)
    model.train_on_batch(rng.normal(size=(8, 4)), rng.normal(size=(8, 2)))


def values(model: keras.Model) -> list[np.ndarray]:
    return [variable.numpy() for variable in [*model.variables, *model.optimizer.variables]]


def test_a_restored_run_takes_the_same_next_step(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    first = small_model(seed=0)
    step(first)
    checkpoint.save_last(path, first, checkpoint.Progress(1, 1, 0.5, 1))
    second = small_model(seed=1)
    assert checkpoint.restore(path, second).progress == checkpoint.Progress(1, 1, 0.5, 1)
    step(first)
    step(second)  # weights, batch norm, dropout's seed, moments and iteration count all matter
    for one, two in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(one, two)


def test_another_optimizer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    checkpoint.save_last(path, small_model(seed=0), checkpoint.Progress())
    with pytest.raises(RunError, match="optimizer variables"):
        checkpoint.restore(path, small_model(seed=0, optimizer="sgd"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.npz"
    model = small_model(seed=0)
    checkpoint.save_last(path, model, checkpoint.Progress())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"last\.npz"):
        checkpoint.restore(path, model)


def test_a_damaged_file_gives_way_to_the_one_before_it(tmp_path: Path) -> None:
    path, before = tmp_path / "last.npz", tmp_path / "previous.npz"
    model = small_model(seed=0)
    for epoch in (1, 2, 3):
        step(model)
        checkpoint.save_last(path, model, checkpoint.Progress(epoch, epoch))
        if epoch == 2:
            wanted = values(model)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.npz", "previous.npz"]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    said: list[str] = []
    other = small_model(seed=1)
    assert checkpoint.restore(path, other, said.append).progress == checkpoint.Progress(2, 2)
    assert "last.npz: damaged checkpoint" in said[0]
    assert "going on from previous.npz, saved after epoch 2" in said[0]
    for one, two in zip(values(other), wanted, strict=True):
        np.testing.assert_array_equal(one, two)
    before.write_bytes(before.read_bytes()[:100])
    with pytest.raises(RunError, match=r"previous\.npz: damaged"):
        checkpoint.restore(path, other)


def test_the_file_before_is_kept_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", no_links)
    path, model = tmp_path / "last.npz", small_model(seed=0)
    checkpoint.save_last(path, model, checkpoint.Progress(1, 1))
    first = path.read_bytes()
    checkpoint.save_last(path, model, checkpoint.Progress(2, 2))
    assert (tmp_path / "previous.npz").read_bytes() == first


def test_weights_alone_do_not_pass_for_a_run(tmp_path: Path) -> None:
    path = tmp_path / "best.npz"
    model = small_model(seed=0)
    checkpoint.save_best(path, model, checkpoint.Progress())
    with pytest.raises(RunError, match="0 optimizer variables"):
        checkpoint.restore(path, model)
