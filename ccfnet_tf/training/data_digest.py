"""Records digests of a run's data at its start, so that a resumed run detects changes.

    RUN/data_digest.json   {"version": 1, "train": [[name, image, label], ...], "val": [...],
                            "earlier": [...]}

Samples are stored in the order of their split. Their names are in Unicode normalisation form C,
whatever form the file system uses. `image` is a digest of the stored file. `label` is a digest of
the class ids after reading, so a changed annotation file, label map or colour table is detected
for the samples whose labels it changes. Paths are omitted, because data may be moved. `earlier` has
the samples that only earlier training saw: that of the run whose weights `model.init_from` copied,
and that before changed data were accepted. Figures on these images are too good, too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ccfnet_tf.config import RunConfig
from ccfnet_tf.datasets.audit.check_split import Checked
from ccfnet_tf.datasets.class_and_split_lists import plain_name
from ccfnet_tf.errors import DataError, RunError, unreadable
from ccfnet_tf.io.atomic_file import set_aside
from ccfnet_tf.io.in_threads import in_threads
from ccfnet_tf.labels import Sample, Taxonomy
from ccfnet_tf.runs.run_folder import CONFIG, RunInfo, changed_class, read_config
from ccfnet_tf.runs.write_run_files import write_text

if TYPE_CHECKING:
    from ccfnet_tf.training.check_data import RunData

FILE = "data_digest.json"
VERSION = 1
PARTS = ("train", "val")
EARLIER = "earlier"


class Row(NamedTuple):
    """Name of a sample, and digests of its image and its label."""

    name: str
    image: str
    label: str


Digest = Mapping[str, Sequence[Row]]
"""Rows of the training and the validation split, and of `EARLIER` if that was recorded."""


def digest_of(data: RunData, workers: int = 0) -> dict[str, list[Row]]:
    """Computes the digest of checked data; reads the image files in threads.

    Raises:
        DataError: An image cannot be read.
    """

    def rows(samples: Sequence[Sample], seen: Checked) -> list[Row]:
        images = in_threads(data.parts.fingerprint, samples, workers)
        return [
            Row(plain_name(sample.name), image, label)
            for sample, image, label in zip(samples, images, seen.labels, strict=True)
        ]

    return {"train": rows(data.parts.train, data.train), "val": rows(data.parts.val, data.val)}


def with_earlier(digest: Digest, run: Path | None) -> Digest:
    """Returns a digest with the training images of a run that are not in its training split.

    Args:
        digest: Digest of the current data.
        run: The run whose weights are trained further; None for a network that no run has trained.
    """
    own = {row.image for row in digest["train"]}
    seen = {} if run is None else {row.image: row for row in read_seen(run)}
    return {**digest, EARLIER: [row for image, row in seen.items() if image not in own]}


def write_digest(run: Path, digest: Digest) -> None:
    """Writes `data_digest.json`, one sample per line.

    Raises:
        ResourceError: The disk is full or the folder is not writable. An existing file is kept.
    """
    parts = ",\n".join(
        f'"{part}": [\n' + ",\n".join(json.dumps(row) for row in digest[part]) + "\n]"
        for part in digest
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
    """Checks that the data are the same as when the run was started.

    Args:
        config: Configuration of the run.
        run: The run folder.
        data: The current data.
        digest: Digest of the current data.
        accept: Accept changed data.
        say: Called with a message if changed data are accepted, or if the original data are
            unknown.

    Raises:
        DataError: The data have changed and `accept` is false, or the number of steps per epoch
            has changed, so that the run cannot be resumed at the same position.
    """
    path = run / FILE
    if not path.is_file():
        say(f"{run}: has no {FILE}, so earlier changes of the data are unknown; it is written now")
        return
    before = _read(path)
    if before is None:
        say(
            f"warning: {path}: damaged: kept as {set_aside(path).name}; earlier changes of the "
            "data cannot be detected"
        )
        return
    changes = _changes(
        before, digest, {plain_name(sample.name): sample for sample in _samples(data)}
    )
    if not changes:
        return
    where = config.data.root or data.parts.format
    fault = f"{where}: the data have changed since {run} was started: {'; '.join(changes)}"
    batch = config.train.batch
    if len(before["train"]) // batch != len(digest["train"]) // batch:
        raise DataError(
            f"{fault}: the number of steps per epoch has changed, so the run cannot be resumed: "
            "restore the original data, or start a new run in another --out with "
            f"--model.init_from {shlex.quote(str(run))}"
        )
    if not accept:
        raise DataError(
            f"{fault}: restore the original data, or accept the changed data with "
            "--accept-changed-data"
        )
    say(f"{fault}: accepted; {FILE} is updated to the changed data")


def compare_classes(
    run: RunInfo, taxonomy: Taxonomy, *, accept: bool, say: Callable[[str], object]
) -> None:
    """Checks that the class names are the same as when the run was started.

    Args:
        run: The run.
        taxonomy: The classes of the current data.
        accept: Accept changed class names.
        say: Called with a message if changed class names are accepted.

    Raises:
        DataError: The names have changed and `accept` is false, or the number of classes has
            changed, which the network cannot adapt to.
    """
    change = changed_class(taxonomy, run)
    if change is None:
        return
    before, now = len(run.taxonomy.names), len(taxonomy.names)
    if before != now:
        raise DataError(
            f"{run.path}: {change}: the network has {before} classes and the data have {now}: "
            "restore the original class list, or start a new run in another --out with "
            f"--model.init_from {shlex.quote(str(run.path))}"
        )
    if not accept:
        raise DataError(
            f"{run.path}: {change}: restore the original class list, or accept the changed data "
            "with --accept-changed-data"
        )
    say(f"{run.path}: {change}: accepted; the run now uses the class names of the data")


def _samples(data: RunData) -> list[Sample]:
    return [*data.parts.train, *data.parts.val]


def read_samples(run: Path) -> dict[str, Row]:
    """Returns the training and validation samples of a run by name; empty if it has no digest."""
    digest = _read_if_any(run)
    return {row.name: row for part in PARTS for row in digest.get(part, ())}


def read_trained(run: Path) -> Sequence[Row]:
    """Returns the training samples of a run; empty if it has no digest."""
    return _read_if_any(run).get("train", ())


def read_seen(run: Path) -> Sequence[Row]:
    """Returns all samples that the weights of a run were trained on, by itself or earlier.

    Their names may be those of another data set. Where a digest is missing, or is of an older
    version, which did not store earlier training, the run of `model.init_from` is asked.
    """
    rows: list[Row] = []
    asked: list[Path] = []
    source: Path | None = run
    while source is not None and source not in asked:
        asked.append(source)
        digest = _read_if_any(source)
        rows += (*digest.get("train", ()), *digest.get(EARLIER, ()))
        source = None if EARLIER in digest else _initial_run(source)
    return rows


def _initial_run(run: Path) -> Path | None:
    """Returns the run that the initial weights of a run come from, if its configuration has one."""
    path = run / CONFIG
    init_from = read_config(path).model.init_from if path.is_file() else None
    return None if init_from is None else Path(init_from)


def _read_if_any(run: Path) -> Digest:
    path = run / FILE
    return (_read(path) if path.is_file() else None) or {}


def _read(path: Path) -> Digest | None:
    """Reads the digest of a run; None if the file is damaged.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        if tree["version"] != VERSION:
            return None
        stored = {part: tree[part] for part in (*PARTS, EARLIER) if part in PARTS or part in tree}
        parts = {
            part: [row._replace(name=plain_name(row.name)) for row in (Row(*each) for each in rows)]
            for part, rows in stored.items()
        }
    except OSError as error:
        raise RunError(f"{path}: {unreadable(error)}") from error
    except (AttributeError, ValueError, TypeError, LookupError, RecursionError):
        return None
    valid = all(isinstance(text, str) for rows in parts.values() for row in rows for text in row)
    return parts if valid else None


def _changes(before: Digest, now: Digest, samples: Mapping[str, Sample]) -> list[str]:
    """Describes the changes, one string per kind of change; empty if there are none."""
    old, new = ({row.name: row for part in PARTS for row in tree[part]} for tree in (before, now))
    files: dict[str, None] = {}
    for name in new.keys() & old.keys():
        if old[name].image != new[name].image:
            files[samples[name].image] = None
        if old[name].label != new[name].label:
            files[samples[name].label] = None
    kinds = {
        "changed": sorted(files),
        "new": sorted(f"'{name}'" for name in new.keys() - old.keys()),
        "missing": sorted(f"'{name}'" for name in old.keys() - new.keys()),
    }
    changes = [f"{kind}: {_first(names)}" for kind, names in kinds.items() if names]
    return changes or _moves(before, now)


def _moves(before: Digest, now: Digest) -> list[str]:
    """Describes a change in the order or the split of otherwise identical samples."""
    for part in PARTS:
        for old, new in zip(before[part], now[part], strict=False):
            if old.name != new.name:
                return [f"other order or splits: '{new.name}' in {part} replaces '{old.name}'"]
    if [len(before[part]) for part in PARTS] != [len(now[part]) for part in PARTS]:
        return ["other splits"]
    return []


def _first(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}"
