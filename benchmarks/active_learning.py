"""Measures whether labelling the images that `ccfnet-tf rank` chooses saves labels.

    python -m benchmarks.active_learning --data.root ROOT --weights FILE --out OUT --json FILE

Pool-based active learning: a random tenth of the training images is labelled first; each round
labels another tenth, chosen by a strategy, and trains from the same initial weights with the same
number of steps. The test split is fixed. Strategies:

    random       images at random
    stratified   a class at random, then a random image in which the network predicts it: a fair
                 random for rare classes
    risk         the largest expected numbers of wrong pixels
    rank         `ccfnet-tf rank`

Two pools: `images`, the training images, and `film`, frames of a synthetic camera that pans and
zooms over some of them (near-duplicates, as in a video). The network is a head of two 1x1
convolutions on a frozen ImageNet backbone whose features are computed once, so a training takes
seconds; scores are over every eighth pixel in each direction.

Each training writes one file to OUT, completely or not at all: a benchmark that was killed
continues where it was when it is started again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from benchmarks.active_learning_features import Pool, film, store, stored
from ccfnet_tf.benchmark.machine import machine, refuse_lost_json, write_json
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.config import DataConfig
from ccfnet_tf.datasets.open_data_set import Parts, read_parts
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError
from ccfnet_tf.inference.choose_images_to_label import Candidate, choose
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow

STRATEGIES = ("random", "stratified", "risk", "rank")
RANDOM = ("random", "stratified")
"""The strategies that all are compared with."""
POOLS = ("images", "film")
START, FULL = "start", "full"

Key = tuple[int, str, int]
"""Seed, strategy and number of the round of a training."""

_HIDDEN = 128
_BATCH = 2048  # pixels
_RATE = 1e-3
_ROWS = 1 << 16  # pixels predicted at once
_COMMON = 0.01  # share of an image's pixels from which a class counts as predicted in it
_BOOTSTRAP = 1000
_ENOUGH = 0.95  # of the mean IoU of a training on all labels


@dataclass(frozen=True)
class Setting:
    """The size of the benchmark."""

    seeds: int
    rounds: int
    steps: int
    share: float = 0.1


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        labelled: int64; indices of the labelled images.
        counts: int64 [T, C, C]; confusion matrix of each test image, rows are labels.
        wrong: float64 [N, C]; expected number of wrong pixels of each image by predicted class.
        predicted: float64 [N, C]; share of each image's pixels by predicted class.
    """

    labelled: np.ndarray
    counts: np.ndarray
    wrong: np.ndarray
    predicted: np.ndarray


def main(args: Sequence[str]) -> int:
    """Runs all trainings that are missing, prints the tables and returns the exit code."""
    options = new_parser().parse_args(args)
    for name in ("seeds", "rounds", "steps", "clips"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}: it must be 1 or more")
    refuse_lost_json(options.json)
    console = new_console()
    start_tensorflow()
    parts = read_parts(DataConfig(root=options.root, val_share=0.0), 0)
    setting = Setting(options.seeds, options.rounds, options.steps)
    tree: dict[str, Any] = {"machine": machine("tensorflow"), "setting": vars(setting)}
    console.print("computing features")
    _store_all(parts, options.out, options.weights, options.clips, console)
    test = stored(options.out / "test")
    for name in POOLS:
        pool = stored(options.out / name)
        folder = options.out / f"{name}_{setting.steps}_steps"
        trainings = Trainings(pool, test, len(parts.taxonomy.names), setting, folder)
        with new_progress(console) as bar:
            task = bar.add_task(name, total=setting.seeds * (2 + len(STRATEGIES) * setting.rounds))
            results = trainings.all(partial(bar.advance, task))
        summary = summarised(results, len(pool), setting)
        tree[name] = summary
        for line in markdown(f"{name}: {len(pool)} images, {len(test)} test images", summary):
            console.print(line)
        if options.json:
            write_json(options.json, tree)
    return EXIT_DONE


@dataclass(frozen=True)
class Trainings:
    """The trainings of a pool.

    Attributes:
        pool: Images to choose from.
        test: Images to score.
        classes: Number of classes.
        setting: The size of the benchmark.
        folder: Where results are stored.
    """

    pool: Pool
    test: Pool
    classes: int
    setting: Setting
    folder: Path

    def all(self, advance: Callable[[], object]) -> dict[Key, Result]:
        """Returns the result of each seed, strategy and round; stored ones are not repeated.

        The strategy of the first training (round 0) is `START`, that on all labels `FULL`.
        """
        results: dict[Key, Result] = {}
        count = max(1, round(self.setting.share * len(self.pool)))
        for seed in range(self.setting.seeds):
            order = np.random.default_rng(seed).permutation(len(self.pool))
            for strategy, labelled in ((START, order[:count]), (FULL, order)):
                results[seed, strategy, 0] = self._result((seed, strategy, 0), labelled)
                advance()
            for strategy in STRATEGIES:
                before = results[seed, START, 0]
                for number in range(1, self.setting.rounds + 1):
                    rng = np.random.default_rng([seed, number, STRATEGIES.index(strategy)])
                    new = chosen(strategy, before, self.pool, count, rng)
                    labelled = np.append(before.labelled, new)
                    before = self._result((seed, strategy, number), labelled)
                    results[seed, strategy, number] = before
                    advance()
        return results

    def _result(self, key: Key, labelled: np.ndarray) -> Result:
        seed, strategy, number = key
        path = self.folder / f"seed{seed}_{strategy}_{number}.npz"
        if path.exists():
            with np.load(path) as arrays:
                result = Result(**arrays)
            if not np.array_equal(result.labelled, labelled):
                raise ConfigError(
                    f"{path}: trained on other images than are chosen now: give a new --out"
                )
            return result
        steps = self.setting.steps
        result = train(self.pool, self.test, labelled, self.classes, seed=seed, steps=steps)
        _save(path, result)
        return result


def chosen(
    strategy: str, before: Result, pool: Pool, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns the indices of the images that are labelled next, at most `count`."""
    left = np.setdiff1d(np.arange(len(pool)), before.labelled)
    by_risk = left[np.argsort(-before.wrong[left].sum(axis=1), kind="stable")]
    if strategy == "random":
        return rng.permutation(left)[:count]
    if strategy == "risk":
        return by_risk[:count]
    if strategy == "stratified":
        return _stratified(before.predicted, left, count, rng)
    candidates = [Candidate(before.wrong[n], 0.0, pool.pooled[n], pool.thumbnails[n]) for n in left]
    ranked = left[[choice.index for choice in choose(candidates, count)]]
    # The last rounds of a film have fewer images than wanted that are no near-duplicates.
    return np.concatenate([ranked, by_risk[~np.isin(by_risk, ranked)]])[:count]


def _stratified(
    predicted: np.ndarray, left: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    taken: list[int] = []
    while len(taken) < min(count, len(left)):
        rest = left[~np.isin(left, taken)]
        shown = predicted[rest] >= _COMMON
        index = rng.choice(np.flatnonzero(shown.any(axis=0)))
        taken.append(int(rng.choice(rest[shown[:, index]])))
    return np.array(taken)


def train(
    pool: Pool, test: Pool, labelled: np.ndarray, classes: int, *, seed: int, steps: int
) -> Result:
    """Trains a head on the labelled images and predicts the test images and the pool.

    Args:
        pool: Images to learn from.
        test: Images to score.
        labelled: Indices of the images of the pool whose labels are used.
        classes: Number of classes C.
        seed: Seed of the initial weights and of the batches.
        steps: Number of steps.
    """
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    # The scale of the features needs no label.
    sample = np.asarray(pool.features[:: max(1, len(pool.features) // _ROWS)], np.float32)
    scale = keras.layers.Normalization(mean=sample.mean(0), variance=sample.var(0) + 1e-6)
    layers = keras.layers
    head = keras.Sequential(
        [
            keras.Input((pool.features.shape[1],)),
            scale,
            layers.Dense(_HIDDEN, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(classes),
        ]
    )
    rate = keras.optimizers.schedules.CosineDecay(_RATE, steps)
    optimizer = keras.optimizers.AdamW(rate)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(features: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss(labels, head(features, training=True))
        variables = head.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))

    pixels = pool.pixels(labelled)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        batch = np.sort(rng.choice(pixels, _BATCH))
        step(tf.constant(pool.features[batch], tf.float32), tf.constant(pool.labels[batch]))

    @tf.function(input_signature=[tf.TensorSpec([None, pool.features.shape[1]], tf.float32)])
    def predict(features: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(head(features, training=False))

    def predicted(images: Pool) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            _label_and_risk(predict(tf.constant(images.features[at : at + _ROWS], tf.float32)))
            for at in range(0, len(images.features), _ROWS)
        ]
        labels, risk = (np.concatenate(each) for each in zip(*parts, strict=True))
        return labels, risk

    labels, risk = predicted(pool)
    return Result(
        np.asarray(labelled, np.int64),
        _by_image(test, classes, predicted(test)[0]),
        _sums(pool, labels, risk, classes),
        _sums(pool, labels, np.ones(len(labels)), classes) / np.diff(pool.first)[:, None],
    )


def _label_and_risk(probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    found = np.asarray(probabilities)
    return found.argmax(axis=1), 1.0 - found.max(axis=1)


def _sums(pool: Pool, labels: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
    """Returns sums of weights [P] by image and class, float64 [N, C]."""
    image = np.repeat(np.arange(len(pool)), np.diff(pool.first))
    sums = np.bincount(image * classes + labels, weights, minlength=len(pool) * classes)
    return sums.reshape(len(pool), classes)


def _by_image(test: Pool, classes: int, labels: np.ndarray) -> np.ndarray:
    """Returns confusion matrices int64 [T, C, C] of predicted labels [P]."""
    image = np.repeat(np.arange(len(test)), np.diff(test.first))
    known = test.labels >= 0
    cell = (image[known] * classes + test.labels[known]) * classes + labels[known]
    counts = np.bincount(cell, minlength=len(test) * classes**2)
    return counts.reshape(len(test), classes, classes)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Returns the mean IoU over the classes that labels contain, [...] of counts [..., C, C]."""
    both = np.diagonal(counts, axis1=-2, axis2=-1)
    truth = counts.sum(axis=-1)
    union = truth + counts.sum(axis=-2) - both
    iou = both / np.maximum(union, 1)
    return np.asarray((iou * (truth > 0)).sum(axis=-1) / np.maximum((truth > 0).sum(axis=-1), 1))


def summarised(results: dict[Key, Result], images: int, setting: Setting) -> dict[str, Any]:
    """Returns the figures of a pool: curves, areas, and differences with 95 % intervals.

    The area is the mean over the rounds of mean IoU. Intervals are percentiles of a paired
    bootstrap over seeds and test images.
    """
    seeds, rounds = range(setting.seeds), range(1, setting.rounds + 1)
    counts = {
        strategy: np.stack(
            [[results[seed, strategy, number].counts for number in rounds] for seed in seeds]
        )
        for strategy in STRATEGIES
    }
    start = np.stack([results[seed, START, 0].counts for seed in seeds])
    full = float(mean_iou(np.stack([results[s, FULL, 0].counts.sum(0) for s in seeds])).mean())
    first = float(mean_iou(start.sum(axis=1)).mean())
    areas = {strategy: list[float]() for strategy in STRATEGIES}
    rng = np.random.default_rng(0)
    tests = start.shape[1]
    for _ in range(_BOOTSTRAP):
        some = rng.integers(0, setting.seeds, setting.seeds)
        weights = np.bincount(rng.integers(0, tests, tests), minlength=tests)
        for strategy, each in counts.items():
            areas[strategy].append(
                float(mean_iou(np.tensordot(weights, each[some], (0, 2))).mean())
            )
    summary: dict[str, Any] = {"full": full, "images": images, "strategies": {}}
    labels = [len(results[0, START, 0].labelled)]
    labels += [len(results[0, STRATEGIES[0], number].labelled) for number in rounds]
    summary["labelled"] = [count / images for count in labels]
    for strategy, each in counts.items():
        curve = [first, *mean_iou(each.sum(axis=2)).mean(axis=0).tolist()]
        summary["strategies"][strategy] = {
            "mean_iou": curve,
            "area": float(np.mean(curve[1:])),
            "area_interval": np.percentile(areas[strategy], [2.5, 97.5]).tolist(),
            "gain_over": {
                other: _gain(counts[other], curve, areas[strategy], areas[other])
                for other in RANDOM
            },
            "labels_to_95_percent": labels_needed(summary["labelled"], curve, _ENOUGH * full),
        }
    return summary


def _gain(
    other: np.ndarray, curve: Sequence[float], areas: Sequence[float], others: Sequence[float]
) -> dict[str, Any]:
    """Returns the difference of two areas, and the interval of bootstrapped differences."""
    difference = np.array(areas) - np.array(others)
    return {
        "area": float(np.mean(curve[1:]) - mean_iou(other.sum(axis=2)).mean()),
        "interval": np.percentile(difference, [2.5, 97.5]).tolist(),
    }


def labels_needed(shares: Sequence[float], curve: Sequence[float], goal: float) -> float | None:
    """Returns the share of labels at which a curve reaches a goal, linear between rounds."""
    if curve[0] >= goal:
        return shares[0]
    for at in range(1, len(curve)):
        if curve[at] >= goal:
            part = (goal - curve[at - 1]) / (curve[at] - curve[at - 1])
            return shares[at - 1] + part * (shares[at] - shares[at - 1])
    return None


def markdown(title: str, summary: dict[str, Any]) -> list[str]:
    """Returns the figures of a pool as a Markdown table."""
    shares = " | ".join(f"{share:.0%}" for share in summary["labelled"])
    gains = " | ".join(f"minus {other} (95 % interval)" for other in RANDOM)
    lines = [
        f"{title}; mean IoU with all labels {summary['full']:.2%}",
        "",
        f"| strategy | {shares} | mean of rounds | {gains} | labels to 95 % |",
        "|---" * (len(summary["labelled"]) + len(RANDOM) + 3) + "|",
    ]
    for strategy, row in summary["strategies"].items():
        curve = " | ".join(f"{100 * value:.2f}" for value in row["mean_iou"])
        gain = " | ".join(
            "-" if other == strategy else _text(each) for other, each in row["gain_over"].items()
        )
        needed = row["labels_to_95_percent"]
        share = "not reached" if needed is None else f"{needed:.0%}"
        lines.append(f"| {strategy} | {curve} | {100 * row['area']:.2f} | {gain} | {share} |")
    return lines


def _text(gain: dict[str, Any]) -> str:
    low, high = (100 * value for value in gain["interval"])
    return f"{100 * gain['area']:+.2f} ({low:+.2f} to {high:+.2f})"


def _store_all(parts: Parts, out: Path, weights: Path, clips: int, console: Any) -> None:
    """Stores the test images and both pools, if they are missing."""
    samples = (*parts.train, *parts.val)
    order = np.random.default_rng(0).permutation(len(samples))[:clips].tolist()

    def frames() -> Iterator[tuple[int, Any]]:
        for index in order:
            for pair in film(parts.load(samples[index]), np.random.default_rng([1, index])):
                yield index, pair

    tasks: dict[str, Callable[[], Iterator[tuple[int, Any]]]] = {
        "test": lambda: ((n, parts.load(each)) for n, each in enumerate(parts.test)),
        "images": lambda: ((n, parts.load(each)) for n, each in enumerate(samples)),
        "film": frames,
    }
    missing = [name for name in tasks if not (out / name).exists()]
    if not missing:
        return
    extract = extractor(weights)
    with new_progress(console) as bar:
        for name in missing:
            task = bar.add_task(f"features of {name}", total=None)
            store(out / name, tasks[name](), extract, partial(bar.advance, task))


def extractor(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function of an image, uint8 [H, W, 3], to its stride-8 features [h, w, F]."""
    import keras
    import tensorflow as tf

    from ccfnet_tf.network.ccfnet import build_ccfnet
    from ccfnet_tf.network.labels_and_maps import with_features

    network = build_ccfnet(2, backbone="mobilenet_v2", backbone_weights=weights, head_channels=1)
    features = keras.Model(network.inputs, with_features(network).output["features"])

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])
    def extracted(image: tf.Tensor) -> tf.Tensor:
        return features(tf.cast(image[tf.newaxis], tf.float32), training=False)[0]

    return lambda image: np.asarray(extracted(tf.constant(image)))


def _save(path: Path, result: Result) -> None:
    def write(file: BinaryIO) -> None:
        np.savez(file, **vars(result))

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, write, fix="free space", otherwise="give another --out")


def new_parser() -> Parser:
    """Returns the parser of this benchmark."""
    parser = Parser(prog="python -m benchmarks.active_learning", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data.root", dest="root", required=True, help="data set with a test split"
    )
    weights = "ImageNet weights of MobileNetV2 without its classifier"
    parser.add_argument("--weights", type=Path, required=True, help=weights)
    parser.add_argument("--out", type=Path, required=True, help="folder for features and trainings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--seeds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=800, help="of a training (%(default)s)")
    parser.add_argument("--clips", type=int, default=60, help="clips of the film (%(default)s)")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"active learning: {error}\n")
        sys.exit(EXIT_USER_ERROR)
