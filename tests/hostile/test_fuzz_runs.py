"""Every file of a run and of an artifact, damaged 300 times: one-line errors, little memory.

The bytes of a valid file are truncated, flipped and spliced. JSON and YAML files are also parsed
and written with a value of another type, since parsers reject most damaged bytes.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ccfnet_tf.cli import main as cli
from ccfnet_tf.cli.fit_options import parse_fit
from ccfnet_tf.config import find_config
from ccfnet_tf.datasets.label_map import read_label_map
from ccfnet_tf.errors import LONGEST, CCFNetError
from ccfnet_tf.labels import Taxonomy
from ccfnet_tf.runs.checkpoint_file import assign_model, read_arrays
from ccfnet_tf.runs.run_folder import read_run
from ccfnet_tf.runs.write_run_files import epochs_written, keep_sound_rows, write_environment
from ccfnet_tf.runtimes.manifest import MANIFEST, _checksum
from ccfnet_tf.runtimes.open_segmenter import find_source
from ccfnet_tf.training.data_digest import read_seen
from tests.datasets.layouts.test_fuzz import mutants
from tests.hostile.conftest import Trained
from tests.memory import grows_at_most

GIGABYTES_2 = 2 << 30
CLASSES = Taxonomy(("sky", "tree", "road"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)))

ODD: list[Any] = [
    *(None, True, [], {}, "", "x", -1, 0, 3, 10**12, 10**30, 1e300, float("nan"), float("inf")),
    *([[]], [None], {"x": {}}, "\x1b[31m", "a\nb", "\ud800", "../../x", "x" * 10_000, [0] * 5000),
]


def changed(tree: Any, rng: random.Random) -> Any:
    """Returns a copy of a tree with one value or key replaced."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        if rng.random() < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        if rng.random() < 0.1:
            return {**tree, rng.choice(["x", "class_path", "\x1b"]): tree[key]}
        return {**tree, key: changed(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.7:
        at = rng.randrange(len(tree))
        return [*tree[:at], changed(tree[at], rng), *tree[at + 1 :]]
    return rng.choice(ODD)


def damaged(original: bytes, name: str, count: int) -> Iterator[bytes]:
    """Yields damaged versions of a file; half of them with other values if it is JSON or YAML."""
    yield from (b"", b"\0", b"[" * 100_000, b"{}", b"null", b"\xff\xfe\0\0")
    yield from (b"x" * 1_000_000, b"1" * 1_000_000)
    rng = random.Random(name)
    suffix = Path(name).suffix
    if suffix not in (".json", ".yaml"):
        yield from mutants(original, count, name)
        return
    yield from mutants(original, count // 2, name)
    tree = json.loads(original) if suffix == ".json" else yaml.safe_load(original)
    for _ in range(count // 2):
        other = changed(tree, rng)
        text = json.dumps(other) if suffix == ".json" else yaml.dump(other)
        yield text.encode("utf-8", "surrogatepass")


def one_line(read: Callable[[], object], content: bytes) -> None:
    """Reads a file, which must succeed or raise a one-line error."""
    output = ""
    try:
        read()
    except CCFNetError as error:
        output = str(error)
    assert len(output.splitlines()) <= 1, content[:200]
    assert len(output) < LONGEST + 10, content[:200]
    assert "\x1b" not in output, content[:200]


def fuzz(file: Path, read: Callable[[], object], count: int) -> None:
    original = file.read_bytes()
    with grows_at_most(GIGABYTES_2):
        for content in damaged(original, file.name, count):
            file.write_bytes(content)
            try:
                one_line(read, content)
            except BaseException:
                print(f"{file.name}: {content[:300]!r}")  # noqa: T201
                raise
    file.write_bytes(original)


def ignore(_: str) -> None:
    """Prints nothing."""


RUN_FILES: dict[str, Callable[[Path], object]] = {
    "config.yaml": read_run,
    "classes.json": read_run,
    "picture_sizes.json": read_run,
    "data_digest.json": read_seen,
    "metrics.csv": lambda run: epochs_written(run / "metrics.csv"),
    "environment.json": lambda run: write_environment(run, [], "float32"),
}


@pytest.mark.parametrize("name", RUN_FILES)
def test_the_text_files_of_a_run(name: str, begun: Trained, count: int) -> None:
    fuzz(begun.run / name, lambda: RUN_FILES[name](begun.run), count)
    if name == "metrics.csv":
        fuzz(begun.run / name, lambda: keep_sound_rows(begun.run / name, 1, ignore), count)


def test_checkpoints(begun: Trained, toy: Callable[..., Any], count: int) -> None:
    model = toy(3)
    file = begun.run / "checkpoints" / "best.npz"
    fuzz(file, lambda: assign_model(model, read_arrays(file, prefix="model/"), source=file), count)


@pytest.mark.slow
def test_resuming_from_damaged_checkpoints(begun: Trained) -> None:
    folder = begun.run / "checkpoints"
    original = (folder / "last.npz").read_bytes()
    for content in damaged(original, "last.npz", 20):
        for name in ("last", "best", "previous"):
            (folder / f"{name}.npz").write_bytes(content)
        assert cli.main(["fit", "--resume", "--out", str(begun.run)]) in (0, 2)
        for left in folder.glob("*damaged*"):
            left.unlink()


def test_a_configuration(tmp_path: Path, count: int) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(find_config("folder").read_bytes())
    fuzz(file, lambda: parse_fit(["--config", str(file), "--data.root", "x"]), count)


def test_a_label_map(tmp_path: Path, count: int) -> None:
    file = tmp_path / "map.yaml"
    file.write_text("vehicle: [sky, tree]\nvoid: []\n")
    fuzz(file, lambda: read_label_map(file, CLASSES), count)


def packed(compress: int, size: int, *, promised: int | None = None) -> bytes:
    """Returns an npz with an array of zeros; its directory may declare another size."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as archive:
        array = io.BytesIO()
        np.save(array, np.zeros(size, np.uint8))
        archive.writestr("model/x/kernel.npy", array.getvalue())
    content = bytearray(file.getvalue())
    if promised is not None:
        for mark, at in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
            offset = content.index(mark) + at
            content[offset : offset + 4] = promised.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("promised", [None, 100])
def test_compressed_arrays_are_refused_before_decompression(
    how: int, promised: int | None, begun: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    (begun.run / "checkpoints" / "best.npz").write_bytes(packed(how, 1 << 26, promised=promised))
    image = str(begun.data / "images" / "0.png")
    with grows_at_most(60 << 20):
        assert cli.main(["predict", str(begun.run), image, "--out", str(begun.run / "o")]) == 2
    assert "it is compressed; expected an uncompressed file" in capsys.readouterr().err


def test_exit_codes(begun: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """A few files of each type through the command line."""
    image, out = str(begun.data / "images" / "0.png"), str(begun.run.parent / "out")
    for name in ("config.yaml", "classes.json", "checkpoints/best.npz"):
        file = begun.run / name
        original = file.read_bytes()
        for content in [*damaged(original, name, 6)][:10]:
            file.write_bytes(content)
            code = cli.main(["predict", str(begun.run), image, "--out", out, "--overwrite"])
            assert code in (0, 2), content[:200]
            assert len(capsys.readouterr().err.splitlines()) == (code == 2)
        file.write_bytes(original)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "ccfnet.onnx").write_bytes(b"onnx")
    from ccfnet_tf.runtimes.manifest import Manifest, checksums, write_manifest

    write_manifest(
        folder,
        Manifest(
            format="onnx",
            run={"folder": "x"},
            versions={"keras": "3"},
            classes=["a", "b"],
            palette=[[0, 0, 0], [1, 1, 1]],
            options={},
            inputs={"images": "x"},
            outputs={"labels": "y"},
            files=checksums(folder),
            difference={"largest": 0.0, "percentile": 0.0, "mean": 0.0, "other_labels": 0.0},
            measured={},
        ),
    )
    return folder


def test_a_manifest(manifest: Path, count: int) -> None:
    file = manifest / MANIFEST
    fuzz(file, lambda: find_source(str(manifest)), count)
    tree = json.loads(file.read_text())
    del tree["sha256"]
    rng = random.Random(0)
    for _ in range(count):
        other = changed(tree, rng)
        if isinstance(other, dict):  # An attacker also updates the checksum.
            text = json.dumps({**other, "sha256": _checksum(other)})
            file.write_bytes(text.encode("utf-8", "surrogatepass"))
            one_line(lambda: find_source(str(manifest)).manifest, text.encode())
    shutil.rmtree(manifest)
