"""The cheapest choice of a side for each node: against trying all of them."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from joulec.ir.halves import Crossing, cheapest

NODES = 6
COSTS = st.integers(0, 5)
CROSSINGS = st.builds(
    Crossing,
    st.one_of(st.none(), st.integers(0, NODES - 1)),
    st.lists(st.integers(0, NODES - 1), min_size=1, max_size=3, unique=True).map(tuple),
    COSTS,
    COSTS,
)


def price(sides, on_a, on_b, crossings):
    total = sum(b if side else a for side, a, b in zip(sides, on_a, on_b, strict=True))
    for one in crossings:
        maker = one.maker is not None and sides[one.maker]
        total += one.to_b if not maker and any(sides[reader] for reader in one.readers) else 0
        total += one.to_a if maker and not all(sides[reader] for reader in one.readers) else 0
    return total


@given(
    st.lists(COSTS, min_size=NODES, max_size=NODES),
    st.lists(st.one_of(COSTS, st.just(math.inf)), min_size=NODES, max_size=NODES),
    st.lists(CROSSINGS, max_size=8),
)
def test_no_other_choice_is_cheaper(on_a, on_b, crossings):
    found = cheapest(on_a, on_b, crossings)
    best = min(price(sides, on_a, on_b, crossings) for sides in itertools.product((False, True), repeat=NODES))
    assert price(found, on_a, on_b, crossings) == pytest.approx(best, abs=1e-6)


def test_ties_go_to_side_b():
    assert cheapest([1, 0, 0], [1, 0, 2], []) == [True, True, False]


def test_an_island_that_costs_more_to_reach_than_it_saves_stays():
    row = [Crossing(0, (1,), 5, 5), Crossing(1, (2,), 5, 5)]
    assert cheapest([0, 9, 0], [math.inf, 0, math.inf], row) == [False, False, False]
    assert cheapest([0, 11, 0], [math.inf, 0, math.inf], row) == [False, True, False]


def test_one_conversion_serves_all_readers():
    on_a, on_b = [0, 2, 2, 2], [math.inf, 0, 0, 0]
    assert cheapest(on_a, on_b, [Crossing(0, (1, 2, 3), 5, 5)]) == [False, True, True, True]


def test_without_nodes():
    assert cheapest([], [], []) == []
