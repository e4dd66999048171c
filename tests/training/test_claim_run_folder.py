"""Checks of a run folder before data are read or the network is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ccfnet_tf.config import DataConfig, RunConfig, to_yaml
from ccfnet_tf.errors import ResourceError
from ccfnet_tf.training import claim_run_folder as claim

CONFIG = RunConfig(data=DataConfig(format="scenes"))


@pytest.mark.parametrize("name", ["", ".lock", *claim.WRITABLE_FOLDERS])
def test_a_run_that_is_not_writable_is_refused_immediately(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in claim.WRITABLE_FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml").write_text(to_yaml(CONFIG))
    place = tmp_path / name
    allowed = os.access

    def access(path: Path, mode: int) -> bool:
        """Simulates a user without write permission, since root may write everywhere."""
        return Path(path) != place and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ResourceError) as caught:
        claim.claim(CONFIG, tmp_path, resume=True, config_given=False)
    assert str(caught.value).startswith(f"{place}: cannot be written: ")


def test_files_next_to_lists_are_copied_whatever_their_content(tmp_path: Path) -> None:
    lists, label_map = tmp_path / "lists", tmp_path / "map.yaml"
    lists.mkdir()
    contents = {"train.txt": b"a\n", "notes.txt": "d\xe9j\xe0 vu".encode("latin-1")}
    for name, content in contents.items():
        (lists / name).write_bytes(content)
    label_map.write_bytes(b"\xef\xbb\xbfa: [b]\n")
    run = tmp_path / "run"
    claim.keep_files(DataConfig(lists=str(lists), label_map=str(label_map)), run)
    assert {name: (run / claim.LISTS / name).read_bytes() for name in contents} == contents
    assert (run / claim.LABEL_MAP).read_bytes() == label_map.read_bytes()
