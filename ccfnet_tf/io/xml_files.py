"""Reads XML files of annotation tools; document types are refused, since they declare entities."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ccfnet_tf.errors import DataError

_DEEPEST = 100  # Largest nesting depth of elements.


def read_xml(path: Path) -> Element:
    """Reads an XML file.

    Raises:
        DataError: The file is missing, not XML, nested too deeply, or has a document type, which
            could declare entities that expand to gigabytes.
    """
    builder = TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(
                f"{path}: elements nested over {_DEEPEST} deep: not a file of an annotation tool"
            )
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(
            f"{path}: has a document type (<!DOCTYPE>), which is not supported: remove it"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: unpack the data set again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from error
    except (expat.ExpatError, ValueError, LookupError) as error:  # Also for unknown encodings.
        raise DataError(f"{path}: damaged or not XML ({error}); write it again") from error
    return builder.close()
