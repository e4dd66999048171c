"""Every key of `train` and `model` has its documented effect on the network and its training.

Keys of `train` are seen in the weights: a few steps with the key must give what the same steps give
by hand (`run_by_hand`), and by far not what they give without it. A key without a row fails.

Which faults which test sees (a row is a case of `test_a_train_key_changes_the_steps_as_by_hand`):

    fine_loss_weight, clip_norm or balanced_attention not passed on    their rows
    coarse and attention weights swapped                               their rows
    batch_norm frozen that freezes nothing                             row batch_norm
    gamma or scale decayed                                             row weight_decay
    schedule one epoch too long                      every row; test_whole_run.py
    synchronised batch norm never on                 test_batch_norm_over_two_replicas
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import DataConfig, ModelConfig, RunConfig, TrainConfig, to_yaml
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.network import backbones
from ccfnet_tf.network.model import CCFNet
from ccfnet_tf.runs.write_run_files import write_classes
from ccfnet_tf.training import build_network, checkpoint, fit
from ccfnet_tf.training.callbacks import epoch_end
from ccfnet_tf.training.check_data import RunData, check_data
from tests.network import by_hand
from tests.network.by_hand import Weights
from tests.training import run_by_hand
from tests.training.small_cascade import cascade, values

STEPS, SIZE, TOLERANCE = 2, 12, 1e-4
DATA = DataConfig(format="scenes", scenes=10, scene_size=(32, 32), crop=33, val_share=0.2)
TRAIN = TrainConfig(
    epochs=2,
    batch=2,
    learning_rate=0.05,
    head_rate=2.0,
    weight_decay=0.5,
    warmup=0.5,
    batch_norm="trainable",
    precision="float32",
    strategy="none",
)
MODEL = ModelConfig(backbone="mobilenet_v2", backbone_weights="none", head_channels=4, dropout=0.0)
CONFIG = RunConfig(data=DATA, model=MODEL, train=TRAIN)
QUIET = Console(quiet=True)


def with_train(**keys: Any) -> RunConfig:
    return replace(CONFIG, train=replace(TRAIN, **keys))


def with_model(**keys: Any) -> RunConfig:
    return replace(CONFIG, model=replace(MODEL, **keys))


@pytest.fixture(scope="module")
def data() -> RunData:
    return check_data(CONFIG, QUIET)


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `fit` train the small network."""
    monkeypatch.setattr(build_network, "build_ccfnet", cascade)


def built(config: RunConfig, data: RunData, strategy: Any = None) -> CCFNet:
    strategy = strategy or tf.distribute.get_strategy()
    return build_network.build_model(config, strategy, data, STEPS, QUIET, fresh=True)


def drawn_batches(config: RunConfig, classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batches for a complete run, with void."""
    rng = np.random.default_rng(3)
    shape = (config.train.epochs * STEPS, config.train.batch, SIZE, SIZE)
    labels = rng.integers(-1, classes, shape)
    images = rng.normal(labels[..., None], 1.0, (*shape, 3))
    return list(zip(images.astype(np.float32), labels.astype(np.int32), strict=True))


# Keys that steps of the small network show, each with a value that is not `TRAIN`'s.
SEEN_IN_STEPS: dict[str, Any] = {
    "epochs": 3,
    "optimizer": "adamw",
    "learning_rate": 0.02,
    "head_rate": 5.0,
    "weight_decay": 0.05,
    "poly_power": 2.0,
    "warmup": 0.0,
    "clip_norm": 0.1,
    "batch_norm": "frozen",
    "coarse_loss_weight": 0.3,
    "attention_loss_weight": 0.3,
    "refine_loss_weight": 0.3,
    "fine_loss_weight": 0.8,
    "ohem_share": 0.3,
    "hard_pixel_weight": 4.0,
    "label_smoothing": 0.5,
    "balanced_attention": True,
    "class_weights": "auto",
    "rate_for_batch": 8,
    "accumulate": 2,
}


def by_median_frequency(data: RunData) -> list[float]:
    labels = [data.parts.load(sample)[1] for sample in data.parts.train]
    shares = []
    for number in range(len(data.parts.taxonomy.names)):
        shown = [label for label in labels if (label == number).any()]
        labelled = sum((label >= 0).sum() for label in shown)
        shares.append(sum((label == number).sum() for label in shown) / labelled)
    return list(np.median(shares) / shares)


def ended(config: RunConfig, data: RunData) -> Weights:
    """Returns the weights at the end of the small network's run, by hand."""
    classes = len(data.parts.taxonomy.names)
    weighed = by_median_frequency(data) if config.train.class_weights == "auto" else None
    return run_by_hand.run(
        values(cascade(classes)),
        drawn_batches(config, classes),
        config.train,
        steps=config.train.epochs * STEPS,
        class_weights=weighed,
    )[-1][0]


@pytest.fixture(scope="module")
def ended_without(data: RunData) -> Weights:
    """The weights at the end of a run with none of the keys."""
    return ended(CONFIG, data)


@pytest.mark.parametrize("key", SEEN_IN_STEPS)
def test_a_train_key_changes_the_steps_as_by_hand(
    key: str, data: RunData, small_network: None, ended_without: Weights
) -> None:
    config = with_train(**{key: SEEN_IN_STEPS[key]})
    model = built(config, data)
    model.run_eagerly = True
    for batch in drawn_batches(config, len(data.parts.taxonomy.names)):
        model.train_on_batch(*batch)
    wanted = ended(config, data)
    assert max(np.abs(wanted[n] - ended_without[n]).max() for n in wanted) > 20 * TOLERANCE
    for name, value in values(model).items():
        np.testing.assert_allclose(value, wanted[name], atol=TOLERANCE, err_msg=name)


def test_class_weights_may_be_given_one_by_one(
    data: RunData, small_network: None, ended_without: Weights
) -> None:
    classes = len(data.parts.taxonomy.names)
    weights = tuple(np.linspace(0.2, 3.0, classes).tolist())
    config = with_train(class_weights=weights)
    model = built(config, data)
    model.run_eagerly = True
    batches = drawn_batches(config, classes)
    for batch in batches:
        model.train_on_batch(*batch)
    wanted = run_by_hand.run(
        values(cascade(classes)), batches, config.train, steps=len(batches), class_weights=weights
    )[-1][0]
    assert max(np.abs(wanted[n] - ended_without[n]).max() for n in wanted) > 20 * TOLERANCE
    for name, value in values(model).items():
        np.testing.assert_allclose(value, wanted[name], atol=TOLERANCE, err_msg=name)


class Begun(Exception):  # noqa: N818  it is not an error
    """Raised when `fit` starts to build the network."""


@dataclass
class Beginning:
    """Arguments with which `fit` builds the network.

    Attributes:
        replicas: Over how many devices.
        steps: Steps of an epoch.
        deterministic: Whether operators were made deterministic before.
        drawn: The first random number of the weights.
    """

    replicas: int
    steps: int
    deterministic: bool
    drawn: float


@pytest.fixture
def beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], Beginning]:
    """Runs `fit` until it builds the network."""
    asked: list[bool] = []
    found: list[Beginning] = []
    # It cannot be turned off again, for the tests that come after.
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))

    def stop(_: RunConfig, strategy: Any, data: RunData, steps: int, *__: Any, **___: Any) -> None:
        drawn = float(keras.random.normal(()))
        found.append(Beginning(strategy.num_replicas_in_sync, steps, bool(asked), drawn))
        raise Begun

    monkeypatch.setattr(fit, "build_model", stop)

    def begin(config: RunConfig) -> Beginning:
        with pytest.raises(Begun):
            fit.fit(config, tmp_path / "run", resume=False, console=QUIET)
        return found[-1]

    return begin


def sees_batch(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    assert beginning(CONFIG).steps == 4
    assert beginning(with_train(batch=4)).steps == 2


def sees_strategy(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    assert beginning(CONFIG).replicas == 1
    assert beginning(with_train(strategy="mirrored")).replicas == 2


def sees_virtual_cpus(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    # In a process that already computes it can only be refused.
    with pytest.raises(ConfigError, match=r"train\.virtual_cpus is 3: TensorFlow is already"):
        beginning(with_train(virtual_cpus=3))


def sees_deterministic(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    assert not beginning(CONFIG).deterministic
    assert beginning(with_train(deterministic=True)).deterministic


def sees_precision(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    scales = [
        float(built(with_train(precision=name), data).optimizer.scale_loss(tf.constant(1.0)))
        for name in ("float32", "bfloat16", "float16")
    ]
    assert scales[:2] == [1.0, 1.0]
    assert scales[2] > 1.0  # of what it computes in: `test_a_model_key_changes_the_network`


def sees_jit_compile(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    assert not built(CONFIG, data).jit_compile
    assert built(with_train(jit_compile=True), data).jit_compile


def sees_ema(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    for decay in (0.0, 0.9):
        model = built(with_train(ema=decay), data)
        model.run_eagerly = True
        for batch in drawn_batches(CONFIG, len(data.parts.taxonomy.names)):
            model.train_on_batch(*batch)
        learned = model.get_layer("backbone").get_layer("body").kernel
        last = learned.numpy()
        with epoch_end.averaged(model):
            assert (learned.numpy() != last).any() == (decay > 0)


def sees_fine_loss_pixels(beginning: Callable[[RunConfig], Beginning], data: RunData) -> None:
    config = with_model(blend_threshold=0.4)  # what it does: test_train_step.py
    for pixels, threshold in (("all", 0.0), ("hard", 0.4)):
        train = replace(config.train, fine_loss_pixels=pixels, fine_loss_weight=0.5)
        assert built(replace(config, train=train), data).fine_threshold == threshold


SEEN_OTHERWISE: dict[str, Callable[[Callable[[RunConfig], Beginning], RunData], None]] = {
    "batch": sees_batch,
    "strategy": sees_strategy,
    "virtual_cpus": sees_virtual_cpus,
    "deterministic": sees_deterministic,
    "precision": sees_precision,
    "jit_compile": sees_jit_compile,
    "ema": sees_ema,
    "fine_loss_pixels": sees_fine_loss_pixels,
}
SEEN_IN_A_RUN = {"checkpoint_every", "best_by"}  # test_whole_run.py, test_best_checkpoint.py


@pytest.mark.parametrize("key", SEEN_OTHERWISE)
def test_a_train_key_has_its_effect(
    key: str, beginning: Callable[[RunConfig], Beginning], data: RunData, small_network: None
) -> None:
    SEEN_OTHERWISE[key](beginning, data)


def test_the_seed_determines_the_weights(beginning: Callable[[RunConfig], Beginning]) -> None:
    one, other, again = (beginning(replace(CONFIG, seed=seed)).drawn for seed in (3, 4, 3))
    assert one == again != other


# The networks of `build_ccfnet` itself, on a backbone of two convolutions.


def tiny(width: int) -> Callable[..., keras.Model]:
    """Returns a builder as in `keras.applications`; strides 4 and 8, `width` channels."""

    def application(input_shape: Any, **_: Any) -> keras.Model:
        layers = keras.layers
        images = keras.Input(input_shape)
        x = layers.Conv2D(6, 3, strides=4, padding="same", name="stem")(images)
        x = detail = layers.ReLU(name="detail")(layers.BatchNormalization(name="stem_bn")(x))
        x = layers.Conv2D(width, 3, strides=2, padding="same", name="body")(detail)
        x = layers.ReLU(name="features")(layers.BatchNormalization(name="body_bn")(x))
        return keras.Model(images, x)

    return application


@pytest.fixture
def tiny_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces two backbones by tiny ones, 8 and 10 channels wide."""
    for name, width in (("mobilenet_v2", 8), ("resnet50", 10)):
        spec = backbones.Backbone(tiny(width), "symmetric", "detail", "features", lambda _: {})
        monkeypatch.setitem(backbones.BACKBONES, name, spec)


def pictures(count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (count, 33, 33, 3)).astype(np.float32)


def answers(model: Any, *, training: bool = False) -> dict[str, np.ndarray]:
    fine = model.get_layer("fine_logits").output
    whole = keras.Model(model.input, {**model.output, "fine": fine})
    return {head: value.numpy() for head, value in whole(pictures(), training=training).items()}


def arrays(config: RunConfig, data: RunData) -> Weights:
    return values(built(config, data))


def sees_backbone(data: RunData, tmp_path: Path) -> None:
    widths = [
        arrays(with_model(backbone=name), data)["body/kernel"].shape[-1]
        for name in ("mobilenet_v2", "resnet50")
    ]
    assert widths == [8, 10]


def sees_backbone_weights(data: RunData, tmp_path: Path) -> None:
    path = tmp_path / "x.weights.h5"
    source = tiny(8)((None, None, 3))
    source.save_weights(path)
    wanted = source.get_layer("body").kernel.numpy()
    plain, loaded = (
        arrays(with_model(backbone_weights=name), data)["body/kernel"]
        for name in ("none", str(path))
    )
    np.testing.assert_array_equal(loaded, wanted)
    assert (plain != wanted).any()


def sees_head_channels(data: RunData, tmp_path: Path) -> None:
    for width in (4, 7):
        found = arrays(with_model(head_channels=width), data)
        for head in ("coarse", "attention", "fine"):
            assert found[f"{head}_classifier/kernel"].shape[2] == width


def sees_dropout(data: RunData, tmp_path: Path) -> None:
    for share in (0.0, 0.75):
        model = built(with_model(dropout=share), data)
        first, second = (answers(model, training=True) for _ in range(2))
        for head, value in first.items():
            assert (value != second[head]).any() == (share > 0), head
        dropped = [x for x in model.layers if isinstance(x, keras.layers.Dropout)]
        assert [x.rate for x in dropped] == [share] * 3


def moved_by_coarse(model: Any) -> set[str]:
    """Returns the heads whose output changes with that of coarse."""
    before = answers(model)
    bias = model.get_layer("coarse_classifier").bias
    bias.assign(np.linspace(-3, 3, bias.shape[0]))
    after = answers(model)
    return {head for head in ("attention", "fine") if (before[head] != after[head]).any()}


def sees_attention_input(data: RunData, tmp_path: Path) -> None:
    assert moved_by_coarse(built(CONFIG, data)) == set()
    seeing = with_model(attention_input="features_and_coarse")
    assert moved_by_coarse(built(seeing, data)) == {"attention"}


def sees_fine_input(data: RunData, tmp_path: Path) -> None:
    seeing = with_model(fine_input="pyramid_and_detail")
    assert moved_by_coarse(built(seeing, data)) == {"fine"}


def sees_batch_norm_momentum(data: RunData, tmp_path: Path) -> None:
    for momentum in (0.3, 0.9):
        model = built(with_model(batch_norm_momentum=momentum), data)
        seen = []
        for _ in range(3):
            seen.append(values(model))
            answers(model, training=True)
        names = [name for name in seen[0] if name.endswith(by_hand.STATISTICS)]
        assert len(names) > 10
        for name in names:
            first, second = (b[name] - a[name] for a, b in pairwise(seen))
            np.testing.assert_allclose(second, momentum * first, atol=1e-4, err_msg=name)


def sees_init_from(data: RunData, tmp_path: Path) -> None:
    source = built(CONFIG, data)
    for variable in source.trainable_variables:
        variable.assign(variable + 0.5)
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    write_classes(tmp_path, data.parts.taxonomy)
    checkpoint.save_best(checkpoints / "best.npz", source, checkpoint.Progress(1, 4, 0.5, 1))
    found = arrays(with_model(init_from=str(tmp_path)), data)
    for name, value in values(source).items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def sees_gate(data: RunData, tmp_path: Path) -> None:
    config = with_model(gate="affine")
    train = replace(config.train, optimizer="adamw", weight_decay=0.5, ema=0.9)
    model = built(replace(config, train=train), data)
    optimizer, variables = model.optimizer, model.get_layer("gate").trainable_variables
    assert [variable.name for variable in variables] == ["scale", "bias"]
    for variable in variables:
        assert not optimizer._use_weight_decay(variable)
    assert "gate" not in built(CONFIG, data).output


def share_of_fine(**keys: Any) -> float:
    """Returns the share of pixels that a new network takes from fine alone."""
    keras.utils.set_random_seed(1)
    architecture = with_model(**keys).model.architecture()
    found = answers(build_network.build_ccfnet(3, backbone_weights=None, **architecture))
    same = [
        np.isclose(found["refine"], tf.nn.log_softmax(found[head]), atol=1e-5).all(-1)
        for head in ("fine", "coarse")
    ]
    return float(same[0].mean()) if (same[0] | same[1]).all() else float("nan")


def sees_blend(data: RunData, tmp_path: Path) -> None:
    assert np.isnan(share_of_fine())
    assert 0 <= share_of_fine(blend="hard") <= 1


def sees_blend_threshold(data: RunData, tmp_path: Path) -> None:
    shares = [share_of_fine(blend="hard", blend_threshold=share) for share in (0.01, 0.5, 0.99)]
    assert shares[0] == 1
    assert shares[2] == 0
    assert 0 <= shares[1] <= 1


def at_two_scales(**keys: Any) -> RunConfig:
    frozen = with_train(batch_norm="frozen")
    return replace(frozen, model=replace(MODEL, coarse_scale=0.5, **keys))


def sees_coarse_scale(data: RunData, tmp_path: Path) -> None:
    model = built(at_two_scales(), data)
    assert model.get_layer("coarse_conv").input is not model.get_layer("attention_conv").input
    assert model.get_layer("half_size").output.shape[-1] == 3
    plain = built(CONFIG, data)
    assert plain.get_layer("coarse_conv").input is plain.get_layer("attention_conv").input


def sees_attention_scale(data: RunData, tmp_path: Path) -> None:
    model = built(at_two_scales(attention_scale=0.5), data)
    assert model.get_layer("coarse_conv").input is model.get_layer("attention_conv").input


MODEL_ROWS: dict[str, Callable[[RunData, Path], None]] = {
    "backbone": sees_backbone,
    "backbone_weights": sees_backbone_weights,
    "head_channels": sees_head_channels,
    "dropout": sees_dropout,
    "attention_input": sees_attention_input,
    "fine_input": sees_fine_input,
    "gate": sees_gate,
    "blend": sees_blend,
    "blend_threshold": sees_blend_threshold,
    "coarse_scale": sees_coarse_scale,
    "attention_scale": sees_attention_scale,
    "batch_norm_momentum": sees_batch_norm_momentum,
    "init_from": sees_init_from,
}


@pytest.mark.parametrize("key", MODEL_ROWS)
def test_a_model_key_changes_the_network(
    key: str, data: RunData, tiny_backbones: None, tmp_path: Path
) -> None:
    MODEL_ROWS[key](data, tmp_path)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_the_network_computes_in_the_precision(
    name: str, data: RunData, tiny_backbones: None
) -> None:
    model = built(with_train(precision=name), data)
    of_backbone = {layer.compute_dtype for layer in model.get_layer("backbone").layers[1:]}
    assert of_backbone == {name}
    assert {model.get_layer(f"{head}_conv").compute_dtype for head in ("coarse", "fine")} == {name}


def test_every_key_is_tested() -> None:
    rows = [*SEEN_IN_STEPS, *SEEN_OTHERWISE, *SEEN_IN_A_RUN]
    assert sorted(rows) == sorted(field.name for field in fields(TrainConfig))
    assert sorted(MODEL_ROWS) == sorted(field.name for field in fields(ModelConfig))
    for key, value in SEEN_IN_STEPS.items():
        assert getattr(TRAIN, key) != value, key


@pytest.mark.parametrize("setting", ["trainable", "synchronised", "frozen"])
def test_batch_norm_over_two_replicas(
    setting: str, data: RunData, tiny_backbones: None, two_replicas: Any
) -> None:
    """Synchronised statistics equal those of the batch on one device; `trainable` ones do not."""
    config = with_train(batch_norm=setting)
    keras.utils.set_random_seed(1)
    start = arrays(config, data)
    keras.utils.set_random_seed(1)
    one = built(config, data)
    one(pictures(), training=True)
    keras.utils.set_random_seed(1)
    two = built(config, data, two_replicas)
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.constant(np.split(pictures(), 2)[c.replica_id_in_sync_group])
    )
    two_replicas.run(lambda x: two(x, training=True), (halves,))
    wanted, found = values(one), values(two)
    names = {name for name in found if name.endswith("moving_variance")}
    of_backbone = {name for name in names if name.startswith(("stem", "body"))}
    assert len(of_backbone) == 2
    same = {name for name in names if np.allclose(found[name], wanted[name], atol=1e-6)}
    still = {name for name in names if (found[name] == start[name]).all()}
    assert same == (set() if setting == "trainable" else names)
    assert still == (of_backbone if setting == "frozen" else set())
