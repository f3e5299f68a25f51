"""Content keys: the same for the same content, whatever it is called, and another for any change."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from joulec import key
from joulec.errors import InputError
from joulec.key import content_key, file_fingerprint


def saved_model(folder: Path) -> Path:
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"graph")
    (folder / "variables" / "data").write_bytes(b"weights")
    return folder


def test_a_file_counts_by_its_content_alone(tmp_path: Path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (file_fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c


def test_a_saved_model_counts_by_names_and_contents(tmp_path: Path):
    one, two = saved_model(tmp_path / "one"), saved_model(tmp_path / "two")
    first = file_fingerprint(one)
    assert first == file_fingerprint(two)
    (two / "variables" / "data").rename(two / "variables" / "weights")
    renamed = file_fingerprint(two)
    (one / "variables" / "data").write_bytes(b"WEIGHTS")
    assert len({first, renamed, file_fingerprint(one)}) == 3


def test_links_and_pipes_in_a_saved_model_are_not_followed(tmp_path: Path):
    folder = saved_model(tmp_path / "model")
    before = file_fingerprint(folder)
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/dev/zero")
    assert file_fingerprint(folder) == before


def test_a_directory_that_is_no_model_is_refused_unread(tmp_path: Path):
    start = time.monotonic()
    with pytest.raises(InputError, match="a directory without saved_model"):
        file_fingerprint(Path("/usr"))
    assert time.monotonic() - start < 0.5


def test_the_key_changes_with_parts_versions_and_machine(monkeypatch: pytest.MonkeyPatch):
    first = content_key({"a": 1, "b": [2]})
    assert first == content_key({"b": [2], "a": 1})
    assert first != content_key({"a": 1, "b": [3]})
    monkeypatch.setattr(key, "versions", lambda: {"onnxruntime": "0"})
    other = content_key({"a": 1, "b": [2]})
    monkeypatch.setattr(key, "cpu", lambda: {"model": "another"})
    assert len({first, other, content_key({"a": 1, "b": [2]})}) == 3
