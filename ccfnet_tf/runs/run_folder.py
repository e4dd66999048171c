"""The run folder, which `fit` writes and all other commands read.

RUN/config.yaml                 the resolved configuration
RUN/classes.json                {"names": [...], "palette": [[r, g, b], ...]}
RUN/picture_sizes.json          {"largest": [height, width], "pictures": N} of the training split
RUN/metrics.csv                 losses and metrics of each epoch
RUN/checkpoints/{best,last,previous}.npz
RUN/calibration.json            the calibration of a checkpoint, where `calibrate` was run
RUN/lists/, RUN/label_map.yaml  copies of data.lists and data.label_map, if they are set
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ccfnet_tf.config import DataConfig, RunConfig, from_yaml
from ccfnet_tf.errors import ConfigError, RunError, unreadable
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.untrusted_yaml_json import mapping, parse_json
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs.calibration_file import read_calibration
from ccfnet_tf.runs.checkpoint_file import MODEL, assign_model, read_arrays

if TYPE_CHECKING:
    import numpy as np

    from ccfnet_tf.config import ComputeType
    from ccfnet_tf.network.calibration_parameters import Calibration
    from ccfnet_tf.network.model import CCFNet

Checkpoint = Literal["best", "last"]

CONFIG = "config.yaml"
CROSSVAL_CONFIG = "crossval.yaml"
CROSSVAL_RESULT = "crossval.json"
CLASSES = "classes.json"
SIZES = "picture_sizes.json"
CHECKPOINTS = "checkpoints"
LISTS = "lists"
LABEL_MAP = "label_map.yaml"
METRICS = "metrics.csv"


@dataclass(frozen=True)
class RunInfo:
    """Contents of a run folder, without the weights.

    Attributes:
        path: The folder.
        config: Configuration of the run.
        taxonomy: Classes of the run.
        checkpoints: Existing checkpoints, `best` first; may be empty.
        trained: Height and width of the largest training image; None if the run was written by an
            older version.
    """

    path: Path
    config: RunConfig
    taxonomy: Taxonomy
    checkpoints: tuple[Checkpoint, ...]
    trained: tuple[int, int] | None = None

    def checkpoint(self, which: Checkpoint | None = None) -> Path:
        """Returns the path of a checkpoint. By default, `best` if it exists, else `last`.

        Raises:
            RunError: The run has no checkpoint, or not the requested one.
        """
        folder = self.path / CHECKPOINTS
        if not self.checkpoints:
            raise RunError(
                f"{self.path}: no checkpoint yet: expected {CHECKPOINTS}/best.npz or "
                f"{CHECKPOINTS}/last.npz, which `ccfnet-tf fit` writes after its first epoch"
            )
        if which is not None and which not in self.checkpoints:
            raise RunError(f"{folder}: no {which}.npz; there is {self.checkpoints[0]}.npz")
        return folder / f"{which or self.checkpoints[0]}.npz"

    def calibration(self, which: Checkpoint | None = None) -> Calibration:
        """Returns the calibration of a checkpoint, chosen as in `checkpoint`.

        Raises:
            RunError: There is no such checkpoint, it was written after its calibration, or it was
                not asked for and the calibration is of another one.
        """
        return read_calibration(
            self.path,
            self.checkpoint(which),
            classes=len(self.taxonomy.names),
            kernels=self.config.train.kernel_precision,
            requested=which is not None,
        )


def read_run(path: str | Path) -> RunInfo:
    """Reads the configuration, the classes and the list of checkpoints of a run folder.

    Raises:
        RunError: The folder is missing, is not a run folder, or its files cannot be read.
    """
    folder = expanded(path)
    if not folder.exists():
        raise RunError(f"{folder}: no such folder; give a run folder written by `ccfnet-tf fit`")
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file; give the run folder, not a file in it")
    if any((folder / name).is_file() for name in (CROSSVAL_CONFIG, CROSSVAL_RESULT)):
        raise RunError(
            f"{folder}: is the folder of a cross-validation: give the run of a fold, such as "
            f"{folder / 'fold_0'}"
        )
    missing = [name for name in (CONFIG, CLASSES) if not (folder / name).is_file()]
    if missing:
        raise RunError(
            f"{folder}: not a run folder: {' and '.join(missing)} missing; a run folder holds "
            f"{CONFIG}, {CLASSES} and {CHECKPOINTS}/, as `ccfnet-tf fit` writes them"
        )
    kinds: tuple[Checkpoint, ...] = ("best", "last")
    checkpoints = tuple(kind for kind in kinds if (folder / CHECKPOINTS / f"{kind}.npz").is_file())
    config, taxonomy = read_config(folder / CONFIG), _read_classes(folder / CLASSES)
    return RunInfo(folder, config, taxonomy, checkpoints, _read_largest(folder / SIZES))


def refuse_without_best(run: Path) -> None:
    """Checks that a trained run has the checkpoint that validation chose, to score no other one.

    Raises:
        RunError: It has not.
    """
    path = run / CHECKPOINTS / "best.npz"
    if not path.is_file():
        raise RunError(
            f"{path}: no such file, but validation chose this checkpoint: restore it, or move "
            f"{run} away to train it again"
        )


def changed_class(taxonomy: Taxonomy, run: RunInfo) -> str | None:
    """Describes the first class whose name differs between the data and a run; None if none."""
    pairs = zip_longest(taxonomy.names, run.taxonomy.names)
    for index, (data, trained) in enumerate(pairs):
        if data != trained:
            there, here = ("missing" if each is None else f"'{each}'" for each in (trained, data))
            return f"class {index} is {there} in the run and {here} in the data"
    return None


def refuse_other_classes(taxonomy: Taxonomy, run: RunInfo) -> None:
    """Checks that the data have the class names of the run, in the same order.

    Raises:
        RunError: The names differ, so metrics would be reported under wrong names.
    """
    change = changed_class(taxonomy, run)
    if change:
        raise RunError(
            f"{run.path}: {change}: use the data that the run was trained on (--data.root), or "
            "reorder their class list"
        )


def load_run(
    path: str | Path,
    *,
    checkpoint: Checkpoint | None = None,
    precision: ComputeType = "float32",
    calibration: Calibration | None = None,
) -> CCFNet:
    """Builds the network of a run and loads its trained weights.

    Kernels are rounded to the precision of training (`train.precision`), because that is how every
    training step used them. The network that was trained, and that validation selected, is the one
    with rounded kernels; the float32 values behind them only accumulate small updates.

    Args:
        path: The run folder.
        checkpoint: The checkpoint to load. By default, `best` if it exists, else `last`.
        precision: Compute type of the network. Weights are always stored as float32.
        calibration: Whose threshold a hard blend uses; by default the one of the run.

    Raises:
        RunError: The folder or its checkpoint cannot be used.
    """
    run = read_run(path)
    file = run.checkpoint(checkpoint)
    arrays = read_arrays(file, prefix=MODEL)
    calibration = calibration or run.calibration(checkpoint)
    from ccfnet_tf.network.ccfnet import build_ccfnet
    from ccfnet_tf.network.labels_and_maps import set_hard_threshold

    model = build_ccfnet(
        len(run.taxonomy.names),
        backbone_weights=None,  # contained in the checkpoint; nothing is downloaded
        precision=precision,
        **run.config.model.architecture(),
    )
    assign_model(model, _as_trained(arrays, run.config), source=file)
    if calibration.blend_threshold is not None:
        set_hard_threshold(model, calibration.blend_threshold)
    return model


def _as_trained(arrays: dict[str, np.ndarray], config: RunConfig) -> dict[str, np.ndarray]:
    """Returns the arrays with kernels rounded to the precision of training, as float32."""
    if config.train.kernel_precision == "float32":
        return arrays
    import tensorflow as tf

    def rounded(kernel: np.ndarray) -> np.ndarray:
        return tf.cast(tf.cast(kernel, config.train.kernel_precision), tf.float32).numpy()

    return {
        key: rounded(value) if key.endswith("/kernel") else value for key, value in arrays.items()
    }


def with_own_files(data: DataConfig, run: Path) -> DataConfig:
    """Returns `data` with the absolute paths of the run's copies of the lists and the label map."""
    lists, label_map = run.resolve() / LISTS, run.resolve() / LABEL_MAP
    return replace(
        data,
        lists=str(lists) if data.lists and lists.is_dir() else data.lists,
        label_map=str(label_map) if data.label_map and label_map.is_file() else data.label_map,
    )


def read_config(file: Path) -> RunConfig:
    """Reads the `config.yaml` of a run. Its lists and label map are the copies in the run.

    Raises:
        RunError: The file cannot be read or is not a configuration. For invalid YAML the message
            names the line.
    """
    try:
        config = from_yaml(_text(file), source=str(file))
        return replace(config, data=with_own_files(config.data, file.parent))
    except ConfigError as error:
        fault = str(error).removeprefix(f"{file}: ")
        raise RunError(
            f"{file}: not a run's configuration: {fault}; restore the file from a copy of the run"
        ) from error


def _read_classes(file: Path) -> Taxonomy:
    try:
        tree = mapping(parse_json(_text(file)))
        names, palette = tree.get("names"), tree.get("palette")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError("'names' is not a list of strings")
        if not isinstance(palette, list) or not all(map(_is_colour, palette)):
            raise TypeError("'palette' is not a list of colours, each three integers 0..255")
        taxonomy = Taxonomy(tuple(names), tuple((red, green, blue) for red, green, blue in palette))
    except (ValueError, TypeError) as error:
        raise RunError(
            f"{file}: not a list of classes ({error}): expected "
            '{"names": [...], "palette": [[r, g, b], ...]}: restore it from a copy of the run'
        ) from error
    if not names:
        raise RunError(f"{file}: contains no classes; a run has at least one")
    return taxonomy


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) is int and 0 <= each <= 255 for each in value)
    )


def _read_largest(file: Path) -> tuple[int, int] | None:
    if not file.is_file():
        return None
    try:
        height, width = (int(side) for side in parse_json(_text(file))["largest"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunError(
            f"{file}: damaged ({error}): remove it; predict then does not warn about image sizes"
        ) from error
    return height, width


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{file}: {unreadable(error)}") from error
