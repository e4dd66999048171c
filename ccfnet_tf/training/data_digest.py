"""What a run's data were when it began, so that a resumed run notices a change.

    RUN/data_digest.json   {"version": 1, "train": [[name, picture, label], ...], "val": [...]}

Samples stand in the order of their part, under names whose letters with accents are one character
each, however the disk spells them. `picture` is a digest of the file as it is stored. `label`
is a digest of the class ids after reading: so a changed list of outlines, label map or table of
colours is noticed at the samples whose labels it changes. Paths are left out, since data may be
moved.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccfnet_tf.config import RunConfig
from ccfnet_tf.datasets.audit.scan import Checked, in_threads
from ccfnet_tf.datasets.name_lists import plain_name
from ccfnet_tf.errors import DataError
from ccfnet_tf.io.atomic_file import set_aside
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.runs.run_files import write_text
from ccfnet_tf.runs.run_folder import RunInfo, changed_class
from ccfnet_tf.training.data import RunData

FILE = "data_digest.json"
VERSION = 1
PARTS = ("train", "val")


class Row(NamedTuple):
    """A sample: its name, and digests of its image and its label."""

    name: str
    picture: str
    label: str


Digest = Mapping[str, Sequence[Row]]
"""Rows of the training and of the validation split."""


def digest_of(data: RunData, workers: int = 0) -> dict[str, list[Row]]:
    """Returns the digest of data that were looked at; reads the images' files, in threads.

    Raises:
        DataError: An image cannot be read.
    """

    def rows(samples: Sequence[Sample], seen: Checked) -> list[Row]:
        pictures = in_threads(data.parts.fingerprint, samples, workers)
        return [
            Row(plain_name(sample.name), picture, label)
            for sample, picture, label in zip(samples, pictures, seen.labels, strict=True)
        ]

    return {"train": rows(data.parts.train, data.train), "val": rows(data.parts.val, data.val)}


def write_digest(run: Path, digest: Digest) -> None:
    """Writes `data_digest.json`, one sample per line.

    Raises:
        ResourceError: The disk is full or the folder cannot be written; the older file stays.
    """
    parts = ",\n".join(
        f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in digest[part]) + "\n]"
        for part in PARTS
    )
    write_text(run / FILE, f'{{"version": {VERSION},\n{parts}}}\n')


def compare_with_start(
    config: RunConfig,
    run: Path,
    data: RunData,
    digest: Digest,
    *,
    accept: bool,
    say: Callable[[str], object],
) -> None:
    """Refuses to go on with other data than those that the run was begun with.

    Args:
        config: The run's configuration.
        run: The run folder.
        data: Its data, as they are now.
        digest: Their digest.
        accept: Go on all the same.
        say: Called with a line where data have changed and that is accepted, or where what they
            were is not known.

    Raises:
        DataError: They have changed, and that is not accepted, or an epoch has another number of
            steps now, so that the run could not find its place.
    """
    path = run / FILE
    if not path.is_file():
        say(f"{run}: has no {FILE}, so changes of the data up to now go unseen; it is written now")
        return
    before = _read(path)
    if before is None:
        say(
            f"warning: {path}: damaged: kept as {set_aside(path).name}; changes of the data up to "
            "now go unseen"
        )
        return
    changes = _changes(
        before, digest, {plain_name(sample.name): sample for sample in _samples(data)}
    )
    if not changes:
        return
    where = config.data.root or data.parts.format
    fault = f"{where}: the data are not those that {run} was begun with: {'; '.join(changes)}"
    batch = config.train.batch
    if len(before["train"]) // batch != len(digest["train"]) // batch:
        raise DataError(
            f"{fault}: an epoch has another number of steps now, so the run cannot go on with "
            "them: bring back what they were, or begin anew in another --out with "
            f"--model.init_from {shlex.quote(str(run))}"
        )
    if not accept:
        raise DataError(
            f"{fault}: bring back what they were, or go on with the changed data by "
            "--accept-changed-data"
        )
    say(f"{fault}: accepted; {FILE} is of the changed data from now on")


def compare_classes(
    run: RunInfo, taxonomy: Taxonomy, *, accept: bool, say: Callable[[str], object]
) -> None:
    """Refuses to go on with other class names than those that the run was begun with.

    Args:
        run: The run.
        taxonomy: The classes of the data, as they are now.
        accept: Go on all the same.
        say: Called with a line where names have changed and that is accepted.

    Raises:
        DataError: They have changed, and that is not accepted, or their number has, which is that
            of the network's answers.
    """
    change = changed_class(taxonomy, run)
    if change is None:
        return
    before, now = len(run.taxonomy.names), len(taxonomy.names)
    if before != now:
        raise DataError(
            f"{run.path}: {change}: the network answers {before} classes and the data have {now}: "
            "bring back their class list, or begin anew in another --out with --model.init_from "
            f"{shlex.quote(str(run.path))}"
        )
    if not accept:
        raise DataError(
            f"{run.path}: {change}: bring back their class list, or go on with the changed data by "
            "--accept-changed-data"
        )
    say(f"{run.path}: {change}: accepted; the run has the data's class names from now on")


def _samples(data: RunData) -> list[Sample]:
    return [*data.parts.train, *data.parts.val]


def read_samples(run: Path) -> dict[str, Row]:
    """Returns a run's samples of training and validation by name; none where it has no digest."""
    path = run / FILE
    found = _read(path) if path.is_file() else None
    return {row.name: row for rows in (found or {}).values() for row in rows}


def _read(path: Path) -> Digest | None:
    """Returns what a run's data were; None where the file is damaged."""
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != VERSION:
            return None
        rows = {part: [Row(*row) for row in tree[part]] for part in PARTS}
        parts = {
            part: [row._replace(name=plain_name(row.name)) for row in rows[part]] for part in PARTS
        }
    except (AttributeError, ValueError, TypeError, LookupError, RecursionError):
        return None
    texts = all(isinstance(text, str) for rows in parts.values() for row in rows for text in row)
    return parts if texts else None


def _changes(before: Digest, now: Digest, samples: Mapping[str, Sample]) -> list[str]:
    """Returns what has changed, a kind of change each; empty where nothing has."""
    old, new = ({row.name: row for part in PARTS for row in tree[part]} for tree in (before, now))
    files: dict[str, None] = {}
    for name in new.keys() & old.keys():
        if old[name].picture != new[name].picture:
            files[samples[name].image] = None
        if old[name].label != new[name].label:
            files[samples[name].label] = None
    kinds = {
        "changed": sorted(files),
        "new": sorted(f"'{name}'" for name in new.keys() - old.keys()),
        "gone": sorted(f"'{name}'" for name in old.keys() - new.keys()),
    }
    changes = [f"{kind}: {_first(names)}" for kind, names in kinds.items() if names]
    return changes or _moves(before, now)


def _moves(before: Digest, now: Digest) -> list[str]:
    """Returns whether samples, all of them the same, have other places."""
    for part in PARTS:
        for old, new in zip(before[part], now[part], strict=False):
            if old.name != new.name:
                return [
                    f"other order or parts: '{new.name}' of {part} stands where '{old.name}' stood"
                ]
    if [len(before[part]) for part in PARTS] != [len(now[part]) for part in PARTS]:
        return ["other parts"]
    return []


def _first(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}"
