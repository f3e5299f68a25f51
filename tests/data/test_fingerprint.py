"""Fingerprints change exactly when the data does."""

from __future__ import annotations

import os

import numpy as np
import pytest

from joulec.data import data_fingerprint, load_feeds
from joulec.errors import InputError


def test_files_count_by_contents_not_by_name(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / f"{name}.npz").write_bytes(repr(value).encode())
    a, b, c = (data_fingerprint(tmp_path / f"{name}.npz") for name in "abc")
    assert a == b == data_fingerprint(str(tmp_path / "a.npz")) != c
    assert len(a) == 64


def test_directories_count_by_names_and_contents(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"1")
    (tmp_path / "b.npz").write_bytes(b"2")
    before = data_fingerprint(tmp_path)
    (tmp_path / "notes.txt").write_text("no data")
    assert data_fingerprint(tmp_path) == before
    (tmp_path / "b.npz").rename(tmp_path / "c.npz")
    renamed = data_fingerprint(tmp_path)
    (tmp_path / "c.npz").write_bytes(b"3")
    assert len({before, renamed, data_fingerprint(tmp_path)}) == 3


def test_functions_count_by_name_and_source_without_being_run(tmp_path):
    path = tmp_path / "f.py"
    path.write_text("raise SystemExit\n")
    first = data_fingerprint(f"{path}:f")
    assert first != data_fingerprint(f"{path}:g")
    path.write_text("raise SystemExit(1)\n")
    assert first != data_fingerprint(f"{path}:f")


def test_arrays_in_memory_count_by_their_numbers():
    one = [{"x": np.zeros((1, 2), np.float32)}]
    assert data_fingerprint(one) == data_fingerprint([{"x": np.zeros((1, 2), np.float32)}])
    assert data_fingerprint(one) != data_fingerprint([{"x": np.zeros((2, 1), np.float32)}])
    assert data_fingerprint(one) != data_fingerprint(one * 2)
    assert data_fingerprint({"x": np.ones(3)}) != data_fingerprint({"x": np.zeros(3)})
    assert data_fingerprint([{"t": np.array(["a"], object)}]) != data_fingerprint([{"t": np.array(["b"], object)}])


def test_generators_count_by_the_feeds_kept_from_them():
    feeds = load_feeds(({"x": np.zeros(2)} for _ in range(2)), [])
    assert data_fingerprint(iter(()), feeds) == data_fingerprint(list(feeds))


def test_a_generator_alone_is_never_the_same_and_not_used_up():
    feeds = ({"x": np.zeros(2)} for _ in range(2))
    assert data_fingerprint(feeds) != data_fingerprint(feeds)
    assert len(list(feeds)) == 2


def test_random_is_itself_and_missing_files_are_refused(tmp_path):
    assert data_fingerprint("random") == data_fingerprint("random")
    with pytest.raises(InputError, match="no such file"):
        data_fingerprint(tmp_path / "none.npz")
    with pytest.raises(InputError, match="cannot read feeds from a int"):
        data_fingerprint(5)
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(InputError, match=r"pipe\.npz: not a regular file"):
        data_fingerprint(tmp_path / "pipe.npz")
