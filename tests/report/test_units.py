"""Numbers and names as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulec.report import units


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.0, "0 J"), (1.5, "1.50 J"), (0.00123, "1.23 mJ"), (-4.56e-5, "-45.6 µJ"), (7e-10, "700 pJ")],
)
def test_joules_carry_three_digits_and_a_prefix(value, text):
    assert units.joules(value) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (3 << 30, "3.00 GiB")])
def test_sizes(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (4, 3, "−25\u00a0%"),
        (100, 99, "−1.0\u00a0%"),
        (2, 3, "+50\u00a0%"),
        (5, 5, "no change"),
        (0, 1, "new"),
        (100_000, 99_999, "under 0.1\u00a0%"),
    ],
)
def test_changes_say_their_sign(before, after, text):
    assert units.change(before, after) == text


def test_a_name_is_shown_whole_but_harmless():
    assert units.safe("a\x1b[31m\u202eb\nc\r") == "a\\x1b[31m\\u202eb\\nc\\r"
    assert units.safe("größe/卷积") == "größe/卷积"


def test_a_name_of_megabytes_is_cut():
    assert units.safe("x" * 10_000_000) == "x" * units.MAX_NAME + "…"


@given(st.text())
def test_no_name_can_move_the_cursor(text):
    assert all(
        character.isprintable() or character == "\u3000" or character.isspace() for character in units.safe(text)
    )
    assert not set(units.safe(text)) & set("\x1b\x07\x08\r\n\u202e\u2066")


def test_a_long_node_name_keeps_its_end_which_tells_nodes_apart():
    assert units.node("encoder/layer_0/attention/MatMul_1", 20) == "…/attention/MatMul_1"
    assert units.node("MatMul_1", 20) == "MatMul_1"
    assert units.node("a\x1bb", 20) == "a\\x1bb"
