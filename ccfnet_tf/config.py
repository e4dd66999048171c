"""The configuration of a run: frozen dataclasses that validate their values.

The defaults are the network of the paper with the training settings of the networks it builds on.
Presets (`presets/*.yaml`, see `ccfnet-tf presets`) override them.
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
from ccfnet_tf.io.home_folder import expanded
from ccfnet_tf.io.untrusted_yaml_json import parse_yaml

ComputeType = Literal["float32", "bfloat16", "float16"]
"""Floating-point type in which a network computes."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
"""`ComputeType` as an option; `auto` chooses by the hardware."""

AttentionInput = Literal["features", "features_and_coarse"]
FineInput = Literal["pyramid", "pyramid_and_detail", "pyramid_and_stride4"]
Gate = Literal["attention", "affine"]
Blend = Literal["soft", "hard"]

COARSE_SCALES = (0.5, 1.0, 1.5)
"""Values of `model.coarse_scale`."""

SCENES = (10, 100_000)
"""Smallest and largest value of `data.scenes`."""

IMAGENET, NO_WEIGHTS = NAMED_WEIGHTS = ("imagenet", "none")
"""Values of `model.backbone_weights` that are not paths."""

CACHES = ("none", "memory")
"""Values of `data.cache` that are not paths."""

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
    """Data set, splits and augmentation.

    Attributes:
        format: Layout of the data set; `auto` detects it from the folder.
        root: Folder of the data set; not used by the scenes format.
        fold: Which fold is the test split (Stanford Background, or `lists` with folds).
        lists: Folder with train.txt, val.txt and test.txt (one sample name per line), or with
            such folders fold_0, fold_1, ...; replaces the splits of the data set.
        label_map: YAML file that merges classes (`vehicle: [car, bus]`) or drops them
            (`void: [moon]`).
        val_share: Fraction of the training split held out to select the best checkpoint, if the
            data set has no validation split.
        mask_values: Maps the values of index masks to class names or void, if they are not the
            class ids, such as `{0: background, 255: crack}`.
        void_value: Mask value of unlabelled pixels (folder format); `auto` is 255 for up to 255
            classes, else 65535.
        absent_classes: What to do if a class occurs in no training label: `refuse` to train,
            since its mask value is probably wrong, or `allow` it.
        scenes: Number of scenes to draw for training (scenes format).
        scene_size: Height and width of a scene in pixels (scenes format).
        crop: Height and width of a training crop in pixels; sizes 8n+1 need no padding, and 16n+1
            if `model.coarse_scale` is not 1.
        scale: Smallest and largest scale factor of a training image.
        rotate: Largest rotation of a training image in degrees, in either direction.
        flip: Flip half of the training images horizontally.
        colour: Strength of colour jitter, 0 (none) to 1.
        blur: Largest standard deviation of a Gaussian blur in pixels; 0 disables it.
        cutout: Largest fraction of a crop hidden by rectangles (coarse dropout); labels stay.
        rare_crop: Fraction of crops placed around a pixel of a rare class.
        cache: Where decoded images are cached: `none`, `memory`, or the path of a file.
        damaged_records: What to do with a damaged TFRecord record: `skip` it with a warning, or
            `stop`.
        deterministic: The same batches in every run; false delivers images in the order in which
            they are ready, which is faster.
        workers: Number of parallel readers; 0 lets tf.data choose.
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
        check_between("data.fold", self.fold, 0, 99)
        check_between("data.val_share", self.val_share, 0.0, 0.5)
        if self.void_value != "auto":
            check_between("data.void_value", self.void_value, 0, 65535)
        for value in self.mask_values or ():
            check_between("data.mask_values, value", value, 0, 65535)
        check_between("data.scenes", self.scenes, *SCENES)
        for side in self.scene_size:
            check_between("data.scene_size", side, 32, 2048)
        check_between("data.crop", self.crop, 32, 4096)
        for zoom in self.scale:
            check_between("data.scale", zoom, 0.1, 10.0)
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"data.scale is {list(self.scale)}: put the smaller factor first")
        check_between("data.rotate", self.rotate, 0.0, 180.0)
        check_between("data.colour", self.colour, 0.0, 1.0)
        check_between("data.blur", self.blur, 0.0, 5.0)
        check_between("data.cutout", self.cutout, 0.0, 0.5)
        check_between("data.rare_crop", self.rare_crop, 0.0, 1.0)
        check_between("data.workers", self.workers, 0, 256)


@dataclass(frozen=True)
class ModelConfig:
    """Network architecture and initial weights.

    Attributes:
        backbone: Feature extractor, dilated to output stride 8.
        backbone_weights: `imagenet` (downloaded and cached in ~/.keras/models), `none`, or a
            weights file: `.weights.h5` or `.h5` of Keras, or `.npz` with arrays
            `layer/variable`; for EfficientNet-Lite also TensorFlow's `.tar.gz`.
        head_channels: Number of channels of the hidden convolution of each head.
        dropout: Dropout rate before the classifier of each head, in training.
        attention_input: Input of the attention head: `features` of the backbone (the paper), or
            also the coarse prediction.
        fine_input: Input of the fine head: the `pyramid` (the paper), or also the stride-4 features
            and the coarse probabilities (`pyramid_and_detail`), or also the stride-4 features only
            (`pyramid_and_stride4`).
        gate: What weights fine and coarse in refine: the probabilities of `attention` (the paper),
            or an `affine` function of its logit, learned through the loss of refine.
        blend: `soft` adds both predictions, weighted by the gate (the paper); `hard` uses fine
            where attention is above `blend_threshold`, and coarse elsewhere. Both are still
            computed everywhere, so a hard blend saves no time.
        blend_threshold: P(coarse is wrong) above which a hard blend uses fine, until `calibrate`
            chooses it on the validation split.
        coarse_scale: 1 (the paper), or 0.5 or 1.5: coarse reads the image at half or one and a
            half times its size, through the same backbone; the fine head still reads it at full
            size. Needs `train.batch_norm` frozen.
        attention_scale: 1 (the paper), or 0.5: attention reads the image at half size, as coarse
            then does.
        batch_norm_momentum: Momentum of the moving averages of batch normalization; a lower value
            adapts faster.
        init_from: Run folder to fine-tune from; heads for another number of classes are
            initialized from scratch.
    """

    backbone: Literal[
        "resnet50", "resnet101", "mobilenet_v2", "efficientnet_lite0", "efficientnet_lite2"
    ] = "resnet50"
    backbone_weights: str = "imagenet"
    head_channels: int = 512
    dropout: float = 0.1
    attention_input: AttentionInput = "features"
    fine_input: FineInput = "pyramid"
    gate: Gate = "attention"
    blend: Blend = "soft"
    blend_threshold: float = 0.05
    coarse_scale: float = 1.0
    attention_scale: float = 1.0
    batch_norm_momentum: float = 0.99
    init_from: str | None = None

    def __post_init__(self) -> None:
        check_between("model.head_channels", self.head_channels, 1, 4096)
        check_between("model.dropout", self.dropout, 0.0, 0.9)
        check_between("model.batch_norm_momentum", self.batch_norm_momentum, 0.0, 0.9999)
        check_cascade(
            self.gate, self.blend, self.blend_threshold, self.coarse_scale, self.attention_scale
        )

    def architecture(self) -> dict[str, Any]:
        """Returns the arguments of `build_ccfnet` that define the architecture, not the weights."""
        weights = ("backbone_weights", "init_from")
        return {key: value for key, value in vars(self).items() if key not in weights}


def check_cascade(
    gate: Gate, blend: Blend, threshold: float, coarse_scale: float, attention_scale: float
) -> None:
    """Checks the keys of `ModelConfig` that depend on each other.

    Raises:
        ConfigError: A value is outside its range, or two keys contradict each other.
    """
    if coarse_scale not in COARSE_SCALES:
        raise ConfigError(f"model.coarse_scale is {coarse_scale}: it must be 0.5, 1 or 1.5")
    if attention_scale not in (0.5, 1.0):
        raise ConfigError(f"model.attention_scale is {attention_scale}: it must be 1 or 0.5")
    if attention_scale < min(coarse_scale, 1.0):
        raise ConfigError(
            f"model.attention_scale is 0.5 but model.coarse_scale is {coarse_scale:g}: attention "
            "can read the image at half size only if coarse does; set model.coarse_scale to 0.5 too"
        )
    check_between("model.blend_threshold", threshold, 0.001, 0.999)
    if gate == "affine" and blend == "hard":
        raise ConfigError(
            "model.gate is affine but model.blend is hard: a hard blend reads attention itself "
            "and leaves the gate nothing to learn; set model.gate to attention"
        )


@dataclass(frozen=True)
class Every:
    """An interval: every `count` units."""

    count: int
    unit: Literal["epoch", "step", "minute"]


def parse_every(text: str) -> Every:
    """Parses an interval: `1 epoch`, `500 steps` or `10 minutes`.

    Raises:
        ConfigError: The text has another form, or the count is below 1.
    """
    match = re.fullmatch(r"([0-9]{1,9}) (epoch|step|minute)s?", text)
    if not match or int(match[1]) < 1:
        raise ConfigError(
            f"train.checkpoint_every is '{text}': it must have a form such as '1 epoch', "
            "'500 steps' or '10 minutes'"
        )
    return Every(int(match[1]), cast(Any, match[2]))


@dataclass(frozen=True)
class TrainConfig:
    """Optimization, losses, checkpoints and hardware.

    Attributes:
        epochs: Passes over the training split.
        batch: Images per step over all replicas (global batch size).
        optimizer: SGD with momentum 0.9, or AdamW.
        learning_rate: Learning rate of the backbone at the start of the decay.
        head_rate: Learning rate of the heads as a multiple of that of the backbone.
        weight_decay: Decoupled weight decay, for both optimizers: in each step, kernels are
            reduced by learning rate times weight decay times their value; batch normalization and
            biases are excluded. `auto` is 1e-3 for sgd, which corresponds to an L2 penalty of
            1e-4 with momentum 0.9, and 0.05 for adamw.
        poly_power: Power of the polynomial decay of the learning rate to zero.
        warmup: Fraction of all steps in which the learning rate rises linearly.
        clip_norm: Largest global norm of the gradient; 0 disables clipping.
        batch_norm: `trainable` (statistics per replica), `synchronised` over replicas, or
            `frozen` in the backbone and synchronised in the heads.
        coarse_loss_weight: Weight of the coarse head's cross-entropy.
        attention_loss_weight: Weight of the attention head's cross-entropy.
        refine_loss_weight: Weight of the cross-entropy of the refined (blended) prediction.
        fine_loss_weight: Weight of the cross-entropy of the fine head; 0 in the paper.
        fine_loss_pixels: Pixels whose cross-entropy of the fine head is trained: `all`, or those
            where attention is above `model.blend_threshold` (`hard`). The sum is divided by the
            number of all labelled pixels, and the metric `fine_loss` is of all pixels.
        ohem_share: Online hard example mining: the share of the labelled pixels, those with the
            largest losses, that is trained in the losses of coarse and fine, per replica and part
            of a batch; the metrics are of all pixels. 1 disables it.
        hard_pixel_weight: Weight w of difficult pixels in the losses of fine and refine: a pixel
            counts 1 + w P(hard), where P(hard) is attention's. Of the metrics, only `loss`, the sum
            that is minimised, is weighted. 0 disables it.
        label_smoothing: Weight s of the uniform distribution in the targets of coarse, fine and
            refine: 1 - s for the label, plus s / C for each of the C classes. The losses of
            training in `metrics.csv` are smoothed, and `ohem_share` chooses pixels by them. 0
            disables it.
        balanced_attention: Give hard and easy pixels the same total weight in the attention loss.
        class_weights: Class weights in the losses of coarse, fine and refine: `none`, `auto`
            (median frequency balancing over the training split), or a list.
        best_by: Prediction whose mean IoU on the validation split selects the best checkpoint.
        checkpoint_every: Interval between checkpoints: `N epochs`, `N steps` or `N minutes`; with
            steps and minutes, a checkpoint is also saved at the end of every epoch.
        rate_for_batch: Batch size for which `learning_rate` was chosen: the learning rate is
            scaled in proportion to `batch` (sgd) or to its square root (adamw); 0 disables
            scaling.
        accumulate: Gradient accumulation: splits each batch into this many sequential parts, to
            save memory.
        ema: Decay of an exponential moving average of weights and batch normalization statistics,
            limited to t / (t + 9) in step t. The averaged weights are validated and saved as the
            best ones. 0 disables it.
        strategy: `mirrored` over all devices of this machine, `multi_worker` over all machines
            listed by TF_CONFIG or SLURM, `none`, or `auto`: the one that fits the machine.
        virtual_cpus: Split the CPU into this many virtual devices, to test replicas without GPUs.
        precision: `auto` is bfloat16 if the hardware supports it natively, else float32.
        jit_compile: Compile the training step with XLA; only on a single device.
        deterministic: Bit-identical results in every run, also on GPUs, at the cost of speed.
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
    fine_loss_pixels: Literal["all", "hard"] = "all"
    ohem_share: float = 1.0
    hard_pixel_weight: float = 0.0
    label_smoothing: float = 0.0
    balanced_attention: bool = False
    class_weights: Literal["none", "auto"] | tuple[float, ...] = "none"
    best_by: Literal["coarse", "fine", "refine"] = "refine"
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
        check_between("train.epochs", self.epochs, 1, 100_000)
        check_between("train.batch", self.batch, 1, 4096)
        check_between("train.learning_rate", self.learning_rate, 1e-8, 10.0)
        check_between("train.head_rate", self.head_rate, 0.0, 1000.0)
        if self.weight_decay != "auto":
            check_between("train.weight_decay", self.weight_decay, 0.0, 10.0)
        check_between("train.poly_power", self.poly_power, 0.0, 10.0)
        check_between("train.warmup", self.warmup, 0.0, 0.5)
        check_between("train.clip_norm", self.clip_norm, 0.0, 1e6)
        for head in ("coarse", "attention", "refine", "fine"):
            key = f"{head}_loss_weight"
            check_between(f"train.{key}", getattr(self, key), 0.0, 100.0)
        if not self.coarse_loss_weight + self.refine_loss_weight + self.fine_loss_weight:
            raise ConfigError(
                "train: the weights of the coarse, refine and fine losses are all 0: set one "
                "above 0"
            )
        check_between("train.ohem_share", self.ohem_share, 0.001, 1.0)
        check_between("train.hard_pixel_weight", self.hard_pixel_weight, 0.0, 100.0)
        check_between("train.label_smoothing", self.label_smoothing, 0.0, 0.5)
        if not isinstance(self.class_weights, str):
            for weight in self.class_weights:
                check_between("train.class_weights", weight, 0.0, 1000.0)
            if not any(self.class_weights):
                raise ConfigError("train.class_weights: all are 0: set at least one above 0")
        parse_every(self.checkpoint_every)
        check_between("train.rate_for_batch", self.rate_for_batch, 0, 1_000_000)
        check_between("train.accumulate", self.accumulate, 1, 64)
        if self.batch % self.accumulate:
            raise ConfigError(
                f"train.accumulate is {self.accumulate}: it must divide train.batch, {self.batch}"
            )
        check_between("train.ema", self.ema, 0.0, 0.99999)
        check_between("train.virtual_cpus", self.virtual_cpus, 0, 64)

    @property
    def kernel_precision(self) -> ComputeType:
        """Precision of the kernels that the trained network consists of; `auto` is not resolved.

        In mixed precision every training step rounds the kernels first.
        """
        return "float32" if self.precision == "auto" else self.precision


@dataclass(frozen=True)
class RunConfig:
    """Complete configuration of a run, saved as `config.yaml` in the run folder.

    Attributes:
        data: Data set, splits and augmentation.
        model: Network architecture and initial weights.
        train: Optimization, losses, checkpoints and hardware.
        seed: Seed of the initial weights, the validation split, shuffling and augmentation.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        check_between("seed", self.seed, 0, 2**31 - 1)
        if self.data.format != "scenes" and not self.data.root:
            raise ConfigError(
                f"data.root is not set: format '{self.data.format}' reads images from a folder; "
                "add --data.root FOLDER"
            )
        self._check_combinations()

    @property
    def freezes_random_batch_norm(self) -> bool:
        """Whether the backbone keeps mean 0 and variance 1, which its random weights do not have.

        Activations then grow from block to block: the network trains badly, and rounding errors
        are as large as the activations.
        """
        random = self.model.backbone_weights == NO_WEIGHTS and self.model.init_from is None
        return random and self.train.batch_norm == "frozen"

    def _check_combinations(self) -> None:
        """Refuses keys that leave each other without effect."""
        model, train = self.model, self.train
        if model.coarse_scale != 1 and train.batch_norm != "frozen":
            raise ConfigError(
                f"model.coarse_scale is {model.coarse_scale:g}: one backbone would collect the "
                "batch norm statistics of two image sizes; set train.batch_norm to frozen"
            )
        if model.blend == "hard" and not train.attention_loss_weight:
            raise ConfigError(
                "model.blend is hard: only its own loss can train attention; set "
                "train.attention_loss_weight above 0"
            )
        if model.gate == "affine" and not train.refine_loss_weight:
            raise ConfigError(
                "model.gate is affine: only the loss of refine can train it; set "
                "train.refine_loss_weight above 0, or model.gate to attention"
            )
        if train.fine_loss_pixels == "hard" and not train.fine_loss_weight:
            raise ConfigError(
                "train.fine_loss_pixels is hard: it needs a loss of fine; set "
                "train.fine_loss_weight above 0"
            )
        if train.fine_loss_pixels == "hard" and train.ohem_share < 1:
            raise ConfigError(
                f"train.ohem_share is {train.ohem_share} but train.fine_loss_pixels is hard: both "
                "choose the pixels that train fine; set train.ohem_share to 1"
            )
        if train.hard_pixel_weight and not train.fine_loss_weight + train.refine_loss_weight:
            raise ConfigError(
                f"train.hard_pixel_weight is {train.hard_pixel_weight}: it needs a loss of fine or "
                "refine; set train.fine_loss_weight or train.refine_loss_weight above 0"
            )
        if train.hard_pixel_weight and not train.attention_loss_weight:
            raise ConfigError(
                f"train.hard_pixel_weight is {train.hard_pixel_weight}: only its own loss teaches "
                "attention which pixels are hard; set train.attention_loss_weight above 0"
            )
        own_weight = {"coarse": train.coarse_loss_weight, "fine": train.fine_loss_weight}
        if not own_weight.get(train.best_by, 1.0) and not train.refine_loss_weight:
            raise ConfigError(
                f"train.best_by is {train.best_by}: neither its own loss nor that of refine trains "
                f"it; set train.{train.best_by}_loss_weight above 0"
            )


def preset_names() -> list[str]:
    """Returns the names of the shipped presets, sorted."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("ccfnet_tf").joinpath("presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def find_config(name: str) -> Path:
    """Returns the path of a configuration file.

    Args:
        name: Name of a preset, or path of a YAML file.

    Raises:
        ConfigError: `name` is neither.
    """
    if name in preset_names():
        return Path(str(resources.files("ccfnet_tf").joinpath("presets", f"{name}.yaml")))
    path = expanded(name)
    if path.is_file():
        return path
    if path.is_dir():
        raise ConfigError(f"--config {name}: is a folder: give a preset or a YAML file")
    raise ConfigError(
        f"--config {name}: neither a preset ({', '.join(preset_names())}) nor a file that exists"
        + nearest(name, preset_names())
    )


def to_yaml(config: RunConfig) -> str:
    """Returns `config` as YAML; `from_yaml` reads it back to an equal object."""
    return tree_to_yaml(asdict(config))


def tree_to_yaml(tree: Mapping[str, Any]) -> str:
    """Returns the values of a configuration as YAML, the inverse of `read_tree`."""
    import yaml

    return str(yaml.safe_dump(_plain(tree), sort_keys=False))


def with_defaults(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fills in the defaults of missing keys in a result of `read_tree`; ranges are not checked."""
    sections = {name: {**vars(cls()), **tree.get(name, {})} for name, cls in SECTIONS.items()}
    return {**sections, "seed": tree.get("seed", 0)}


def key_descriptions() -> dict[str, str]:
    """Returns the description of every key, such as `data.crop`, from the docstrings."""
    texts = {f"{section}.": cls for section, cls in SECTIONS.items()} | {"": RunConfig}
    rows = {
        f"{prefix}{name}": " ".join(text.split())
        for prefix, cls in texts.items()
        for name, text in re.findall(
            r"^    (\w+): (.*(?:\n {8,}.*)*)", inspect.getdoc(cls) or "", re.MULTILINE
        )
    }
    return {key: rows.get(key, "") for key in key_types()}  # python -OO strips docstrings


def from_yaml(text: str, *, source: str) -> RunConfig:
    """Parses a configuration written by `to_yaml`.

    Args:
        text: The YAML text.
        source: Name of its file, used in error messages.

    Raises:
        ConfigError: The text is not YAML, or has an unknown key or an invalid value.
    """
    return from_tree(_checked(text, source))


def from_tree(tree: dict[str, Any]) -> RunConfig:
    """Builds a configuration from a result of `read_tree`, with defaults for missing keys.

    Raises:
        ConfigError: A value is out of range.
    """
    return RunConfig(
        **{key: SECTIONS[key](**v) if key in SECTIONS else v for key, v in tree.items()}
    )


def read_tree(file: Path) -> dict[str, Any]:
    """Reads a configuration file, in which any key may be missing.

    Returns:
        Section -> key -> value, and `seed`; keys and types are checked, ranges are not.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or has an unknown key or a value of the
            wrong type.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{file}: not a text file: give --config a preset or a YAML file"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be read ({error.strerror}): give --config a preset or a YAML file"
        ) from error
    return _checked(text, str(file))


def read_value(key: str, text: str) -> Any:
    """Parses a value from the command line, by the same rules as in a file.

    A key of type string takes the text unchanged; `null` is None for keys that allow it. For other
    keys the text is parsed as YAML.

    Args:
        key: Name of the key, such as `data.crop` or `seed`.
        text: The argument.

    Raises:
        ConfigError: The value has the wrong type.
    """
    hint = key_types()[key]
    if text == "null" and type(None) in _alternatives(hint):
        return None
    value: Any = text
    if not _fits(text, hint):
        try:
            value = _converted(_single_value(parse_yaml(f"value:\n  {text}")), hint)
        except ValueError as error:
            if dict in kinds_of(hint):  # The error is in an entry, not in the type.
                raise ConfigError(f"{key} is '{text}': {error}") from error
    if not _fits(value, hint):
        raise ConfigError(f"{key} is '{text}': {_rule(text, hint)}")
    return value


def _single_value(tree: dict[str, Any]) -> Any:
    """Returns the only value; raises ValueError if a line break in the text added another key."""
    (value,) = tree.values()
    return value


def read_section(section: str, text: str, *, source: str) -> dict[str, Any]:
    """Parses one section as `read_tree` does, such as `{root: x, crop: 65}` for `data`."""
    return _section(section, _parsed(text, source), source)


def _checked(text: str, source: str) -> dict[str, Any]:
    """Parses a configuration; allows only known keys with plain values of the right type."""
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
        raise ConfigError(f"{source}: '{section}' must be a mapping of keys to values")
    hints = key_types()
    for key in values:
        if f"{section}.{key}" not in hints:
            hint = nearest(f"{section}.{key}", [name for name in hints if name.startswith(section)])
            raise ConfigError(f"{source}: unknown key '{section}.{key}'{hint}")
    names = {key: f"{section}.{key}" for key in values}
    return {k: _typed(v, hints[names[k]], names[k], source) for k, v in values.items()}


def _typed(value: Any, hint: Any, key: str, source: str) -> Any:
    """Converts a YAML value to the type of its key; raises ConfigError if that is impossible."""
    converted = _converted(value, hint)
    if not _fits(converted, hint):
        raise ConfigError(f"{source}: {key} is {repr(value)[:60]}: {_rule(str(value), hint)}")
    return converted


def _converted(value: Any, hint: Any) -> Any:
    """Converts a YAML value to the Python type of its key where possible."""
    if isinstance(value, list):
        return tuple(_as_number(each) for each in value)
    if isinstance(value, dict) and get_origin(hint) is dict:
        value = {_as_integer(name): each for name, each in value.items()}
    return value if _fits(value, hint) else _as_number(value)


def _as_number(value: Any) -> Any:
    """Converts a string to a float where possible: YAML 1.1 reads 1e-4 (no point) as a string."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def _as_integer(key: Any) -> Any:
    """Converts a mapping key to an integer where possible, since JSON has only string keys."""
    return int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,9}", key) else key


def _rule(value: str, hint: Any) -> str:
    """Describes the allowed values of a key, with a suggestion for a misspelled one."""
    words = choices(hint)
    kinds = [_KINDS[kind] for kind in kinds_of(hint)]
    expected = " or ".join([*words, *kinds]) if kinds else f"one of {', '.join(words)}"
    return f"it must be {expected}{nearest(value, words)}"


def choices(hint: Any) -> list[str]:
    """Returns the literal strings that a key of this type allows."""
    return [
        word
        for each in _alternatives(hint)
        if get_origin(each) is Literal
        for word in get_args(each)
    ]


def kinds_of(hint: Any) -> list[type]:
    """Returns the types that a key allows in addition to literals and null."""
    origins = (get_origin(each) or each for each in _alternatives(hint))
    return [origin for origin in origins if origin in _KINDS]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value matches the type hint of a configuration key."""
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
"""Sections of a configuration file."""

_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a list such as [0.75, 1.5]",
    dict: "a mapping of values to class names such as {0: background, 255: crack}",
}


@cache
def key_types() -> dict[str, Any]:
    """Returns the type hint of every key of a configuration, such as `data.crop`."""
    sections = {name: get_type_hints(cls) for name, cls in SECTIONS.items()}
    hints = {f"{name}.{key}": hint for name, keys in sections.items() for key, hint in keys.items()}
    return {**hints, "seed": int}


def check_between(key: str, value: float, low: float, high: float) -> None:
    """Checks the value of a key or an option.

    Raises:
        ConfigError: It is outside its range, ends included.
    """
    if not low <= value <= high:
        raise ConfigError(f"{key} is {value}: it must be between {low} and {high}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value
