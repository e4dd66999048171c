from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.audit.check_split import check
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import ConfigError, DataError
from ccfnet_tf.labels import VOID, Sample
from ccfnet_tf.pipeline import batch as module
from ccfnet_tf.pipeline.batch import evaluation_batches, original_error, training_batches
from ccfnet_tf.pipeline.worker_sharding import by_example

SCENES = DataConfig(
    format="scenes", scenes=14, scene_size=(40, 48), crop=33, scale=(0.75, 1.5), colour=0.3
)
PLAIN = DataConfig(format="scenes", crop=32, scale=(1.0, 1.0), flip=False, colour=0.0)


def arrays(dataset: Any, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


NUMBERED = tuple(Sample(str(i), "32x32", "") for i in range(14))


def number(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Fills image and label with the sample's number."""
    height, width = (int(side) for side in sample.image.split("x"))
    label = np.full((height, width), int(sample.name), np.int32)
    return np.full((height, width, 3), int(sample.name), np.uint8), label


def scenes(data: DataConfig = SCENES) -> Parts:
    return read_parts(data, 0)


def test_shapes_are_fixed() -> None:
    parts = scenes()
    dataset = training_batches(parts.train, parts.load, SCENES, batch=3, seed=0)
    image, label = dataset.element_spec
    assert (image.shape, image.dtype) == ((3, 33, 33, 3), tf.uint8)
    assert (label.shape, label.dtype) == ((3, 33, 33), tf.int32)


@pytest.mark.parametrize("step", [3, 6])
def test_a_run_resumes_at_any_step(step: int) -> None:
    parts = scenes()

    def batches(seed: int, first_step: int = 0) -> Any:
        return training_batches(
            parts.train, parts.load, SCENES, batch=3, seed=seed, first_step=first_step
        )

    whole = arrays(batches(5), 8)
    rest = batches(5, step)
    for (image, label), (image2, label2) in zip(whole[step:], arrays(rest, 8 - step), strict=True):
        np.testing.assert_array_equal(image, image2)
        np.testing.assert_array_equal(label, label2)
    other = arrays(batches(6), 1)
    assert not np.array_equal(whole[0][0], other[0][0])


def test_an_epoch_visits_each_sample_at_most_once() -> None:
    steps = by_example(NUMBERED, 4).steps
    assert steps == 3
    dataset = training_batches(NUMBERED, number, PLAIN, batch=4, seed=0)
    labels = [label[:, 0, 0] for _, label in arrays(dataset, 5 * steps)]
    epochs = np.concatenate(labels).reshape(5, 12)
    assert all(len(set(epoch)) == 12 for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 5  # a different order in every epoch
    assert set(epochs.ravel().tolist()) == set(
        range(14)
    )  # the dropped samples differ between epochs


def test_augmentation_differs_between_epochs_and_samples() -> None:
    one = (Sample("a", "scene:3", "scene:3"),) * 2
    batches = arrays(training_batches(one, scenes().load, SCENES, batch=2, seed=0), 3)
    pictures = [image for batch, _ in batches for image in batch]
    assert len({picture.tobytes() for picture in pictures}) == 6


def test_nondeterministic_order_is_allowed() -> None:
    loose = dataclasses.replace(PLAIN, deterministic=False)
    dataset = training_batches(NUMBERED, number, loose, batch=4, seed=0)
    assert not dataset.options().deterministic
    labels = np.concatenate([label[:, 0, 0] for _, label in arrays(dataset, 3)])
    assert set(labels.tolist()) <= set(range(14))


def test_rare_crops_are_used_if_enabled() -> None:
    def load(_: Sample) -> tuple[np.ndarray, np.ndarray]:
        label = np.zeros((200, 200), np.int32)
        label[180:183, 20:23] = 1
        return np.zeros((200, 200, 3), np.uint8), label

    seeking = dataclasses.replace(PLAIN, rare_crop=1.0)

    def share(data: DataConfig, rarity: np.ndarray | None) -> float:
        dataset = training_batches(NUMBERED, load, data, batch=4, seed=0, rarity=rarity)
        return float(np.mean([(label == 1).any(axis=(1, 2)) for _, label in arrays(dataset, 6)]))

    assert share(PLAIN, None) < 0.3
    assert share(seeking, np.array([0.01, 1e6])) == 1.0


def test_fewer_samples_than_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"train\.batch is 15: .* 14 images"):
        by_example(NUMBERED, 15)
    with pytest.raises(ConfigError, match=r"train\.batch"):
        training_batches(NUMBERED, number, PLAIN, batch=15, seed=0)


def test_evaluation_covers_everything_once() -> None:
    sizes = [(20, 30), (30, 20), (20, 30), (7, 9), (20, 30), (30, 20), (20, 30), (20, 30)]
    samples = tuple(
        Sample(s.name, f"{h}x{w}", "") for s, (h, w) in zip(NUMBERED, sizes, strict=False)
    )
    dataset, count = evaluation_batches(samples, sizes, number, PLAIN, batch=3)
    image, label = dataset.element_spec
    assert (image.shape.as_list(), image.dtype) == ([3, None, None, 3], tf.uint8)
    assert (label.shape.as_list(), label.dtype) == ([3, None, None], tf.int32)
    batches = arrays(dataset, -1)
    assert len(batches) == count == 4
    seen = []
    for images, labels in batches:
        for picture, mask in zip(images, labels, strict=True):
            assert picture.shape == (*mask.shape, 3)
            found = int(mask[0, 0])
            assert (mask == found).all()
            if found != VOID:
                assert mask.shape == sizes[found]
                assert (picture == found).all()
                seen.append(found)
    assert sorted(seen) == list(range(8))


def test_evaluation_of_nothing() -> None:
    dataset, count = evaluation_batches((), (), number, PLAIN, batch=3)
    assert count == 0
    assert arrays(dataset, -1) == []


def test_a_file_damaged_after_the_check_is_named(tmp_path: Path) -> None:
    for side in ("images", "masks"):
        (tmp_path / side).mkdir()
    for i in range(4):
        Image.new("RGB", (40, 40)).save(tmp_path / "images" / f"{i} ü.jpg")
        Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "masks" / f"{i} ü.png")
    (tmp_path / "classes.txt").write_text("a\nb\n")
    data = DataConfig(root=str(tmp_path), crop=32, val_share=0)
    parts = read_parts(data, 0)
    samples, load = parts.train, parts.load
    sizes = check(samples, load, 2).sizes
    path = Path(samples[2].image)
    path.write_bytes(path.read_bytes()[:200])
    for dataset in (
        training_batches(samples, load, data, batch=4, seed=0),
        evaluation_batches(samples, sizes, load, data, batch=4)[0],
    ):
        with pytest.raises(tf.errors.OpError) as caught:
            arrays(dataset, 1)
        error = original_error(caught.value)
        assert isinstance(error, DataError)
        assert str(error).startswith(f"{path}: ")
        with pytest.raises(DataError) as direct:
            check(samples, load, 2)
        assert str(error) == str(direct.value)


def test_other_errors_are_not_converted() -> None:
    def hungry(_: object) -> tuple[np.ndarray, np.ndarray]:
        raise MemoryError("DataErrors: no")

    samples = (Sample("a", "scene:1", "scene:1"),)
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        arrays(training_batches(samples, hungry, PLAIN, batch=1, seed=0), 1)
    assert original_error(caught.value) is None
    assert original_error(ValueError("DataError: x")) is None


REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.pipeline.batch import evaluation_batches, training_batches
data = DataConfig(format="scenes", scenes=10, scene_size=(40, 48), crop=33)
parts = read_parts(data, 0)
train = training_batches(parts.train, parts.load, data, batch=4, seed=0).take(3)
test = evaluation_batches(parts.test[:6], [(40, 48)] * 6, parts.load, data, batch=4)[0]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for dataset in (train, test):
    whole = [label.numpy() for _, label in dataset]
    split = [
        [part.numpy() for part in strategy.experimental_local_results(label)]
        for _, label in strategy.experimental_distribute_dataset(dataset)
    ]
    assert len(whole) == len(split)
    for one, two in zip(whole, split):
        assert [len(part) for part in two] == [2, 2]
        np.testing.assert_array_equal(one, np.concatenate(two))
print("split evenly")
"""


@pytest.mark.slow
def test_two_replicas_share_a_batch() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert answer.stdout.strip() == "split evenly", answer.stderr[-2000:]
