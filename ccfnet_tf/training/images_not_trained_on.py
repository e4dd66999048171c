"""The images that a run, or the runs of a cross-validation, did not train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from ccfnet_tf.datasets.class_and_split_lists import plain_name
from ccfnet_tf.datasets.open_data_set import Parts
from ccfnet_tf.errors import ConfigError, DataError, RunError, unreadable
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.labels import Sample
from ccfnet_tf.report.evaluation_in_words import counted
from ccfnet_tf.runs.run_data import read_run_parts
from ccfnet_tf.runs.run_folder import CROSSVAL_CONFIG, CROSSVAL_RESULT, RunInfo, read_run
from ccfnet_tf.training.data_digest import EARLIER, Digest, Row, read_seen, read_trained

Use = Literal["evaluate", "calibrate on"]

_EFFECT: dict[Use, str] = {
    "evaluate": "the figures are too good for new images",
    "calibrate on": "the risk of new images will be too low",
}
"""What it means that a run was trained on some images."""


@dataclass(frozen=True)
class HeldOut:
    """A run, and images that it did not train on.

    Attributes:
        run: The run.
        parts: All splits of its data.
        samples: The images.
        splits: Splits that `samples` come from, with the number of images of each.
        copies: Images of these splits that are left out, because the run was trained on the same.
    """

    run: RunInfo
    parts: Parts
    samples: tuple[Sample, ...]
    splits: dict[str, int]
    copies: tuple[Sample, ...] = ()


def read_runs(folder: Path) -> list[RunInfo]:
    """Reads a run, or the runs of all folds of a finished cross-validation.

    Args:
        folder: A run folder, or the folder of `crossval`.

    Raises:
        RunError: The folder cannot be used, a fold is missing, or a run has no checkpoint.
    """
    folders = [folder]
    if (folder / CROSSVAL_CONFIG).is_file():
        folders = [folder / f"fold_{fold}" for fold in range(_folds(folder))]
        missing = [run.name for run in folders if not run.is_dir()]
        if missing:
            raise RunError(
                f"{folder}: {', '.join(missing)} of {len(folders)} folds missing: train with "
                "ccfnet-tf crossval --resume, or give the folder of one run"
            )
    runs = [read_run(run) for run in folders]
    for run in runs:
        run.checkpoint()  # Raises an error if there is none.
    return runs


def held_out(runs: Sequence[RunInfo], root: str | None = None) -> list[HeldOut]:
    """Returns the images that each run did not train on.

    Args:
        runs: One run: its test and validation splits. Or the folds of a cross-validation: the test
            split of each, so that no image is predicted twice.
        root: Where the data are now, if they were moved.

    Raises:
        RunError: The data have other classes than a run.
        DataError: The data cannot be used, or a run has no such image.
    """
    splits = ("test", "val") if len(runs) == 1 else ("test",)
    return [_of_run(run, root, splits) for run in runs]


def _folds(folder: Path) -> int:
    """Returns the number of folds of a finished cross-validation."""
    result = folder / CROSSVAL_RESULT
    if not result.is_file():
        raise RunError(
            f"{folder}: no {CROSSVAL_RESULT}: not all folds are trained: continue with ccfnet-tf "
            "crossval --resume, or give the folder of one run"
        )
    try:
        tree: Any = json.loads(result.read_text(encoding="utf-8"))
        return len(tree["folds"])
    except OSError as error:
        raise RunError(f"{result}: {unreadable(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(
            f"{result}: damaged ({error}): remove it and write it again with ccfnet-tf crossval "
            "--resume"
        ) from error


def _of_run(run: RunInfo, root: str | None, splits: tuple[str, ...]) -> HeldOut:
    parts = read_run_parts(run, root)
    found = {split: getattr(parts, split) for split in splits if getattr(parts, split)}
    if not found:
        place = root or run.config.data.root or parts.format
        raise DataError(
            f"{place}: no {' or '.join(splits)} split: {run.path} has no image that it "
            "did not train on, and a network repeats the labels it was trained on: train "
            "with data.val_share above 0, or use ccfnet-tf crossval"
        )
    samples = tuple(sample for each in found.values() for sample in each)
    _refuse_trained(samples, read_trained(run.path), run.path)
    copies = copies_of(read_seen(run.path), samples, parts)
    if len(copies) == len(samples):
        raise DataError(
            f"{run.path}: trained on every image of {' and '.join(found)}, under other names or "
            "before (model.init_from): use the data and the splits of the training (--data.root), "
            "or ccfnet-tf crossval"
        )
    left_out = set(copies)
    kept = {split: [each for each in found[split] if each not in left_out] for split in found}
    samples = tuple(sample for each in kept.values() for sample in each)
    counts = {split: len(each) for split, each in kept.items() if each}
    return HeldOut(run, parts, samples, counts, copies)


def copies_of(
    trained: Sequence[Row], samples: Sequence[Sample], parts: Parts
) -> tuple[Sample, ...]:
    """Returns those of some samples whose image is the same as a training image.

    Names are not compared: data sets that were exported by the same program share them. An image
    in a shard is known only to runs that were trained on the same shards.

    Args:
        trained: Samples that a run was trained on, as `read_seen` returns them.
        samples: Samples of the data as they are now.
        parts: All splits of these data.

    Raises:
        DataError: An image cannot be read.
    """
    images = {row.image for row in trained}
    if not images:
        return ()
    digests = in_threads(parts.fingerprint, samples, 0)
    return tuple(
        sample for sample, digest in zip(samples, digests, strict=True) if digest in images
    )


def warn_of_seen(parts: Parts, digest: Digest, console: Console, *, init_from: str | None) -> None:
    """Warns if earlier training saw images of the present validation or test split.

    Args:
        parts: All splits of the data.
        digest: Their digest, from `with_earlier`.
        console: Where the warning is printed.
        init_from: The run that the initial weights come from, if any.

    Raises:
        DataError: An image of the test split cannot be read.
    """
    seen = {row.image for row in digest[EARLIER]}
    validation = sum(row.image in seen for row in digest["val"])
    test = len(copies_of(digest[EARLIER], parts.test, parts))
    counts = {"validation": (validation, parts.val), "test": (test, parts.test)}
    found = [
        f"{count} of the {counted(len(samples), f'{split} image')}"
        for split, (count, samples) in counts.items()
        if count
    ]
    if not found:
        return
    chosen = ", and the checkpoint is chosen by such figures" if validation else ""
    fix = (
        f"; to keep the splits of {init_from}, give its data.fold, data.val_share, data.lists and "
        "seed"
        if init_from
        else ""
    )
    console.print(
        f"warning: earlier training has seen {' and '.join(found)}: figures on them are too good "
        f"for new images{chosen}{fix}",
        markup=False,
        soft_wrap=True,
    )


def warn_of_trained(
    run: Path, samples: Sequence[Sample], parts: Parts, console: Console, *, use: Use = "evaluate"
) -> None:
    """Warns if a run was trained on some of the images that it is evaluated or calibrated on.

    Args:
        run: The run.
        samples: The images.
        parts: All splits of their data.
        console: Where the warning is printed.
        use: What the images are used for.

    Raises:
        DataError: An image cannot be read.
    """
    known = copies_of(read_seen(run), samples, parts)
    if not known:
        return
    images = (
        f"{len(known)} of the {len(samples)} images to {use} "
        f"({known[0].image}{' and others' if len(known) > 1 else ''})"
    )
    if copies_of(read_trained(run), known, parts):
        text = (
            f"{run} was trained on {images}: {_EFFECT[use]}; use the "
            "splits of the training (--data.root), or, if the data set has copies, ccfnet-tf data "
            "split"
        )
    else:
        text = (
            f"training before {run} (model.init_from, or data that have changed since) has seen "
            f"{images}: {_EFFECT[use]}"
        )
    console.print(f"warning: {text}", markup=False, soft_wrap=True)


def refuse_seen(init_from: str, samples: Sequence[Sample], parts: Parts, where: str) -> None:
    """Checks that the weights of `model.init_from` were not trained on some images.

    Args:
        init_from: A run folder. Of a run without digest, nothing is known.
        samples: Images on which a network with these weights will be evaluated.
        parts: All splits of their data.
        where: Which images they are, such as `test images of fold 1`.

    Raises:
        ConfigError: They were.
        DataError: An image cannot be read.
    """
    seen = copies_of(read_seen(Path(init_from)), samples, parts)
    if seen:
        raise ConfigError(
            f"model.init_from {init_from}: was trained on {len(seen)} of the {len(samples)} "
            f"{where} ({seen[0].image}{' and others' if len(seen) > 1 else ''}), whose figures "
            "would be too good: use a run that was not, or model.backbone_weights"
        )


def _refuse_trained(samples: Sequence[Sample], trained: Sequence[Row], run: Path) -> None:
    names = {row.name for row in trained}
    both = [sample.name for sample in samples if plain_name(sample.name) in names]
    if both:
        more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
        raise DataError(
            f"{run}: trained on '{both[0]}'{more}, which the data now have in another split: use "
            "the data and the splits of the training (--data.root)"
        )
