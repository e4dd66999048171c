"""Plants errors in labels that a network did not train on, and measures how well they are found.

    python -m benchmarks.label_errors RUN [--cache FILE.npz] [--json FILE.json]

RUN is the folder of `crossval`: all images, each predicted by the run of the fold that has it in
its test split; or a run folder: its test split.

In 10 % of the label maps one error is planted: a component becomes the class around it (drop), a
component becomes another class (swap), or the label map is moved by 8 to 24 pixels (shift). Files
are not changed. Images are then ranked by several scores, and the ranking is measured by average
precision and precision at 50, for five seeds. Images with genuine label errors count as correct.

The scores: the sum of the regions of `ccfnet-tf data suspects`, its `image_score`; its best region;
the share of pixels that contradict their label; and `softmin` of cleanlab (`pip install
cleanlab==2.9.0`), the best of the scores compared by Lad and Mueller, "Estimating label quality and
errors in semantic segmentation data via any model" (2023, arXiv 2307.05080). cleanlab takes label
maps of one size and without void: it is called for one image at a time, which changes nothing
because its score is per image, and void pixels are given the predicted class, which it holds for
correct.
"""

from __future__ import annotations

import hashlib
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np

from ccfnet_tf.benchmark.machine import machine, refuse_lost_json, write_json
from ccfnet_tf.cli.argument_parser import Parser
from ccfnet_tf.errors import EXIT_DONE, EXIT_USER_ERROR, CCFNetError, ConfigError, DataError
from ccfnet_tf.evaluation.shard_files import weights_digest
from ccfnet_tf.evaluation.suspects import Region, find_regions, image_score, log_odds
from ccfnet_tf.io.atomic_file import write_atomic
from ccfnet_tf.io.console import new_console, new_progress
from ccfnet_tf.io.quiet_tensorflow import start_tensorflow
from ccfnet_tf.labels import VOID
from ccfnet_tf.network.calibration_parameters import UNCALIBRATED
from ccfnet_tf.runs.run_folder import RunInfo
from ccfnet_tf.training.images_not_trained_on import HeldOut, held_out, read_runs

if TYPE_CHECKING:
    from rich.console import Console

KINDS = ("drop", "swap", "shift")
SHARE = 0.1  # of the images get an error
SEEDS = 5
CUT = 50  # images that a person looks at

_SMALLEST, _LARGEST = 0.01, 0.5  # area of a component that is changed, by that of the image
_NEAREST, _FARTHEST = 8, 24  # pixels that a label map is moved by
_T95 = 2.776  # 97.5 % quantile of Student's t with SEEDS - 1 = 4 degrees of freedom
_LOGS_END = -60.0  # of float16 logarithms in the cache

Score = Callable[[np.ndarray, np.ndarray], float]
"""Maps a label map [H, W] and probabilities [H, W, C] to a number; larger is more suspicious."""


class Example(NamedTuple):
    """An image: its label int32 [H, W], and log-probabilities float16 [H, W, C]."""

    label: np.ndarray
    logs: np.ndarray


def main(args: Sequence[str]) -> int:
    """Prints the table and returns the exit code."""
    parser = Parser(
        prog="python -m benchmarks.label_errors",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", type=Path, help="folder of crossval, or a run folder whose data have a test split"
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FILE.npz",
        help="predictions of an earlier call, or where to keep them: 1.2 MB for each image of "
        "Stanford Background",
    )
    parser.add_argument("--json", type=Path, metavar="FILE.json", help="write the figures")
    given = parser.parse_args(args)
    refuse_lost_json(given.json)
    scores = {**SCORES, "cleanlab softmin": _softmin_score()}
    start_tensorflow()
    console = new_console()
    runs = read_runs(given.run)
    examples = predictions(runs, given.cache, console)
    figures = measure(examples, scores, console)
    for line in table(figures, len(examples)):
        console.print(line)
    if given.json:
        rows = {name: [each._asdict() for each in found] for name, found in figures.items()}
        tree = {"runs": len(runs), "calibrated": all_calibrated(runs), "images": len(examples)}
        write_json(given.json, {**tree, "machine": machine("tensorflow"), "figures": rows})
    return EXIT_DONE


def all_calibrated(runs: Sequence[RunInfo]) -> bool:
    """Returns whether every run is calibrated."""
    return all(run.calibration() != UNCALIBRATED for run in runs)


def predictions(runs: Sequence[RunInfo], cache: Path | None, console: Console) -> list[Example]:
    """Returns the labels and the predictions of the test split of each run.

    Args:
        runs: A run, or those of a cross-validation.
        cache: File that holds the predictions, if it exists and is of the same checkpoints,
            calibrations and images; else it is written. None: none.
        console: Where progress is shown.

    Raises:
        CCFNetError: A run or its data cannot be used, or there is no test split.
    """
    held = held_out(runs)
    for each in held:
        if not each.parts.test:
            raise DataError(
                f"{each.run.path}: its data have no test split, in which errors could be planted"
            )
    samples = [(each.parts, sample) for each in held for sample in each.parts.test]
    key = hashlib.sha256("\n".join(map(_depends_on, held)).encode()).hexdigest()
    logs = _read_cache(cache, key, len(samples)) if cache else None
    if logs is None:
        logs = _predict(held, console)
        if cache:
            arrays = [np.array(key), *logs]
            write_atomic(cache, lambda file: np.savez(file, *arrays), fix="free space")
    labels = [parts.load(sample)[1] for parts, sample in samples]
    return [Example(*each) for each in zip(labels, logs, strict=True)]


def _depends_on(held: HeldOut) -> str:
    """Returns what the predictions of a run's test split depend on."""
    weights = weights_digest(held.run, held.run.calibration())
    return "\n".join([weights, *(sample.name for sample in held.parts.test)])


def _predict(held: Sequence[HeldOut], console: Console) -> list[np.ndarray]:
    """Returns log-probabilities, float16 [H, W, C], of each test image."""
    from ccfnet_tf.inference.keras_network import KerasNetwork

    smallest = np.exp(np.float32(_LOGS_END))
    logs = []
    with new_progress(console) as bar:
        task = bar.add_task("predicting", total=sum(len(each.parts.test) for each in held))
        for each in held:
            network = KerasNetwork(each.run.path)
            for sample in each.parts.test:
                probabilities = network.predict(each.parts.load(sample)[0]).probabilities
                logs.append(np.log(np.maximum(probabilities, smallest)).astype(np.float16))
                bar.advance(task)
    return logs


def _read_cache(cache: Path, key: str, count: int) -> list[np.ndarray] | None:
    if not cache.is_file():
        return None
    try:
        with cache.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["arr_0"]) != key:
                return None
            return [arrays[f"arr_{place}"] for place in range(1, count + 1)]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(f"{cache}: not a cache of predictions ({error}): remove it") from error


def plant(
    labels: Sequence[np.ndarray], classes: int, rng: np.random.Generator
) -> dict[int, tuple[str, np.ndarray]]:
    """Plants one error in a share `SHARE` of the label maps, of all kinds in turn.

    Args:
        labels: int32 [H, W] each; they are not changed.
        classes: Number of classes.
        rng: Chooses images, components, classes and offsets.

    Returns:
        Position of each changed label map -> kind of its error, and the changed label map. Images
        without a component of a fitting size are passed over for drops and swaps.
    """
    wanted = planted_in(len(labels))
    planted: dict[int, tuple[str, np.ndarray]] = {}
    for place in rng.permutation(len(labels)).tolist():
        if len(planted) == wanted:
            break
        kind = KINDS[len(planted) % len(KINDS)]
        label = labels[place]
        changed = shift(label, rng) if kind == "shift" else relabel(label, kind, classes, rng)
        if changed is not None:
            planted[place] = kind, changed
    return planted


def planted_in(images: int) -> int:
    """Returns how many of a number of images get an error."""
    return max(1, round(SHARE * images))


def relabel(
    label: np.ndarray, kind: str, classes: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Changes the class of one component.

    Args:
        label: int32 [H, W].
        kind: `drop`: the component becomes the class that most pixels around it have; `swap`: it
            becomes any other class, each equally likely.
        classes: Number of classes.
        rng: Chooses the component and the class.

    Returns:
        A changed copy; None if no component is of a fitting size, or all around it is void.
    """
    components = _components(label)
    if not components:
        return None
    inside = components[rng.integers(len(components))]
    own = int(label[inside][0])
    if kind == "swap":
        others = [index for index in range(classes) if index != own]
    else:
        ring = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~inside
        around = label[ring & (label != VOID) & (label != own)]
        others = [int(np.bincount(around).argmax())] if around.size else []
    if not others:
        return None
    changed = label.copy()
    changed[inside] = rng.choice(others)
    return changed


def _components(label: np.ndarray) -> list[np.ndarray]:
    """Returns the masks, bool [H, W], of the components whose area fits."""
    found = []
    for index in np.unique(label[label != VOID]).tolist():
        mask = (label == index).astype(np.uint8)
        count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        shares = stats[:count, cv2.CC_STAT_AREA] / label.size
        fitting = np.flatnonzero((shares >= _SMALLEST) & (shares <= _LARGEST))
        found += [numbers == number for number in fitting if number > 0]
    return found


def shift(label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves a label map in a random direction; its edge is repeated where nothing is known."""
    distance, angle = rng.integers(_NEAREST, _FARTHEST + 1), rng.uniform(0, 2 * np.pi)
    down, right = round(distance * np.sin(angle)), round(distance * np.cos(angle))
    rows = np.clip(np.arange(label.shape[0]) - down, 0, label.shape[0] - 1)
    columns = np.clip(np.arange(label.shape[1]) - right, 0, label.shape[1] - 1)
    return label[rows][:, columns]


def _regions(label: np.ndarray, probabilities: np.ndarray) -> list[Region]:
    return find_regions(label, probabilities.argmax(axis=-1), probabilities)


def _best_region(label: np.ndarray, probabilities: np.ndarray) -> float:
    return max((region.score for region in _regions(label, probabilities)), default=0.0)


def _sum_of_regions(label: np.ndarray, probabilities: np.ndarray) -> float:
    return image_score(_regions(label, probabilities))


def _contradicting_share(label: np.ndarray, probabilities: np.ndarray) -> float:
    odds = log_odds(label, probabilities.argmax(axis=-1), probabilities)
    return float((odds > 0).sum() / max(1, (label != VOID).sum()))


SCORES: dict[str, Score] = {
    "sum of regions": _sum_of_regions,
    "best region": _best_region,
    "share of pixels": _contradicting_share,
}


def _softmin_score() -> Score:
    try:
        from cleanlab.segmentation.rank import get_label_quality_scores
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{error}: this benchmark compares with cleanlab: pip install cleanlab==2.9.0, in an "
            "environment of its own"
        ) from error

    def score(label: np.ndarray, probabilities: np.ndarray) -> float:
        filled = np.where(label == VOID, probabilities.argmax(axis=-1), label)
        channels_first = probabilities.transpose(2, 0, 1)[None]
        quality, _ = get_label_quality_scores(filled[None], channels_first, verbose=False)
        return -float(quality[0])

    return score


class Figures(NamedTuple):
    """Figures of one score and seed, 0..1: `CUT` and the number of errors are cuts of the list."""

    average_precision: float
    at_cut: float
    at_errors: float
    drop: float
    swap: float
    shift: float


TITLES = (
    "average precision",
    f"precision at {CUT}",
    "precision at the number of errors",
    *(f"average precision, {kind} alone" for kind in KINDS),
)
"""Names of the fields of `Figures` in the table."""


def measure(
    examples: Sequence[Example], scores: Mapping[str, Score], console: Console
) -> dict[str, list[Figures]]:
    """Returns the figures of each score, one for each seed."""
    labels = [example.label for example in examples]
    classes = examples[0].logs.shape[-1]
    figures: dict[str, list[Figures]] = {name: [] for name in scores}
    with new_progress(console) as bar:
        task = bar.add_task("scoring", total=len(scores) * (len(examples)))
        clean: dict[str, np.ndarray] = {name: np.empty(len(examples)) for name in scores}
        for place, example in enumerate(examples):
            probabilities = _probabilities(example)
            for name, score in scores.items():
                clean[name][place] = score(example.label, probabilities)
                bar.advance(task)
    for seed in range(SEEDS):
        planted = plant(labels, classes, np.random.default_rng(seed))
        kinds = np.array(
            [planted[place][0] if place in planted else "" for place in range(len(labels))]
        )
        for name, score in scores.items():
            values = clean[name].copy()
            for place, (_, label) in planted.items():
                values[place] = score(label, _probabilities(examples[place]))
            figures[name].append(figures_of(values, kinds))
    return figures


def _probabilities(example: Example) -> np.ndarray:
    """Returns float32 [H, W, C] that sum to 1."""
    values = np.exp(example.logs.astype(np.float32))
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def figures_of(values: np.ndarray, kinds: np.ndarray) -> Figures:
    """Returns the figures of one ranking.

    Args:
        values: float [N], scores of the images.
        kinds: str [N], kind of the error in each image; empty if it has none.
    """
    planted = kinds != ""
    alone = [(kinds == kind) | ~planted for kind in KINDS]
    return Figures(
        average_precision(values, planted),
        precision_at(CUT, values, planted),
        precision_at(int(planted.sum()), values, planted),
        *(average_precision(values[chosen], planted[chosen]) for chosen in alone),
    )


def average_precision(values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the sum of precision x gain in recall over distinct scores; nan without positives."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.diff(values[order]) != 0, True)  # Equal scores share a step.
    hits, count = hits[last], np.arange(1, len(values) + 1)[last]
    gains = np.diff(hits, prepend=0)
    return float((hits / count * gains).sum() / hits[-1]) if hits[-1] else float("nan")


def precision_at(cut: int, values: np.ndarray, positive: np.ndarray) -> float:
    """Returns the share of positives among the first `cut` images; all if there are fewer."""
    first = np.argsort(-values, kind="stable")[:cut]
    return float(positive[first].mean())


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean of `SEEDS` values, and half of its 95 % interval by Student's t."""
    return statistics.mean(values), _T95 * statistics.stdev(values) / len(values) ** 0.5


def table(figures: Mapping[str, Sequence[Figures]], images: int) -> list[str]:
    """Returns a Markdown table of means and intervals, and of differences of the first and last."""
    names = list(figures)
    errors = planted_in(images)
    rows = [
        f"{images} images, {errors} with a planted error, {SEEDS} seeds; mean and 95 % interval",
        f"chance: {errors / images:.3f}; precision at {CUT} is at most {min(1, errors / CUT):.3f}",
        "",
        f"| | {' | '.join(names)} | {names[0]} - {names[-1]} |",
        "|---" * (len(names) + 2) + "|",
    ]
    for title, field in zip(TITLES, Figures._fields, strict=True):
        values = {name: [getattr(each, field) for each in figures[name]] for name in names}
        pairs = zip(values[names[0]], values[names[-1]], strict=True)
        cells = [*values.values(), [first - last for first, last in pairs]]
        texts = [f"{mean:.3f} ± {half:.3f}" for mean, half in map(interval, cells)]
        rows.append(f"| {title} | {' | '.join(texts)} |")
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CCFNetError as error:
        sys.stderr.write(f"label_errors: {error}\n")
        sys.exit(EXIT_USER_ERROR)
