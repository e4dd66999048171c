"""The recipes that are compared: named sets of keys that differ from the preset of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ccfnet_tf.config import RunConfig, from_tree
from ccfnet_tf.errors import ConfigError, nearest

Head = Literal["coarse", "fine", "refine"]
Study = Literal["claim", "ablations", "folds"]


@dataclass(frozen=True)
class Recipe:
    """A way to train a network, relative to the preset of a data set.

    Attributes:
        name: Its name in options, folders and tables.
        summary: What it is, for tables.
        keys: Configuration keys and their values, such as `train.ohem_share`.
        head: The prediction that is evaluated, and that selects the checkpoint.
        equal_work: Choose `model.head_channels` so that backbone and fine head alone take as many
            multiply-adds as the complete cascade.
        without_coarse: Nothing of coarse, which is not trained, reaches the fine head.
        at_least_full_size: Coarse reads the image at full size if that of the cascade reads it at
            half size, which saves work only where another head sees it at full size.
    """

    name: str
    summary: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    head: Head = "refine"
    equal_work: bool = False
    without_coarse: bool = False
    at_least_full_size: bool = False

    def applied(self, base: RunConfig) -> RunConfig:
        """Returns the configuration of the recipe; `equal_work` is up to the caller."""
        keys = {**self.keys, "train.best_by": self.head}
        if self.without_coarse and base.model.fine_input == "pyramid_and_detail":
            keys["model.fine_input"] = "pyramid_and_stride4"
        if self.at_least_full_size and base.model.coarse_scale < 1:
            keys |= _ONE_SCALE
        return with_keys(base, keys)


def with_keys(config: RunConfig, keys: Mapping[str, Any]) -> RunConfig:
    """Returns a configuration with other values of some keys, such as `train.epochs` or `seed`."""
    tree: dict[str, Any] = {
        name: dict(vars(section)) if hasattr(section, "__dataclass_fields__") else section
        for name, section in vars(config).items()
    }
    for key, value in keys.items():
        section, _, name = key.rpartition(".")
        (tree[section] if section else tree)[name] = value
    return from_tree(tree)


_ONE_SCALE = {"model.coarse_scale": 1.0, "model.attention_scale": 1.0}

_SOFT_BLEND = {"model.blend": "soft", "train.fine_loss_pixels": "all"}
"""A hard blend needs attention and fine to have losses of their own."""


def _alone(head: str) -> dict[str, Any]:
    weights = dict.fromkeys(("coarse", "attention", "refine", "fine"), 0.0) | {head: 1.0}
    return {
        **{f"train.{name}_loss_weight": value for name, value in weights.items()},
        "train.hard_pixel_weight": 0.0,
        **_SOFT_BLEND,
        "model.gate": "attention",
    }


_FINE_ALONE = {**_alone("fine"), **_ONE_SCALE}


CASCADE = Recipe("cascade", "refine of the cascade")

CLAIM = (
    CASCADE,
    Recipe(
        "coarse_alone", "coarse trained alone", _alone("coarse"), "coarse", at_least_full_size=True
    ),
    Recipe("fine_alone", "fine trained alone", _FINE_ALONE, "fine", without_coarse=True),
    Recipe(
        "fine_wide",
        "fine trained alone, as wide as the work of the cascade allows",
        _FINE_ALONE,
        "fine",
        equal_work=True,
        without_coarse=True,
    ),
)
"""What refine must surpass, besides the plain average of the cascade's own branches."""

ABLATIONS = (
    CASCADE,
    Recipe(
        "gate_attention", "attention itself weights fine and coarse", {"model.gate": "attention"}
    ),
    Recipe(
        "gate_affine",
        "an affine function of attention weights fine and coarse",
        {**_SOFT_BLEND, "model.gate": "affine"},
    ),
    Recipe("one_scale", "coarse reads the image at full size", _ONE_SCALE),
    Recipe("two_scales", "coarse reads the image at half size", {"model.coarse_scale": 0.5}),
    Recipe(
        "half_size_attention",
        "coarse and attention read the image at half size",
        {"model.coarse_scale": 0.5, "model.attention_scale": 0.5},
    ),
    Recipe(
        "enlarged_coarse",
        "coarse reads the image at 1.5 times its size",
        {"model.coarse_scale": 1.5, "model.attention_scale": 1.0},
    ),
    Recipe(
        "hard_blend",
        "fine only where attention is above a threshold; fine is trained on such pixels only",
        {"model.gate": "attention", "model.blend": "hard", "train.fine_loss_pixels": "hard"},
    ),
    Recipe(
        "hard_blend_all_pixels",
        "fine only where attention is above a threshold; fine is trained on all pixels",
        {"model.gate": "attention", "model.blend": "hard", "train.fine_loss_pixels": "all"},
    ),
    Recipe(
        "no_fine_loss",
        "fine without a loss of its own",
        {**_SOFT_BLEND, "train.fine_loss_weight": 0.0},
    ),
    Recipe(
        "no_coarse_loss",
        "coarse without a loss of its own",
        {"train.coarse_loss_weight": 0.0},
    ),
    Recipe(
        "fine_without_coarse",
        "fine does not see the probabilities of coarse",
        {"model.fine_input": "pyramid_and_stride4"},
    ),
    Recipe("features_only", "attention sees features only", {"model.attention_input": "features"}),
    Recipe(
        "no_attention_loss",
        "attention learned through the loss of refine only",
        {**_SOFT_BLEND, "train.attention_loss_weight": 0.0, "train.hard_pixel_weight": 0.0},
    ),
    Recipe(
        "balanced_attention",
        "hard and easy pixels weigh the same in the loss of attention",
        {"train.balanced_attention": True},
    ),
    Recipe(
        "hard_pixels",
        "a pixel counts 1 + 4 P(hard) in the losses of fine and refine",
        {"train.hard_pixel_weight": 4.0},
    ),
    Recipe(
        "ohem",
        "no cascade: fine trained alone on the hardest quarter of the pixels",
        {**_FINE_ALONE, "train.ohem_share": 0.25},
        "fine",
        without_coarse=True,
    ),
    Recipe("no_ema", "the weights themselves, not their running average", {"train.ema": 0.0}),
    Recipe("weight_decay", "weight decay 0.5", {"train.weight_decay": 0.5}),
    Recipe(
        "augmentation",
        "stronger augmentation: rotation, colour, hidden rectangles",
        {"data.rotate": 10.0, "data.colour": 0.6, "data.cutout": 0.1},
    ),
    Recipe("label_smoothing", "label smoothing 0.1", {"train.label_smoothing": 0.1}),
    Recipe("crop_185", "crops of 185 pixels", {"data.crop": 185}),
    Recipe("wide_scale", "training scales 0.5 to 2", {"data.scale": (0.5, 2.0)}),
)
"""Changes of the cascade, which is trained too, in as many epochs. A recipe may need several keys,
because some values exclude others. Those that equal the preset are left out."""

RECIPES: dict[Study, tuple[Recipe, ...]] = {
    "claim": CLAIM,
    "ablations": ABLATIONS,
    "folds": (CASCADE,),
}

SPLIT: dict[Study, Literal["test", "val"]] = {"claim": "test", "ablations": "val", "folds": "test"}
"""Ablations decide what the recipe becomes, so they never see the test split."""

PAPER = {"stanford_background": 89.7, "sift_flow": 91.6}
"""Pixel accuracy in percent that the paper states for its own network."""

DATA_SETS = {"stanford_background": "Stanford Background", "sift_flow": "SIFT Flow"}


def find_ablations(names: list[str]) -> tuple[Recipe, ...]:
    """Returns the cascade and the ablations of these names, or all if no name is given.

    Raises:
        ConfigError: There is no ablation of a name.
    """
    known = {recipe.name: recipe for recipe in ABLATIONS if recipe is not CASCADE}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--ablations {name}: expected {', '.join(known)}{nearest(name, list(known))}"
            )
    chosen = dict.fromkeys(names or known)
    return (CASCADE, *(known[name] for name in chosen))
