"""The lock file: text that round-trips, in one order, and is believed only as far as it fits."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_sample import LOCK, lock

from joulec.errors import InputError
from joulec.gating.lock import LockedOperator, read, text

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)


def written(folder: Path, made: str) -> Path:
    place = folder / "joulec.lock"
    place.write_text(made, encoding="utf-8")
    return place


def test_what_is_written_is_read_back_and_the_same_lock_gives_the_same_bytes(tmp_path: Path):
    assert read(written(tmp_path, text(LOCK))) == LOCK
    assert text(read(written(tmp_path, text(LOCK)))) == text(LOCK)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_names_from_a_model_cannot_break_the_file(op: str, model: str):
    made = lock(model=model, operators={op: LockedOperator(1, 1e-3, 5, 7)}, unknown={op: 2})
    table = tomllib.loads(text(made))
    assert table["model"] == model
    assert table["energy"]["operators"][op] == {"nodes": 1, "joules": 1e-3, "operations": 5, "bytes": 7}
    assert table["energy"]["unknown"] == {op: 2}


def test_operators_stand_one_a_line_in_alphabetical_order():
    lines = text(LOCK).splitlines()
    start = lines.index("[energy.operators]")
    assert lines[start + 1 : start + 3] == [
        "Add = { nodes = 4, joules = 0.0001, operations = 100, bytes = 400 }",
        "Conv = { nodes = 2, joules = 0.002, operations = 1000000, bytes = 4000 }",
    ]
    assert lines[4] == "version = 1" and lines[0].startswith("# ")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version = 1", "version = 9", "not a lock file of version 1"), ("version = 1", "version =", "not a TOML file"),
        ("[energy]", "[other]", "not a lock file of joulec's"), ("joules = 0.0021", 'joules = "much"', "not a lock file"),
        ("launch = 6", "launch = true", "is no amount"), ("launch = 6", "launch = nan", "is no amount"),
        ("nodes = 4,", "", "not a lock file"), ("shape = ", "wealth = ", "not a lock file"),
    ],
)  # fmt: skip
def test_what_is_no_lock_is_said_in_one_line(tmp_path: Path, old: str, new: str, said: str):
    assert old in text(LOCK)
    place = written(tmp_path, text(LOCK).replace(old, new, 1))
    with pytest.raises(InputError, match=said) as caught:
        read(place)
    assert str(caught.value).startswith(str(place)) and "\n" not in str(caught.value)


def test_a_missing_lock_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(InputError, match="--update' makes it"):
        read(tmp_path / "joulec.lock")
