from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from ccfnet_tf.config import TrainConfig
from ccfnet_tf.errors import NotFiniteError, RunError
from ccfnet_tf.runs.checkpoint_file import read_arrays, write_arrays
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


def test_a_damaged_file_is_replaced_by_the_previous_one(tmp_path: Path) -> None:
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
    assert "resuming from previous.npz, saved after epoch 2" in said[0]
    for one, two in zip(values(other), wanted, strict=True):
        np.testing.assert_array_equal(one, two)
    before.write_bytes(before.read_bytes()[:100])
    with pytest.raises(RunError, match=r"previous\.npz: damaged"):
        checkpoint.restore(path, other)


def test_the_previous_file_is_kept_without_hard_links(
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


Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained() -> keras.Model:
    model = small_model(seed=0)
    step(model)
    return model


@pytest.fixture
def three(trained: keras.Model, tmp_path: Path) -> Path:
    """Writes last (epoch 3), previous (epoch 2) and best (epoch 1); returns the path of last."""
    path = tmp_path / "last.npz"
    checkpoint.save_best(tmp_path / "best.npz", trained, checkpoint.Progress(1, 4, 0.5, 1, 4))
    for epoch in (2, 3):
        progress = checkpoint.Progress(epoch, 4 * epoch, 0.5, 1, 4)
        checkpoint.save_last(path, trained, progress)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def first(kind: str) -> Callable[[keras.Model], Any]:
    def variable(model: keras.Model) -> Any:
        found = {
            "kernel": model.get_layer("head").kernel,
            "statistic": model.get_layer("backbone").get_layer("norm").moving_variance,
            "moment": model.optimizer.variables[-1],
            "figure": model.metrics[0].variables[0],
        }
        return found[kind]

    return variable


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("kernel", "model/head/kernel"),
        ("statistic", "model/norm/moving_variance"),
        ("moment", "optimizer/0"),
        ("figure", "metrics/0000"),
    ],
)
def test_a_value_that_is_not_finite_is_not_saved(
    kind: str, named: str, value: float, trained: keras.Model, three: Path
) -> None:
    variable = first(kind)(trained)
    sound = variable.numpy()
    bad = np.array(sound)
    bad.flat[-1] = value  # one value of many
    before = contents(three.parent)
    variable.assign(bad)
    try:
        for save in (checkpoint.save_last, checkpoint.save_best):
            file = three if save is checkpoint.save_last else three.with_name("best.npz")
            with pytest.raises(NotFiniteError) as caught:
                save(file, trained, checkpoint.Progress(4, 16, 0.5, 4, 4))
            text = str(caught.value)
            assert text.startswith(f"{file}: not written at step 16 (epochs done: 4): '{named}")
            assert f"has {value} in 1 of its {bad.size} values" in text
            assert "continue with --resume" in text
            assert "\n" not in text
            assert contents(three.parent) == before
    finally:
        variable.assign(sound)


@pytest.mark.parametrize("score", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_not_saved(
    score: float, trained: keras.Model, three: Path
) -> None:
    before = contents(three.parent)
    for save in (checkpoint.save_last, checkpoint.save_best):
        with pytest.raises(NotFiniteError, match="'state: best_score' has"):
            save(three, trained, checkpoint.Progress(4, 16, score, 4, 4))
    assert contents(three.parent) == before


def rewrite(path: Path, change: Callable[[Arrays], object]) -> None:
    """Writes a valid file with content that no version of the package writes."""
    arrays = read_arrays(path)
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def with_state(**values: Any) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        tree = json.loads(str(arrays["state"])) | values
        kept = {key: value for key, value in tree.items() if value is not ...}
        arrays["state"] = np.array(json.dumps(kept))

    return change


def with_array(key: str, make: Callable[[np.ndarray], Any]) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays[key] = np.asarray(make(arrays[key]))

    return change


def without(*keys: str) -> Callable[[Arrays], object]:
    return lambda arrays: [arrays.pop(key) for key in keys]


def as_state(value: Any) -> Callable[[Arrays], object]:
    return with_array("state", lambda _: value)


def poisoned(array: np.ndarray) -> np.ndarray:
    changed = np.array(array)
    changed.flat[0] = np.nan
    return changed


KERNEL = "model/head/kernel"
DAMAGES = {
    "no state": (without("state"), "'state' is missing"),
    "state is no JSON": (as_state("{epoch"), "not a JSON object"),
    "state is empty": (as_state(""), "not a JSON object"),
    "state is a list": (as_state("[1, 2]"), "not a JSON object"),
    "state is a number": (as_state(3.0), "not a JSON object"),
    "state is an array": (as_state(["a", "b"]), "not a JSON object"),
    "state is nested too deep": (as_state("[" * 100_000), "not a JSON object"),
    "an unknown key": (with_state(epochs=3), "unknown key 'epochs'"),
    "a missing key": (with_state(step=...), "'step' is missing"),
    "epoch is NaN": (with_state(epoch=float("nan")), "epoch is nan"),
    "epoch is a text": (with_state(epoch="x"), "epoch is 'x'"),
    "epoch is a fraction": (with_state(epoch=2.5), "epoch is 2.5"),
    "epoch is true": (with_state(epoch=True), "epoch is True"),
    "epoch is nothing": (with_state(epoch=None), "epoch is None"),
    "epoch is negative": (with_state(epoch=-1), "epoch is -1"),
    "epoch beyond the run": (with_state(epoch=6, step=24), "epoch is 6: the run has 5"),
    "step beyond the epoch": (with_state(step=17), "step is 17: this contradicts epoch 3"),
    "step before the epoch": (with_state(step=11), "step is 11: this contradicts epoch 3"),
    "step is huge": (with_state(step=10**400), "step is 1000"),
    "score is NaN": (with_state(best_score=float("nan")), "best_score is nan"),
    "score is infinite": (with_state(best_score=float("inf")), "best_score is inf"),
    "score is a text": (with_state(best_score="0.5"), "best_score is '0.5'"),
    "best after the last": (with_state(best_epoch=4), "best_epoch is 4"),
    "optimizer begun later": (with_state(optimizer_begun=13), "optimizer_begun is 13"),
    "weights of another class count": (
        with_array(KERNEL, lambda a: np.zeros((3, 7), np.float32)),
        "'head/kernel' has shape [3, 7]",
    ),
    "a variable less": (without(KERNEL), "'head/kernel' is missing"),
    "weights as texts": (with_array(KERNEL, lambda a: a.astype("U8")), "has type str"),
    "weights as whole numbers": (
        with_array(KERNEL, lambda a: a.astype(np.int32)),
        "has type int32, expected float32",
    ),
    "weights that are not finite": (with_array(KERNEL, poisoned), "'model/head/kernel' has nan"),
    "objects": (
        with_array(KERNEL, lambda a: np.array([{}] * a.size, object).reshape(a.shape)),
        "damaged checkpoint",
    ),
    "no optimizer": (
        lambda arrays: [arrays.pop(key) for key in list(arrays) if key.startswith("optimizer/")],
        "has 0 optimizer variables",
    ),
    "an optimizer variable less": (without("optimizer/0001"), "optimizer variables but"),
    "a moment of another shape": (
        with_array("optimizer/0002", lambda a: np.zeros((2, 2), np.float32)),
        "'optimizer/0002' has shape [2, 2]",
    ),
    "a moment that is not finite": (with_array("optimizer/0002", poisoned), "has nan"),
    "a count that is a fraction": (
        with_array("optimizer/0000", np.float32),
        "'optimizer/0000' has type float32",
    ),
    "a count beyond the run": (
        with_array("optimizer/0000", lambda a: a + 10**9),
        "its optimizer has counted",
    ),
    "a count below 0": (with_array("optimizer/0000", lambda a: a - 10), "has counted -9 steps"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_unusable_file_is_replaced_by_the_next(
    name: str, trained: keras.Model, three: Path
) -> None:
    change, words = DAMAGES[name]
    sound = three.with_name("previous.npz").read_bytes()
    rewrite(three, change)
    bad = three.read_bytes()
    said: list[str] = []
    restored = checkpoint.restore(three, trained, said.append, epochs=5)
    assert restored.progress == checkpoint.Progress(2, 8, 0.5, 1, 4)
    (line,) = said
    assert line.startswith(f"warning: {three}: ")
    assert words in line
    assert "resuming from previous.npz, saved after epoch 2 (last.npz is now last.npz.da" in line
    assert "\n" not in line
    # An unusable file must not replace a usable one when the run is saved again.
    assert three.with_name("last.npz.damaged").read_bytes() == bad
    checkpoint.save_last(three, trained, restored.progress)
    assert three.with_name("previous.npz").read_bytes() == sound


@pytest.mark.parametrize("name", DAMAGES)
def test_without_a_valid_file_one_line_is_raised_and_nothing_changes(
    name: str, trained: keras.Model, three: Path
) -> None:
    change, words = DAMAGES[name]
    three.with_name("previous.npz").unlink()
    three.with_name("best.npz").write_bytes(b"PK")
    rewrite(three, change)
    files, weights = contents(three.parent), values(trained)
    with pytest.raises(RunError) as caught:
        checkpoint.restore(three, trained, epochs=5)
    text = str(caught.value)
    assert words in text
    assert f"{three.with_name('best.npz')}: damaged checkpoint" in text
    assert text.endswith("start another run with --out NEW")
    assert "\n" not in text
    assert contents(three.parent) == files
    for mine, before in zip(values(trained), weights, strict=True):
        np.testing.assert_array_equal(mine, before)


def mutated(text: str, chance: random.Random) -> str:
    letters = list(text)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(letters))
        how = chance.random()
        if how < 0.3:
            del letters[place:]
        elif how < 0.6:
            letters[place] = chr(chance.randrange(1, 0x2FF))
        else:
            letters.insert(place, chance.choice('0123456789{}[],:"-.eENI'))
        if not letters:
            break
    return "".join(letters)


def test_any_change_of_the_state_gives_a_one_line_error(trained: keras.Model, three: Path) -> None:
    """Random changes of the state's text, in a file with correct checksums."""
    arrays = read_arrays(three)
    text = str(arrays["state"])
    chance = random.Random(0)
    refused = 0
    for _ in range(300):
        changed = mutated(text, chance)
        write_arrays(three, arrays | {"state": np.array(changed)})
        said: list[str] = []
        progress = checkpoint.restore(three, trained, said.append, epochs=5).progress
        if said:
            refused += 1
            assert len(said) == 1
            assert "\n" not in said[0]
            assert progress.epoch == 2
            three.with_name("last.npz.damaged").unlink()
            continue
        assert 0 <= progress.epoch <= 5
        assert 0 <= progress.step <= 20
        assert -1 <= progress.best_score < np.inf
    assert refused > 200


@pytest.mark.parametrize("left", [("previous", "best"), ("best",)])
@pytest.mark.parametrize("fate", ["damaged", "missing"])
def test_the_newest_valid_file_is_used(
    left: tuple[str, ...], fate: str, trained: keras.Model, three: Path
) -> None:
    for name in {"last", "previous"} - set(left):
        file = three.with_name(f"{name}.npz")
        if fate == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:200])
    said: list[str] = []
    progress = checkpoint.restore(three, trained, said.append).progress
    epoch = {"previous": 2, "best": 1}[left[0]]
    assert progress.epoch == epoch
    (line,) = said
    assert f"{three}: {fate}" in line
    assert f"resuming from {left[0]}.npz, saved after epoch {epoch}" in line
    assert ("with a new optimizer state" in line) is (left[0] == "best")


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_new_optimizer_continues_the_learning_rate_schedule(kind: str, tmp_path: Path) -> None:
    """From the best weights, and again when that run is saved and resumed."""
    whole = small_model(seed=0, optimizer=kind)
    for _ in range(6):
        step(whole)
    checkpoint.save_best(tmp_path / "best.npz", whole, checkpoint.Progress(3, 6, 0.5, 3, 2))
    other = small_model(seed=1, optimizer=kind)
    progress = checkpoint.restore(tmp_path / "last.npz", other).progress
    assert progress == checkpoint.Progress(3, 6, 0.5, 3, 2, optimizer_begun=6)
    assert rate(other) == pytest.approx(rate(whole))
    for variable in other.optimizer.variables:
        assert not variable.numpy().any()  # by its count Adam knows how far to trust its moments
    for model in (whole, other):
        step(model)
    assert rate(other) == pytest.approx(rate(whole))
    checkpoint.save_last(
        tmp_path / "last.npz", other, checkpoint.Progress(3, 7, 0.5, 3, 2, optimizer_begun=6)
    )
    again = small_model(seed=2, optimizer=kind)
    assert checkpoint.restore(tmp_path / "last.npz", again).progress.optimizer_begun == 6
    assert rate(again) == pytest.approx(rate(whole))
    assert rate(again) < rate(small_model(seed=0, optimizer=kind))
    for one, two in zip(values(again), values(other), strict=True):
        np.testing.assert_array_equal(one, two)


def rate(model: keras.Model) -> float:
    return float(model.optimizer.learning_rate.numpy())


def test_metrics_of_another_version_start_from_zero(trained: keras.Model, three: Path) -> None:
    rewrite(three, with_array("metrics/0000", lambda a: np.zeros((3,), np.float32)))
    said: list[str] = []
    checkpoint.restore(three, trained, said.append)
    assert said == []  # no epoch is under way
    rewrite(three, with_state(step=13))
    restored = checkpoint.restore(three, trained, said.append)
    assert restored.metrics == ()
    assert (restored.progress.epoch, restored.progress.step) == (3, 13)
    assert "metrics of its unfinished epoch do not match" in said[0]


def test_a_file_of_an_earlier_version_is_accepted(trained: keras.Model, three: Path) -> None:
    rewrite(three, with_state(steps=..., optimizer_begun=...))
    said: list[str] = []
    progress = checkpoint.restore(three, trained, said.append).progress
    assert progress == checkpoint.Progress(3, 12, 0.5, 1)
    assert said == []


class Chief:
    """Records the arrays that the chief sends."""

    def from_chief(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        self.sent = arrays
        return arrays


class Other(Chief):
    """Receives the arrays of the chief, whatever its own values."""

    def __init__(self, chief: Chief) -> None:
        self.sent = chief.sent

    def from_chief(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        assert [a.shape for a in arrays] == [a.shape for a in self.sent]
        return self.sent


def test_every_worker_resumes_from_the_state_of_the_chief(trained: keras.Model) -> None:
    chief: Any = Chief()
    progress = checkpoint.Progress(3, 7, 0.5, 2, 2, optimizer_begun=6)
    assert checkpoint.send(checkpoint.Restored(progress), trained, chief) == progress
    other: Any = Other(chief)
    model = small_model(seed=5)
    assert checkpoint.send(checkpoint.Restored(), model, other) == progress
    for one, two in zip(values(model), values(trained), strict=True):
        np.testing.assert_array_equal(one, two)
    trained.optimizer._learning_rate.first_step = 6
    assert rate(model) == rate(trained)
