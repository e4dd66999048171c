"""Label maps: YAML files that merge or drop classes of a data set.

    vehicle: [car, bus]     merges two classes into one
    void: [moon]            drops a class: its pixels are ignored (also: ignore, unlabeled, ...)

Classes that are not listed stay unchanged. Ids are renumbered in the order of the set.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ccfnet_tf.errors import ConfigError, nearest, unreadable
from ccfnet_tf.io.untrusted_yaml_json import parse_yaml
from ccfnet_tf.labels import VOID, Taxonomy, is_void_name


@dataclass(frozen=True)
class LabelMap:
    """The classes of a set after merging and dropping.

    Attributes:
        taxonomy: The new classes.
        table: int32 [C + 1], old id -> new id or `VOID`. The last entry is void, which the old id
            -1 indexes.
    """

    taxonomy: Taxonomy
    table: np.ndarray

    def apply(self, label: np.ndarray) -> np.ndarray:
        """Converts a label, int32 [H, W], to the new ids."""
        return self.table[label]


def read_label_map(path: Path, taxonomy: Taxonomy) -> LabelMap:
    """Reads a label map.

    Args:
        path: YAML file.
        taxonomy: The classes of the set.

    Raises:
        ConfigError: The file is missing or is not YAML of this form, a class is unknown or listed
            twice, or fewer than 2 classes remain.
    """
    renamed = _new_names(path, taxonomy)
    dropped = {old for old, new in renamed.items() if is_void_name(new)}
    name_of = {old: renamed.get(old, old) for old in taxonomy.names if old not in dropped}
    names = tuple(dict.fromkeys(name_of.values()))
    if len(names) < 2:
        raise ConfigError(f"{path}: {len(names)} classes remain: at least 2 are needed")
    palette = tuple(taxonomy.palette[_source(name, name_of, taxonomy)] for name in names)
    ids = {name: index for index, name in enumerate(names)}
    table = [VOID if old in dropped else ids[name_of[old]] for old in taxonomy.names]
    return LabelMap(Taxonomy(names, palette), np.array([*table, VOID], np.int32))


def _new_names(path: Path, taxonomy: Taxonomy) -> dict[str, str]:
    """Returns old name -> new name of the classes listed in the file."""
    renamed: dict[str, str] = {}
    for new, olds in _read_tree(path).items():
        for old in olds:
            if old not in taxonomy.names:
                hint = nearest(old, taxonomy.names)
                if is_void_name(old):
                    hint = ": it already means no class; leave it out"
                raise ConfigError(f"{path}: '{old}' is not a class of this data set{hint}")
            if old in renamed:
                raise ConfigError(
                    f"{path}: '{old}' is in '{renamed[old]}' and '{new}': list it once"
                )
            renamed[old] = new
    return renamed


def _read_tree(path: Path) -> dict[str, list[str]]:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file: data.label_map must name a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {unreadable(error)}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected lines such as `vehicle: [car, bus]`")
    for new, olds in tree.items():
        valid = isinstance(olds, list) and all(isinstance(old, str) for old in olds)
        if not isinstance(new, str) or not valid:
            raise ConfigError(f"{path}: '{new}' must hold a list of class names, as in [car, bus]")
    return tree


def _source(name: str, name_of: dict[str, str], taxonomy: Taxonomy) -> int:
    """Returns the old class whose colour a new class gets: its namesake, else the first."""
    if name_of.get(name) == name:
        return taxonomy.names.index(name)
    return next(i for i, old in enumerate(taxonomy.names) if name_of.get(old) == name)
