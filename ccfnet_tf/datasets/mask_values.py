"""What the values of a set's index masks mean: class ids unless `data.mask_values` says otherwise.

`data.mask_values` maps values to class names, as in `{0: background, 255: crack}`; several values
may mean one class, and `void` means that nobody said what the pixel shows. A class that it does not
name keeps its own value, and so does void.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import ConfigError, DataError, nearest
from ccfnet_tf.io.images import NO_CLASS, VALUES, read_index_values, to_classes
from ccfnet_tf.labels import VOID, is_void_name

_SHOWN = 8


@dataclass(frozen=True)
class MaskValues:
    """What the values of index masks mean.

    Attributes:
        names: The C classes.
        ids: Value 0..65535 -> class id 0..C-1 or `VOID`; other values are refused.
        rule: What a mask holds and what to do about other values; made from the rest where empty.
        given: `data.mask_values`.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    rule: str = ""
    given: Mapping[int, str | int] = field(default_factory=dict)

    @property
    def void(self) -> tuple[int, ...]:
        """Values of pixels without a label, in order."""
        return tuple(sorted(value for value, index in self.ids.items() if index == VOID))

    @cached_property
    def table(self) -> np.ndarray:
        """int32 [65536]: value -> class id, `VOID` or `NO_CLASS`."""
        table = np.full(VALUES, NO_CLASS, np.int32)
        table[list(self.ids)] = list(self.ids.values())
        return table

    def classes_of(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """Translates the values of a mask.

        Args:
            values: int32 [H, W], 0..65535.
            path: The mask, for messages.

        Returns:
            int32 [H, W], 0..C-1 or `VOID`.

        Raises:
            DataError: A value that means nothing; of kind `value`.
        """
        try:
            return to_classes(values, self.table, path, self.rule or self._plain_rule)
        except DataError as error:
            raise DataError(f"{error}{self._proposal(values)}", kind=error.kind) from error

    @cached_property
    def _plain_rule(self) -> str:
        classes = {value: index for value, index in self.ids.items() if index != VOID}
        if all(value == index for value, index in classes.items()):
            meant = f"0..{len(classes) - 1} (the {len(classes)} classes)"
        else:
            shown = [f"{value} ({self.names[classes[value]]})" for value in sorted(classes)]
            more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
            meant = ", ".join(shown[:_SHOWN]) + more
        void = " or " + ", ".join(map(str, self.void)) + " (data.void_value)" if self.void else ""
        return (
            f"a mask holds {meant}{void}; fix the mask, set data.void_value, or name the class in "
            "classes.txt"
        )

    def _proposal(self, values: np.ndarray) -> str:
        """Returns what to set, where a mask has about as many values as there are classes."""
        found = np.unique(values).tolist()
        if len(found) == len(self.names):
            shown = as_option(dict(zip(found, self.names, strict=True)))
            return f", or say what each value means, such as {shown}"
        if len(found) > 2 * len(self.names) + 2:
            if found == list(range(found[0], found[-1] + 1)):
                return (
                    f"; {found[0]} to {found[-1]} in one mask look like numbers of objects: export "
                    "classes, not instances"
                )
            return (
                f"; {len(found)} values in one mask are what JPEG or smoothing leaves of it: make "
                "it anew without"
            )
        return ", or say what the value means with data.mask_values"


def index_values(
    names: Sequence[str],
    given: Mapping[int, str | int] | None,
    *,
    values: Sequence[int] | None = None,
    void: Collection[int],
    rule: str = "",
) -> MaskValues:
    """Returns what the values of a set's masks mean.

    Args:
        names: The C classes.
        given: `data.mask_values`.
        values: The layout's own value of each class; 0..C-1 where None.
        void: The layout's own values of void; they win over a class of the same value.
        rule: As in `MaskValues`, where `given` is None.

    Raises:
        ConfigError: `given` names no class of the set, or takes the only value of a class.
    """
    own = {value: index for index, value in enumerate(values or range(len(names)))}
    ids = own | dict.fromkeys(void, VOID)
    return with_given(MaskValues(tuple(names), ids, rule), given)


def with_given(meaning: MaskValues, given: Mapping[int, str | int] | None) -> MaskValues:
    """Returns what values mean after `data.mask_values`.

    Raises:
        ConfigError: As `index_values`.
    """
    if not given:
        return meaning
    names = meaning.names
    said = {value: _meant(str(name), names) for value, name in given.items()}
    named = set(said.values()) - {VOID}
    ids = {value: index for value, index in meaning.ids.items() if index not in named} | said
    for value, index in meaning.ids.items():
        if index != VOID and index not in ids.values():
            taken = "void" if ids[value] == VOID else f"'{names[ids[value]]}'"
            raise ConfigError(
                f"data.mask_values: '{names[index]}' has no value: its own, {value}, means "
                f"{taken}; say which value '{names[index]}' has"
            )
    return MaskValues(names, ids, given=given)


def read_index_mask(path: str | Path, meaning: MaskValues) -> np.ndarray:
    """Reads an index mask, int32 [H, W] with class ids or `VOID`.

    Raises:
        DataError: Missing, damaged, another kind of image, or a value that means nothing.
    """
    return meaning.classes_of(read_index_values(path), path)


def as_option(meaning: Mapping[int, str | int]) -> str:
    """Returns `data.mask_values` as it can be given to a shell."""
    import shlex

    import yaml

    text = yaml.safe_dump(dict(meaning), default_flow_style=True, width=10**6, allow_unicode=True)
    return f"--data.mask_values {shlex.quote(text.strip())}"


def _meant(name: str, names: Sequence[str]) -> int:
    if name in names:
        return names.index(name)
    if is_void_name(name):
        return VOID
    raise ConfigError(
        f"data.mask_values: '{name}' is neither void nor a class of this set"
        f"{nearest(name, names) or ': the classes are ' + ', '.join(names[:_SHOWN])}"
    )
