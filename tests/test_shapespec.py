"""The text of `--shape`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulec.errors import InputError
from joulec.shapespec import format_shapes, parse_shapes, shapes_from_table


def test_symbols_inputs_and_repetition():
    assert parse_shapes("batch=8,seq=128") == {"batch": 8, "seq": 128}
    assert parse_shapes(["x=1x3x320x320", " n = 4 "]) == {"x": (1, 3, 320, 320), "n": 4}
    assert parse_shapes("x[0]=2,in:0=1X5") == {"x[0]": 2, "in:0": (1, 5)}
    assert parse_shapes([]) == {}
    assert parse_shapes(["n=4", "n=4"]) == {"n": 4}


def test_tables():
    assert shapes_from_table({"batch": 8, "x": [1, 3], "y": "2x2"}) == {"batch": 8, "x": (1, 3), "y": (2, 2)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("batch", "'batch' is not NAME=SIZE"),
        ("", "'' is not NAME=SIZE"),
        ("=3", "'=3' is not NAME=SIZE"),
        ("a=1,,b=2", "'' is not NAME=SIZE"),
        ("a=", "'' is not a size"),
        ("a=-1", "'-1' is not a size"),
        ("a=1.5", "'1.5' is not a size"),
        ("a=1x", "'1x' is not a size"),
        ("a=٣", "'٣' is not a size"),
        ("a=0", "size 0 is not between 1"),
        ("a=1x0x3", "size 0 is not between 1"),
        ("a=" + "9" * 5000, "is not between 1"),
        ("a=1,a=2", "'a' is given twice, as 1 and as 2"),
    ],
)
def test_errors_say_what_is_wrong(text, reason):
    with pytest.raises(InputError) as caught:
        parse_shapes(text)
    assert reason in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [0, -1, True, 1.5, None, [], [1, "2"], [True], {}])
def test_tables_with_anything_else_are_refused(value):
    with pytest.raises(InputError):
        shapes_from_table({"a": value})


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True),
        st.integers(1, 1 << 20) | st.lists(st.integers(1, 999), min_size=2, max_size=5).map(tuple),
    )
)
def test_formatting_round_trips(spec):
    assert parse_shapes(format_shapes(spec) or []) == spec
