"""XML files of labelling tools, read without document types: entities cannot be declared."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ccfnet_tf.errors import DataError

_DEEPEST = 100  # elements within elements


def read_xml(path: Path) -> Element:
    """Reads a file that holds one XML document.

    Raises:
        DataError: Missing, not XML, nested deeper than any tool writes, or with a document type,
            which could declare entities that unfold to gigabytes.
    """
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{path}: elements {_DEEPEST} deep: not a file of a labelling tool")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{path}: has a document type (<!DOCTYPE>), which is not read: remove it")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # also unknown encodings
        raise DataError(f"{path}: damaged or not XML ({error}); write it anew") from error
    return builder.close()
