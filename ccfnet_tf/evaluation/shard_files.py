"""Files of partial evaluations: `evaluate --shard` writes them, and `--merge` adds them up.

evaluation.K-of-N.json contains {"shard": [K, N], "weights": digest of weights and calibration,
"evaluation": what `Evaluation.to_state` returns}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.io.annotation_json import read_json
from ccfnet_tf.io.checksum import sha256_of
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.network.calibration_parameters import Calibration
from ccfnet_tf.runs.run_folder import RunInfo
from ccfnet_tf.runs.write_run_files import write_text

Shard = tuple[int, int]
"""(K, N): the K-th of N parts, from 1."""

MOST_SHARDS = 999_999
"""Largest N that `evaluate --shard` accepts."""


def weights_digest(run: RunInfo, calibration: Calibration) -> str:
    """Returns a digest of a run's checkpoint, its kernels' precision and a calibration."""
    kernels = run.config.train.kernel_precision
    rounded = "" if kernels == "float32" else f" {kernels}"  # as in files of older versions
    parts = f"{sha256_of(run.checkpoint())} {calibration}{rounded}"
    return hashlib.sha256(parts.encode()).hexdigest()


def write_shard(folder: Path, evaluation: Evaluation, shard: Shard, weights: str) -> Path:
    """Writes a part of an evaluation and returns the path.

    Raises:
        ResourceError: The disk is full or the folder cannot be written.
    """
    path = folder / f"evaluation.{shard[0]}-of-{shard[1]}.json"
    tree = {"shard": shard, "weights": weights, "evaluation": evaluation.to_state()}
    write_text(path, json.dumps(tree, indent=1) + "\n")
    return path


def merge_shards(paths: Sequence[Path], taxonomy: Taxonomy, weights: str) -> Evaluation:
    """Adds up all parts of an evaluation.

    Args:
        paths: Files that `write_shard` wrote, at least one, in any order.
        taxonomy: The classes of the network.
        weights: Digest of its checkpoint.

    Raises:
        DataError: A file is damaged or belongs to another network, or a part is missing or given
            twice.
    """
    shards: dict[Shard, Path] = {}
    parts = []
    for path in paths:
        shard, part = _read_shard(path, taxonomy, weights)
        if shard in shards:
            raise DataError(
                f"{path}: part {shard[0]} of {shard[1]}, as {shards[shard]} is: give each once"
            )
        shards[shard] = path
        parts.append(part)
    _refuse_missing(shards)
    try:
        first = parts[0]
        total = Evaluation.total(parts, taxonomy, split=first.split, wrapping=first.wrapping)
    except ValueError as error:
        raise DataError(f"{path} and the other parts: {error}: evaluate them again") from error
    places = total.images.numbers[:, 0]
    if not np.array_equal(places, np.arange(places.size)):
        raise DataError(
            f"{path} and the other parts: some images are missing: their splits had different "
            "numbers of images: evaluate them again on the same data"
        )
    return total


def _read_shard(path: Path, taxonomy: Taxonomy, weights: str) -> tuple[Shard, Evaluation]:
    if not path.exists():
        raise DataError(f"{path}: no such file: give the files that evaluate --shard K/N wrote")
    tree = read_json(path)
    shard = tree.get("shard")
    if not (
        isinstance(shard, list)
        and [type(each) for each in shard] == [int, int]
        and 1 <= shard[0] <= shard[1] <= MOST_SHARDS
    ):
        raise DataError(f"{path}: not a part of an evaluation, as `evaluate --shard` writes it")
    if tree.get("weights") != weights:
        raise DataError(
            f"{path}: is of another run, or of other weights or another calibration than this run "
            "has now: evaluate that part again with this run"
        )
    try:
        return (shard[0], shard[1]), Evaluation.from_state(tree.get("evaluation"), taxonomy)
    except ValueError as error:
        raise DataError(f"{path}: {error}: evaluate that part again") from error


def _refuse_missing(shards: dict[Shard, Path]) -> None:
    (_, count), path = next(iter(shards.items()))
    if other := [each for each in shards if each[1] != count]:
        raise DataError(
            f"{shards[other[0]]}: a part of {other[0][1]}, but {path} is a part of {count}: give "
            "the parts of one division"
        )
    if missing := [str(k) for k in range(1, count + 1) if (k, count) not in shards]:
        raise DataError(
            f"missing of {count} parts: {', '.join(missing)}: give all files "
            f"evaluation.K-of-{count}.json"
        )
