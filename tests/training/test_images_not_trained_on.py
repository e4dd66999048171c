"""Images that earlier training has seen: that of `model.init_from`, and that on other data."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from ccfnet_tf.config import RunConfig
from ccfnet_tf.datasets.open_data_set import read_parts
from ccfnet_tf.errors import ConfigError
from ccfnet_tf.training.data_digest import (
    EARLIER,
    Row,
    digest_of,
    read_samples,
    read_seen,
    read_trained,
    with_earlier,
    write_digest,
)
from ccfnet_tf.training.images_not_trained_on import copies_of, refuse_seen, warn_of_seen
from tests.training.test_data_digest import begin, config_of, look, paint, plain


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of eight images: one is the test split, two are for validation."""
    root = plain(tmp_path / "set")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("".join(f"{i}\n" for i in range(7)))
    (lists / "test.txt").write_text("7\n")
    return config_of(root, lists=str(lists))


def earlier_run(config: RunConfig, run: Path, *names: str) -> Path:
    """Writes the digest of a run that was trained on some images, under other names."""
    parts = read_parts(config.data, 0)
    samples = {sample.name: sample for sample in (*parts.train, *parts.val, *parts.test)}
    rows = [Row(f"other/{name}", parts.fingerprint(samples[name]), "") for name in names]
    write_digest(run, {"train": rows, "val": []})
    return run


def warning(config: RunConfig, run: Path) -> str:
    data, out = look(config), StringIO()
    console = Console(file=out, width=60)
    warn_of_seen(data.parts, with_earlier(digest_of(data), run), console, init_from=str(run))
    return out.getvalue()


def test_images_of_earlier_training_are_kept_over_generations(
    config: RunConfig, tmp_path: Path
) -> None:
    first = earlier_run(config, tmp_path / "first", "7")
    second, third = tmp_path / "second", tmp_path / "third"
    data = look(config)
    write_digest(second, with_earlier(digest_of(data), first))
    paint(Path(data.parts.train[0].image))  # so that the first version is seen by the second only
    write_digest(third, with_earlier(digest_of(look(config)), second))
    assert [row.name for row in read_seen(third)[5:]] == [data.parts.train[0].name, "other/7"]
    assert [row.name for row in read_trained(third)] == [each.name for each in data.parts.train]
    assert len(read_samples(third)) == 7
    assert len(copies_of(read_seen(third), data.parts.test, data.parts)) == 1


def test_the_same_data_are_not_stored_twice(config: RunConfig, tmp_path: Path) -> None:
    begin(config, tmp_path / "run")
    digest = with_earlier(digest_of(look(config)), tmp_path / "run")
    assert digest[EARLIER] == []
    before = json.loads((tmp_path / "run" / "data_digest.json").read_text())
    write_digest(tmp_path / "run", digest)
    after = json.loads((tmp_path / "run" / "data_digest.json").read_text())
    assert after == before | {EARLIER: []}
    assert with_earlier(digest, None)[EARLIER] == []


CONFIG = "data: {{format: scenes}}\nmodel: {{init_from: {}}}\n"
OLD = '{"version": 1, "train": [["a", "2", "3"]], "val": []}'


@pytest.mark.parametrize("digest", [OLD, "{", ""])
def test_a_digest_that_does_not_know_asks_the_run_of_the_initial_weights(
    tmp_path: Path, digest: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write_digest(first, {"train": [Row("x", "1", "")], "val": [], EARLIER: []})
    second.mkdir()
    (second / "data_digest.json").write_text(digest)
    assert "1" not in {row.image for row in read_seen(second)}
    (second / "config.yaml").write_text(CONFIG.format(first))
    assert [row.image for row in read_seen(second)][-1] == "1"
    (first / "data_digest.json").unlink()
    (first / "config.yaml").write_text(CONFIG.format(second))
    assert len(read_seen(second)) == (1 if digest == OLD else 0)


def test_seen_validation_and_test_images_are_warned_of(config: RunConfig, tmp_path: Path) -> None:
    parts = read_parts(config.data, 0)
    train, val, test = (
        [each.name for each in part] for part in (parts.train, parts.val, parts.test)
    )
    assert warning(config, earlier_run(config, tmp_path / "same", *train)) == ""
    both = warning(config, earlier_run(config, tmp_path / "both", val[0], *test))
    assert both.startswith(
        "warning: earlier training has seen 1 of the 2 validation images and 1 of the 1 test image:"
    )
    assert "the checkpoint is chosen by such figures; to keep the splits of" in both
    assert both.count("\n") == 1
    only = warning(config, earlier_run(config, tmp_path / "val", *val))
    assert "has seen 2 of the 2 validation images: " in only
    assert "checkpoint" not in warning(config, earlier_run(config, tmp_path / "test", *test))


def test_a_run_that_has_seen_the_images_is_refused(config: RunConfig, tmp_path: Path) -> None:
    parts = read_parts(config.data, 0)
    other = earlier_run(config, tmp_path / "other", parts.train[0].name)
    refuse_seen(str(other), parts.test, parts, "test images")
    refuse_seen(str(tmp_path / "unknown"), parts.test, parts, "test images")
    seen = earlier_run(config, tmp_path / "seen", "7")
    text = rf"model\.init_from {seen}: was trained on 1 of the 1 test images \(.*/images/7\.png\)"
    with pytest.raises(ConfigError, match=text):
        refuse_seen(str(seen), parts.test, parts, "test images")
