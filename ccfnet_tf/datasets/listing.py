"""What a reader of a layout hands back: the addresses of a data set, before val is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ccfnet_tf.labels import Sample, Taxonomy


@dataclass(frozen=True)
class Listing:
    """The parts of a data set as its layout states them.

    Attributes:
        taxonomy: The classes.
        train: Samples to learn from.
        val: The set's own validation list; `None` where it has none.
        test: Samples to report on; empty where the layout has no test part.
        kin: Sample name to a group's key, for (near-)duplicates that must stay on one side.
    """

    taxonomy: Taxonomy
    train: tuple[Sample, ...]
    val: tuple[Sample, ...] | None
    test: tuple[Sample, ...]
    kin: Mapping[str, str] = field(default_factory=dict)
