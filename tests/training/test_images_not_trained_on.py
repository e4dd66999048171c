"""Images that earlier training has seen: that of `model.init_from`, and that on other data."""

from __future__ import annotations

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
    warn_of_seen(data.parts, with_earlier(digest_of(data), run), Console(file=out, width=60))
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
    before = (tmp_path / "run" / "data_digest.json").read_bytes()
    write_digest(tmp_path / "run", digest)
    assert (tmp_path / "run" / "data_digest.json").read_bytes() == before
    assert with_earlier(digest, None)[EARLIER] == []


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
    assert both.count("\n") == 1
    assert "2 of the 2 validation images: " in warning(
        config, earlier_run(config, tmp_path / "val", *val)
    )


def test_a_run_that_has_seen_the_images_is_refused(config: RunConfig, tmp_path: Path) -> None:
    parts = read_parts(config.data, 0)
    other = earlier_run(config, tmp_path / "other", parts.train[0].name)
    refuse_seen(str(other), parts.test, parts, "test images")
    refuse_seen(str(tmp_path / "unknown"), parts.test, parts, "test images")
    seen = earlier_run(config, tmp_path / "seen", "7")
    text = rf"model\.init_from {seen}: was trained on 1 of the 1 test images \(.*/images/7\.png\)"
    with pytest.raises(ConfigError, match=text):
        refuse_seen(str(seen), parts.test, parts, "test images")
