"""One of two workers that train a toy cascade; started by test_multi_worker.py as a process.

    python worker.py INDEX PORT FOLDER

Writes to FOLDER what `Collectives` exchange (talk_INDEX.json), weights, figures and an evaluation
(train_INDEX.npz), and whether Keras's own `fit` works (stock_INDEX.json). INDEX -1 is a process
that trains alone.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

from ccfnet_tf.config import DataConfig, TrainConfig
from ccfnet_tf.evaluation.epoch_end_states import EpochCounts, Evaluator
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.network import heads
from ccfnet_tf.network.model import CCFNet, LossWeights
from ccfnet_tf.pipeline.batch import evaluation_batches, training_batches
from ccfnet_tf.pipeline.worker_sharding import by_example
from ccfnet_tf.training.distribution.cluster import Cluster, connect, find_cluster
from ccfnet_tf.training.distribution.collectives import Collectives
from ccfnet_tf.training.optimizer import make_optimizer

SIZE, CLASSES, BATCH, PICTURES, EPOCHS = 40, 3, 4, 9, 3
TAXONOMY = Taxonomy(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 99, 99)))
SAMPLES = [Sample(str(i), str(i), str(i)) for i in range(PICTURES)]
DATA = DataConfig(format="scenes", crop=33, colour=0.0)


def load(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """A synthetic sample; even ones are nearly all void, so that workers have unequal amounts."""
    rng = np.random.default_rng(int(sample.name))
    image = rng.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    label = (image.sum(-1) // 256).astype(np.int32)
    void = rng.random(label.shape) < (0.05 if int(sample.name) % 2 else 0.95)
    label[void] = -1
    return image, label


def toy(kind: type[keras.Model]) -> Any:
    """A small graph with the outputs of CCFNet."""
    layers = keras.layers
    images = keras.Input((None, None, 3))
    inner = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 255)(inner)
    x = layers.Conv2D(6, 3, padding="same", name="body")(x)
    x = layers.BatchNormalization(synchronized=True, name="body_norm")(x)
    x = keras.Model(inner, layers.ReLU()(x), name="backbone")(images)
    coarse = layers.Conv2D(CLASSES, 1, name="coarse_logits")(x)
    attention = layers.Conv2D(2, 1, name="attention_logits")(x)
    fine = layers.Conv2D(CLASSES, 3, padding="same", name="fine_logits")(x)
    logs = heads.LogSoftmax()(coarse)
    refine = heads.Blend(name="refine")([logs, attention, fine])
    outputs = {"coarse": coarse, "attention": attention, "refine": refine}
    return kind(inputs=images, outputs=outputs)


def train(strategy: Any, workers: Collectives, out: Path) -> None:
    """Trains and evaluates; writes weights, figures and counts."""
    keras.utils.set_random_seed(1)
    config = TrainConfig(optimizer="sgd", learning_rate=0.02, batch=BATCH)
    share = by_example(SAMPLES, BATCH, workers.index, workers.count)
    with strategy.scope():
        model = toy(CCFNet)
        model.compile(
            optimizer=make_optimizer(config, steps=100, model=model),
            loss_weights=LossWeights(fine=0.5),
        )
    start = [v.numpy() for v in model.variables]
    # Before training, because counts are equal only if the weights are identical bit by bit.
    seen = _evaluated(model, workers)

    def batches(_: Any = None) -> Any:
        return training_batches(SAMPLES, load, DATA, batch=BATCH, seed=3, share=share)

    if workers.count > 1:
        batches_ = strategy.distribute_datasets_from_function(batches)
    else:
        batches_ = batches()
    history = model.fit(
        batches_, epochs=EPOCHS, steps_per_epoch=share.steps, verbose=0, shuffle=False
    ).history
    arrays = {f"weight {v.path}": v.numpy() for v in model.variables if "seed" not in v.path}
    arrays |= {f"figure {name}": np.array(values) for name, values in history.items()}
    arrays |= {head: getattr(seen, head).counts for head in ("coarse", "fine", "refine")}
    pairs = zip(model.variables, start, strict=True)
    moved = max(float(np.abs(v.numpy() - s).max()) for v, s in pairs)
    np.savez(out, moved=moved, difficulty=seen.attention.counts, **arrays)


def _evaluated(model: Any, workers: Collectives) -> EpochCounts:
    mine = slice(workers.index, None, workers.count)
    sizes = [(SIZE, SIZE)] * PICTURES
    # Nine images in batches of two: workers have unlike numbers of batches.
    batches, _ = evaluation_batches(SAMPLES[mine], sizes[mine], load, DATA, batch=2)
    return Evaluator(model, TAXONOMY).run(batches, pictures=PICTURES, total=workers.total)


def stock(strategy: Any, out: Path) -> None:
    """Writes the error of Keras's own `fit` under the strategy."""
    with strategy.scope():
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        model.compile(optimizer="sgd", loss="mse", jit_compile=False)
    data = tf.data.Dataset.from_tensor_slices((np.ones((8, 2)), np.ones((8, 1)))).batch(4)
    try:
        model.fit(data.repeat(), steps_per_epoch=2, verbose=0)
    except Exception as error:  # whatever it is, it is written down
        out.write_text(json.dumps({"works": False, "why": str(error)[:300]}))
    else:
        out.write_text(json.dumps({"works": True, "why": ""}))


def talk(workers: Collectives, out: Path) -> None:
    """Writes the results of the collectives."""
    first = workers.index == 0
    given = [
        np.array([1, 2**40], np.int64),
        np.array(0.5, np.float32),
        np.array([[2**31]], np.uint32),
        np.array([1.0 + 1e-12]),
    ]
    chiefs = workers.from_chief([np.array([workers.index + 7]), np.array([0.1], np.float32)])
    tree = {
        "total": [array.tolist() for array in workers.total(given)],
        "types": [array.dtype.name for array in workers.total(given)],
        "chief": [array.tolist() for array in chiefs],
        "text": workers.text_from_chief("grüße" if first else "another, longer text"),
        "any": [workers.any_of(False), workers.any_of(not first)],
    }
    out.write_text(json.dumps(tree))


def main() -> None:
    index, port, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    cluster: Cluster | None = None
    strategy: Any = tf.distribute.get_strategy()
    if index >= 0:
        addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
        task = {"type": "worker", "index": index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        cluster = find_cluster()
        assert cluster is not None
        strategy = connect(cluster, Console(quiet=True))
    workers = Collectives(strategy, cluster)
    talk(workers, folder / f"talk_{index}.json")
    train(strategy, workers, folder / f"train_{index}.npz")
    stock(strategy, folder / f"stock_{index}.json")  # last: it ends with an error


if __name__ == "__main__":
    main()
