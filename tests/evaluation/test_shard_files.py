from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccfnet_tf.errors import DataError
from ccfnet_tf.evaluation.evaluation import Evaluation
from ccfnet_tf.evaluation.shard_files import merge_shards, write_shard
from ccfnet_tf.labels import Taxonomy, distinct_colours
from tests.evaluation.conftest import Draw

TAXONOMY = Taxonomy(("a", "b", "c"), distinct_colours(3))


@pytest.fixture
def files(draw: Draw, tmp_path: Path) -> list[Path]:
    """Three parts of five images."""
    parts = [
        [Evaluation.of(*draw(i), TAXONOMY, index=i, name=str(i)) for i in range(k, 5, 3)]
        for k in range(3)
    ]
    return [
        write_shard(tmp_path, Evaluation.total(part, TAXONOMY), (k, 3), "w")
        for k, part in enumerate(parts, 1)
    ]


def test_all_parts_are_the_whole(files: list[Path], draw: Draw) -> None:
    whole = Evaluation.total(
        (Evaluation.of(*draw(i), TAXONOMY, index=i, name=str(i)) for i in range(5)), TAXONOMY
    )
    assert [path.name for path in files] == [f"evaluation.{k}-of-3.json" for k in (1, 2, 3)]
    merged = merge_shards([files[2], files[0], files[1]], TAXONOMY, "w")
    assert json.dumps(merged.to_json()) == json.dumps(whole.to_json())
    assert merged.images.to_csv() == whole.images.to_csv()
    assert merged.images.to_npz() == whole.images.to_npz()


def test_what_is_no_whole_is_refused(files: list[Path], tmp_path: Path) -> None:
    one = files[0]
    other = tmp_path / "other"
    other.mkdir()
    tree = json.loads(one.read_text())

    def changed(**keys: object) -> Path:
        path = other / f"{len(list(other.iterdir()))}.json"
        path.write_text(json.dumps(tree | keys))
        return path

    cases = [
        (files[:2], "missing of 3 parts: 3: give"),
        ([*files, one], "part 1 of 3, as .* is: give each once"),
        ([*files, changed(shard=[1, 2])], "a part of 2, but .* is a part of 3"),
        ([changed(shard=[2, 3]), one, files[2]], "image '0' is in more than one part"),
        ([changed(weights="v")], "is of another run, or of other weights"),
        ([changed(shard="2/3")], "not a part of an evaluation"),
        ([changed(shard=[0, 3])], "not a part of an evaluation"),
        ([changed(shard=[1, 10**15])], "not a part of an evaluation"),
        ([*files, changed(shard=[5, 3])], "not a part of an evaluation"),
        ([changed(evaluation=None)], "evaluate that part again"),
        ([tmp_path / "none.json"], "no such file"),
    ]
    for paths, says in cases:
        with pytest.raises(DataError, match=says):
            merge_shards(paths, TAXONOMY, "w")
    with pytest.raises(DataError, match="other classes"):
        merge_shards(files, Taxonomy(("a", "b", "d"), TAXONOMY.palette), "w")


def test_parts_of_splits_of_different_sizes_are_refused(files: list[Path], draw: Draw) -> None:
    more = [Evaluation.of(*draw(i), TAXONOMY, index=i, name=str(i)) for i in (2, 5, 8)]
    write_shard(files[2].parent, Evaluation.total(more, TAXONOMY), (3, 3), "w")
    with pytest.raises(DataError, match="some images are missing"):
        merge_shards(files, TAXONOMY, "w")
