"""decisions.json: what is written is read back, and nothing else is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from joulec import decisions as recording
from joulec.decisions import Decisions, decision_of
from joulec.errors import InputError
from joulec.report.data import Latency

MADE = Decisions(
    "cpu",
    ("fuse-transpose",),
    "quantize{only=Conv}",
    (decision_of("INT8", True, False, "1.5x the speed", ratio=1.51234567, drop=0.001),),
    latency=Latency(2.0, 1.0, 2.0, 1.9, float("inf"), 100, 1),
)


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "decisions.json"
    recording.to_file(MADE, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def refusal(path: Path, target: str = "cpu") -> str:
    with pytest.raises(InputError) as caught:
        recording.from_file(path, target)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    return str(caught.value)


def test_what_is_written_is_read_back(tmp_path: Path):
    path = written(tmp_path)
    assert recording.from_file(path, "cpu") == MADE
    assert recording.from_file(tmp_path, "cpu") == MADE, "an artefact's directory stands for its file"
    (tmp_path / "cpu").mkdir()
    path.rename(tmp_path / "cpu" / "decisions.json")
    assert recording.from_file(tmp_path, "cpu") == MADE, "so does the directory above several"


def test_numbers_are_rounded_so_that_a_rebuild_writes_the_same():
    assert MADE.decisions[0].ratio == 1.5123


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "not a decisions file of version 1"),
        ({"target": None}, "made for target 'None', not 'cpu'"),
        ({"target": "cuda"}, "made for target 'cuda', not 'cpu'"),
        ({"evil": 1}, "unknown key 'evil'"),
        ({"excluded": "fuse-transpose"}, "'fuse-transpose' is no list"),
        ({"excluded": [1]}, "1 is not of type str"),
        ({"excluded": ["no-such-pass"]}, "no pass is called 'no-such-pass'"),
        ({"excluded": ["prune-magnitude"]}, "no pass is called 'prune-magnitude'"),
        ({"int8": ["quantize"]}, "['quantize'] is not of type str"),
        ({"int8": "fold-constants"}, "no pass is called 'fold-constants'"),
        ({"int8": "quantize{"}, "cannot read 'quantize{'"),
        ({"int8": "quantize,quantize"}, "one quantize pass was expected"),
        ({"decisions": [{"what": "INT8"}]}, "not a decisions file"),
        ({"decisions": [5]}, "Decision must be an object"),
        ({"latency": {"ratio": "much"}}, "could not convert string to float"),
        ({"latency": []}, "Latency must be an object"),
        ({"orders": ["--int8"]}, "made with --int8, this build has no orders"),
    ],
)
def test_what_joulec_would_not_have_written_is_refused(tmp_path: Path, changes: dict[str, Any], said: str):
    assert said in refusal(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "not readable as JSON"), ("[]", "not a decisions file"), ("{}", "not a decisions file"), ("\0", "JSON")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "d.json"
    path.write_text(text)
    assert said in refusal(path)


def test_missing_and_special_files_are_refused(tmp_path: Path):
    assert "no such file" in refusal(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe")


def test_the_cache_keeps_decisions_by_key_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert recording.cached("key", "cpu", ()) is None
    assert recording.remember("key", MADE) is None
    assert recording.cached("key", "cpu", ()) == MADE
    assert recording.cached("key", "cpu", ("--int8",)) is None
    assert recording.cached("another", "cpu", ()) is None
    (file,) = (tmp_path / "joulec" / "decisions").iterdir()
    file.write_text("{")
    assert recording.cached("key", "cpu", ()) is None


def test_a_cache_that_cannot_be_written_is_said_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "decisions were not cached" in str(recording.remember("key", MADE))
