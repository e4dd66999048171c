"""The configuration of a run: frozen dataclasses that refuse what cannot work.

Defaults are the paper's form with the training defaults of the families it builds on; presets
(`presets/*.yaml`, see `ccfnet-tf presets`) depart from them by name.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ccfnet_tf.errors import ConfigError, nearest
from ccfnet_tf.io.yaml_json import parse_yaml

ComputeType = Literal["float32", "bfloat16", "float16"]
"""What a network computes in."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""The same as an option; `auto` asks the processor."""

AttentionInput = Literal["features", "features_and_coarse"]
FineInput = Literal["pyramid", "pyramid_and_detail"]

CACHES = ("none", "memory")
"""Values of `data.cache` that are no path."""


DataFormat = Literal[
    "auto",
    "scenes",
    "folder",
    "shards",
    "stanford_background",
    "sift_flow",
    "camvid",
    "voc",
    "cityscapes",
    "ade20k",
    "labelme",
    "coco",
    "coco_panoptic",
    "cvat_images",
    "label_studio",
    "roboflow_masks",
    "hugging_face",
    "kitti",
    "mapillary",
    "ade20k_full",
]


@dataclass(frozen=True)
class DataConfig:
    """Which images, which part of them, and how they are varied.

    Attributes:
        format: Layout of the data; `auto` tells it from the folder.
        root: Folder of the data; not used by the scenes.
        fold: Which fold is the test split (Stanford Background, or `lists` with folds).
        lists: Folder of train.txt, val.txt and test.txt (a sample's name a line), or of such
            folders fold_0, fold_1, ...; takes the place of the set's own parts.
        label_map: YAML file that merges classes (`vehicle: [car, bus]`) or drops them
            (`void: [moon]`).
        val_share: Share of the training split held back for checkpoint choice, where the set has
            no validation list of its own.
        mask_values: What the values of index masks mean where they are not the class ids: a
            class name, or void, for each, such as `{0: background, 255: crack}`.
        void_value: Mask value that means "no label" (folder format); `auto` is 255 for up to 255
            classes, else 65535.
        absent_classes: A class that no training label shows: `refuse` it, since its mask value is
            likely another than thought, or `allow` it.
        scenes: Number of scenes to draw for training (scenes format).
        scene_size: Height and width of a scene in pixels (scenes format).
        crop: Height and width of a training crop in pixels; 8n+1 wastes no padding.
        scale: Smallest and largest zoom of a training image.
        rotate: Largest turn of a training image in degrees, either way.
        flip: Mirror half of the training images left to right.
        colour: Strength of colour changes, 0 (none) to 1.
        blur: Largest deviation of a Gaussian blur in pixels; 0 does not blur.
        cutout: Largest share of a crop that rectangles hide (coarse dropout); labels stay.
        rare_crop: Share of crops that are laid around a pixel of a rare class.
        cache: Keep decoded images: `none`, in `memory`, or in a file whose path is given.
        damaged_records: What a damaged record of a shard does: `skip` (named, counts nowhere)
            or `stop`.
        deterministic: The same batches in every run; false lets reading overtake, for speed.
        workers: Parallel readers; 0 lets tf.data choose.
    """

    format: DataFormat = "auto"
    root: str | None = None
    fold: int = 0
    lists: str | None = None
    label_map: str | None = None
    val_share: float = 0.1
    mask_values: dict[int, str | int] = field(default_factory=dict)
    void_value: Literal["auto"] | int = "auto"
    absent_classes: Literal["refuse", "allow"] = "refuse"
    scenes: int = 600
    scene_size: tuple[int, int] = (120, 160)
    crop: int = 241
    scale: tuple[float, float] = (0.5, 2.0)
    rotate: float = 0.0
    flip: bool = True
    colour: float = 0.4
    blur: float = 0.0
    cutout: float = 0.0
    rare_crop: float = 0.0
    cache: str = "none"
    damaged_records: Literal["skip", "stop"] = "skip"
    deterministic: bool = True
    workers: int = 0

    def __post_init__(self) -> None:
        _between("data.fold", self.fold, 0, 99)
        _between("data.val_share", self.val_share, 0.0, 0.5)
        if self.void_value != "auto":
            _between("data.void_value", self.void_value, 0, 65535)
        for value in self.mask_values or ():
            _between("data.mask_values, value", value, 0, 65535)
        _between("data.scenes", self.scenes, 10, 100_000)
        for side in self.scene_size:
            _between("data.scene_size", side, 32, 2048)
        _between("data.crop", self.crop, 32, 4096)
        for zoom in self.scale:
            _between("data.scale", zoom, 0.1, 10.0)
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"data.scale is {list(self.scale)}: the smaller zoom comes first")
        _between("data.rotate", self.rotate, 0.0, 180.0)
        _between("data.colour", self.colour, 0.0, 1.0)
        _between("data.blur", self.blur, 0.0, 5.0)
        _between("data.cutout", self.cutout, 0.0, 0.5)
        _between("data.rare_crop", self.rare_crop, 0.0, 1.0)
        _between("data.workers", self.workers, 0, 256)


@dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
        backbone: Feature extractor, dilated to output stride 8.
        backbone_weights: `imagenet` (Keras downloads and caches them), `none`, or a weights file.
        head_channels: Width of the hidden convolution of each head.
        dropout: Share of hidden features dropped before each head's classifier, in training.
        attention_input: What the attention head sees: `features` (the paper), or also what coarse
            answered.
        fine_input: What the fine head sees: the `pyramid` (the paper), or also stride-4 detail.
        batch_norm_momentum: Momentum of the batch norm statistics; lower follows faster.
        init_from: Run folder to fine-tune from; heads of another class count start anew.
    """

    backbone: Literal["resnet50", "resnet101", "mobilenet_v2"] = "resnet50"
    backbone_weights: str = "imagenet"
    head_channels: int = 512
    dropout: float = 0.1
    attention_input: AttentionInput = "features"
    fine_input: FineInput = "pyramid"
    batch_norm_momentum: float = 0.99
    init_from: str | None = None

    def __post_init__(self) -> None:
        _between("model.head_channels", self.head_channels, 1, 4096)
        _between("model.dropout", self.dropout, 0.0, 0.9)
        _between("model.batch_norm_momentum", self.batch_norm_momentum, 0.0, 0.9999)

    def architecture(self) -> dict[str, Any]:
        """Returns the arguments of `build_ccfnet` that say what the network is, not its weights."""
        weights = ("backbone_weights", "init_from")
        return {key: value for key, value in vars(self).items() if key not in weights}


@dataclass(frozen=True)
class Every:
    """How often something is done: every `count` units."""

    count: int
    unit: Literal["epoch", "step", "minute"]


def parse_every(text: str) -> Every:
    """Reads `1 epoch`, `500 steps` or `10 minutes`.

    Raises:
        ConfigError: Another form, or a count below 1.
    """
    match = re.fullmatch(r"([0-9]{1,9}) (epoch|step|minute)s?", text)
    if not match or int(match[1]) < 1:
        raise ConfigError(
            f"train.checkpoint_every is '{text}': it must be such as '1 epoch', '500 steps' or "
            "'10 minutes'"
        )
    return Every(int(match[1]), cast(Any, match[2]))


@dataclass(frozen=True)
class TrainConfig:
    """How the network learns.

    Attributes:
        epochs: Passes over the training split.
        batch: Images in a step, over all replicas.
        optimizer: SGD with momentum 0.9, or AdamW.
        learning_rate: Rate of the backbone at the start of the decay.
        head_rate: The heads learn at this multiple of the backbone's rate.
        weight_decay: In a step a kernel shrinks by its rate times this share of itself (decoupled
            decay, both optimizers); batch norm and biases are left out. `auto` is 1e-3 for sgd,
            what an L2 penalty of 1e-4 amounts to with momentum 0.9, and 0.05 for adamw.
        poly_power: Power of the polynomial decay to zero.
        warmup: Share of all steps in which the rate rises linearly.
        clip_norm: Largest global norm of the gradient; 0 does not clip.
        batch_norm: `trainable` (each replica its own statistics), `synchronised` over replicas,
            or the backbone's `frozen` (the heads' stay synchronised).
        coarse_loss_weight: Weight of the coarse head's cross-entropy.
        attention_loss_weight: Weight of the attention head's cross-entropy.
        refine_loss_weight: Weight of the blended answer's cross-entropy.
        fine_loss_weight: Weight of a cross-entropy on fine alone; 0 is the paper.
        balanced_attention: Give hard and easy pixels the same total weight in attention's loss.
        class_weights: Weights of the classes in the losses of coarse, fine and refine: `none`,
            `auto` (median frequency, counted over the training split), or a list.
        checkpoint_every: How often the run is saved to go on from: `N epochs`, `N steps` or
            `N minutes`; with steps and minutes also at the end of every epoch.
        rate_for_batch: The batch that `learning_rate` is meant for: the rate grows in proportion
            to `batch` (sgd), or with its square root (adamw); 0 takes the rate as it is.
        accumulate: Parts that a step's batch is worked through in, one after another, which takes
            less memory.
        ema: Decay of a running average of weights and batch norm statistics, which is what is
            validated and kept as best; in step t at most t / (t + 9). 0 keeps none.
        strategy: `mirrored` over all devices of this machine, `multi_worker` over those of all
            machines that TF_CONFIG or SLURM names, `none`, or `auto`: whichever there is.
        virtual_cpus: Split the CPU into this many devices, to try replicas without GPUs.
        precision: `auto` is bfloat16 where the hardware multiplies it natively, else float32.
        jit_compile: Compile the step with XLA; one device alone.
        deterministic: Bit-equal repetitions on every device, GPUs too, at the price of speed.
    """

    epochs: int = 60
    batch: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 1e-2
    head_rate: float = 10.0
    weight_decay: Literal["auto"] | float = "auto"
    poly_power: float = 0.9
    warmup: float = 0.02
    clip_norm: float = 0.0
    batch_norm: Literal["trainable", "synchronised", "frozen"] = "synchronised"
    coarse_loss_weight: float = 1.0
    attention_loss_weight: float = 1.0
    refine_loss_weight: float = 1.0
    fine_loss_weight: float = 0.0
    balanced_attention: bool = False
    class_weights: Literal["none", "auto"] | tuple[float, ...] = "none"
    checkpoint_every: str = "1 epoch"
    rate_for_batch: int = 0
    accumulate: int = 1
    ema: float = 0.0
    strategy: Literal["auto", "none", "mirrored", "multi_worker"] = "auto"
    virtual_cpus: int = 0
    precision: Precision = "auto"
    jit_compile: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        _between("train.epochs", self.epochs, 1, 100_000)
        _between("train.batch", self.batch, 1, 4096)
        _between("train.learning_rate", self.learning_rate, 1e-8, 10.0)
        _between("train.head_rate", self.head_rate, 0.0, 1000.0)
        if self.weight_decay != "auto":
            _between("train.weight_decay", self.weight_decay, 0.0, 10.0)
        _between("train.poly_power", self.poly_power, 0.0, 10.0)
        _between("train.warmup", self.warmup, 0.0, 0.5)
        _between("train.clip_norm", self.clip_norm, 0.0, 1e6)
        for head in ("coarse", "attention", "refine", "fine"):
            key = f"{head}_loss_weight"
            _between(f"train.{key}", getattr(self, key), 0.0, 100.0)
        if not self.coarse_loss_weight + self.refine_loss_weight + self.fine_loss_weight:
            raise ConfigError(
                "train: every loss on the classes has weight 0; nothing would be learned"
            )
        if not isinstance(self.class_weights, str):
            for weight in self.class_weights:
                _between("train.class_weights", weight, 0.0, 1000.0)
            if not any(self.class_weights):
                raise ConfigError("train.class_weights: all are 0; nothing would be learned")
        parse_every(self.checkpoint_every)
        _between("train.rate_for_batch", self.rate_for_batch, 0, 1_000_000)
        _between("train.accumulate", self.accumulate, 1, 64)
        if self.batch % self.accumulate:
            raise ConfigError(
                f"train.accumulate is {self.accumulate}: train.batch {self.batch} must divide by it"
            )
        _between("train.ema", self.ema, 0.0, 0.99999)
        _between("train.virtual_cpus", self.virtual_cpus, 0, 64)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is made from; `config.yaml` in the run folder holds it.

    Attributes:
        data: Which images, and how they are varied.
        model: The network.
        train: How the network learns.
        seed: Seed of weights, validation share, order and augmentation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        _between("seed", self.seed, 0, 2**31 - 1)
        if self.data.format != "scenes" and not self.data.root:
            raise ConfigError(
                f"data.root is not set: format '{self.data.format}' reads images from a folder; "
                "add --data.root FOLDER"
            )


def preset_names() -> list[str]:
    """Returns the names of the shipped presets, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("ccfnet_tf").joinpath("presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def find_config(name: str) -> Path:
    """Returns the file of a preset's name or of a path to a YAML file.

    Raises:
        ConfigError: It is neither.
    """
    if name in preset_names():
        return Path(str(resources.files("ccfnet_tf").joinpath("presets", f"{name}.yaml")))
    path = Path(name).expanduser()
    if path.is_file():
        return path
    raise ConfigError(
        f"--config {name}: neither a preset ({', '.join(preset_names())}) nor a YAML file"
        + nearest(name, preset_names())
    )


def to_yaml(config: RunConfig) -> str:
    """Returns `config` as YAML that `from_yaml` reads back to an equal object."""
    return tree_to_yaml(asdict(config))


def tree_to_yaml(tree: Mapping[str, Any]) -> str:
    """Returns what `read_tree` reads back."""
    import yaml

    return str(yaml.safe_dump(_plain(tree), sort_keys=False))


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `read_tree` returns with the defaults of other keys; ranges are not checked."""
    sections = {name: {**vars(cls()), **tree.get(name, {})} for name, cls in SECTIONS.items()}
    return {**sections, "seed": tree.get("seed", 0)}


def explained() -> dict[str, str]:
    """Returns what the docstrings say of every key, such as `data.crop`."""
    texts = {f"{section}.": cls for section, cls in SECTIONS.items()} | {"": RunConfig}
    rows = {
        f"{prefix}{name}": " ".join(text.split())
        for prefix, cls in texts.items()
        for name, text in re.findall(
            r"^    (\w+): (.*(?:\n {8,}.*)*)", inspect.getdoc(cls) or "", re.MULTILINE
        )
    }
    return {key: rows.get(key, "") for key in key_types()}  # none under python -OO


def from_yaml(text: str, *, source: str) -> RunConfig:
    """Reads what `to_yaml` wrote.

    Args:
        text: The YAML.
        source: File it came from, for messages.

    Raises:
        ConfigError: It is no YAML, or holds an unknown key or a value outside its range.
    """
    return from_tree(_checked(text, source))


def from_tree(tree: dict[str, Any]) -> RunConfig:
    """Returns the configuration of what `read_tree` returns, with defaults for other keys.

    Raises:
        ConfigError: A value outside its range.
    """
    return RunConfig(
        **{key: SECTIONS[key](**v) if key in SECTIONS else v for key, v in tree.items()}
    )


def read_tree(file: Path) -> dict[str, Any]:
    """Reads a configuration file whose keys may be a part of all keys.

    Returns:
        Section -> key -> value, and `seed`; keys and types are checked, ranges are not.

    Raises:
        ConfigError: It cannot be read, is no YAML, or holds an unknown key or a value of another
            type.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}): give a YAML file") from error
    return _checked(text, str(file))


def read_value(key: str, text: str) -> Any:
    """Reads one value from the command line, by the rules of files.

    A key that takes any text takes it as it stands, and `null` is none; other texts are YAML.

    Args:
        key: Such as `data.crop`, or `seed`.
        text: What was given.

    Raises:
        ConfigError: The value is of another type.
    """
    hint = key_types()[key]
    if text == "null" and type(None) in _alternatives(hint):
        return None
    value: Any = text
    if not _fits(text, hint):
        try:
            value = _converted(_only_value(parse_yaml(f"value:\n  {text}")), hint)
        except ValueError as error:
            if dict in kinds_of(hint):  # what is wrong with it lies inside
                raise ConfigError(f"{key} is '{text}': {error}") from error
    if not _fits(value, hint):
        raise ConfigError(f"{key} is '{text}': {_rule(text, hint)}")
    return value


def _only_value(tree: dict[str, Any]) -> Any:
    """Returns the value; raises ValueError where a line break hid another key behind it."""
    (value,) = tree.values()
    return value


def read_section(section: str, text: str, *, source: str) -> dict[str, Any]:
    """Reads one section, such as `{root: x, crop: 65}` for `data`; as `read_tree` does."""
    return _section(section, _parsed(text, source), source)


def _checked(text: str, source: str) -> dict[str, Any]:
    """Returns the values of a configuration; nothing but known keys and plain values passes."""
    tree = _parsed(text, source)
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected the keys data, model, train and seed")
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key in SECTIONS:
            values[key] = _section(key, value, source)
        elif key == "seed":
            values[key] = _typed(value, int, "seed", source)
        else:
            known = [*SECTIONS, "seed"]
            raise ConfigError(f"{source}: unknown key '{key}'" + nearest(str(key), known))
    return values


def _parsed(text: str, source: str) -> Any:
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


def _section(section: str, values: Any, source: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: '{section}' must hold keys and values")
    hints = key_types()
    for key in values:
        if f"{section}.{key}" not in hints:
            hint = nearest(f"{section}.{key}", [name for name in hints if name.startswith(section)])
            raise ConfigError(f"{source}: unknown key '{section}.{key}'{hint}")
    names = {key: f"{section}.{key}" for key in values}
    return {k: _typed(v, hints[names[k]], names[k], source) for k, v in values.items()}


def _typed(value: Any, hint: Any, key: str, source: str) -> Any:
    """Returns a value of the YAML as its key's type, which it must be of."""
    found = _converted(value, hint)
    if not _fits(found, hint):
        raise ConfigError(f"{source}: {key} is {repr(value)[:60]}: {_rule(str(value), hint)}")
    return found


def _converted(value: Any, hint: Any) -> Any:
    """Returns a value of the YAML in the form that its key has in Python, where it has one."""
    if isinstance(value, list):
        return tuple(_as_number(each) for each in value)
    if isinstance(value, dict) and get_origin(hint) is dict:
        value = {_whole(name): each for name, each in value.items()}
    return value if _fits(value, hint) else _as_number(value)


def _as_number(value: Any) -> Any:
    """Returns the number that a text means: YAML 1.1 reads 1e-4, without a point, as a text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _whole(key: Any) -> Any:
    """Returns a key as a whole number where it is the text of one: JSON has no other keys."""
    return int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) else key


def _rule(value: str, hint: Any) -> str:
    """Returns in words what values a key takes, and the one that was likely meant."""
    words = choices(hint)
    kinds = [_KINDS[kind] for kind in kinds_of(hint)]
    wanted = " or ".join([*words, *kinds]) if kinds else f"one of {', '.join(words)}"
    return f"it must be {wanted}{nearest(value, words)}"


def choices(hint: Any) -> list[str]:
    """Returns the words that a key of this type takes."""
    return [
        word
        for each in _alternatives(hint)
        if get_origin(each) is Literal
        for word in get_args(each)
    ]


def kinds_of(hint: Any) -> list[type]:
    """Returns the types that a key takes beside words and null."""
    origins = (get_origin(each) or each for each in _alternatives(hint))
    return [origin for origin in origins if origin in _KINDS]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value is of a type that a key of the configuration can have."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return value in inner
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is tuple:
        hints = inner[:1] * len(value) if inner[-1] is ... and isinstance(value, tuple) else inner
        return (
            isinstance(value, tuple) and len(value) == len(hints) and all(map(_fits, value, hints))
        )
    if kind is dict:
        return isinstance(value, dict) and all(
            _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
        )
    return type(value) in ((int, float) if hint is float else (hint,))


SECTIONS: dict[str, Any] = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig}
"""The sections of a configuration file."""


_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a list such as [0.75, 1.5]",
    dict: "values and class names such as {0: background, 255: crack}",
}


@cache
def key_types() -> dict[str, Any]:
    """Returns the type hint of every key of a configuration, such as `data.crop`."""
    sections = {name: get_type_hints(cls) for name, cls in SECTIONS.items()}
    hints = {f"{name}.{key}": hint for name, keys in sections.items() for key, hint in keys.items()}
    return {**hints, "seed": int}


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}: it must lie between {low} and {high}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
