"""Histograms, the five methods, and the error that each is measured by."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from joulec.ir.module import Range
from joulec.ir.values import Array
from joulec.passes import _ranges
from joulec.passes._histogram import COARSEST, FINEST, SAMPLED, Histogram, histogram_bytes
from joulec.passes._methods import METHODS, Form, Seen, grid, interval, mean_squared_error, saturated
from joulec.passes._qdq import activation_parameters, quantized
from joulec.passes._ranges import HISTOGRAM_BYTES, MOST, Observed, bits_for

BATCHES = st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(1e-30, 1e30)), min_size=1, max_size=5)


def drawn(batches: list[tuple[int, float]]) -> list[Array]:
    return [(np.random.default_rng(seed).normal(size=200) * size).astype(np.float32) for seed, size in batches]


def histogram(*arrays: Array) -> Histogram:
    made = Histogram()
    for turn, array in enumerate(arrays):
        made.add(array, turn)
    return made


def seen(array: Array) -> Seen:
    low, high = float(array.min()), float(array.max())
    return Seen(histogram(array).mass(), low, high, (0.9 * low, 0.9 * high))


def real_error(array: Array, chosen: tuple[float, float], form: Form) -> float:
    """By quantizing the numbers themselves."""
    made = activation_parameters(Range(*chosen), form)
    back = (quantized(array, made).astype(np.float64) - float(made.zero_point)) * float(made.scale)
    return float(np.mean((array - back) ** 2))


# -- histograms -------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(BATCHES)
def test_counts_do_not_depend_on_the_order_of_the_data(batches: list[tuple[int, float]]) -> None:
    arrays = drawn(batches)
    one, other, whole = histogram(*arrays), histogram(*arrays[::-1]), histogram(np.concatenate(arrays))
    halves = histogram(*arrays[:2]).merged(histogram(*arrays[2:]))
    for each in (other, whole, halves):
        assert each.top == one.top
        np.testing.assert_array_equal(each.counts, one.counts)


@settings(max_examples=50, deadline=None)
@given(BATCHES)
def test_every_bin_holds_the_numbers_between_its_edges(batches: list[tuple[int, float]]) -> None:
    whole = np.concatenate(drawn(batches))
    mass = histogram(whole).mass()
    assert mass.total == whole.size
    assert np.all(mass.low <= mass.high) and np.all(mass.high[:-1] <= mass.low[1:])
    for low, high, count in zip(mass.low, mass.high, mass.count, strict=True):
        inside = (whole >= low) & (whole < high) if low > 0 else (whole > low) & (whole <= high)
        if low != 0 and high != 0:
            assert inside.sum() == count
    assert np.all(mass.high - mass.low <= np.maximum(np.abs(mass.low), np.abs(mass.high)) * 2.0**-FINEST * 1.0001)


def test_of_large_tensors_a_share_and_the_extremes_are_counted() -> None:
    large = np.arange(40 * SAMPLED, dtype=np.float32)
    mass = histogram(large).mass()
    assert SAMPLED * 0.9 < mass.total < SAMPLED * 1.1
    assert mass.high[-1] > large[-1] and mass.low[0] == 0


def test_every_number_is_counted_sooner_or_later() -> None:
    """Or a channel could go unseen: with another start each time, all residues come up."""
    marked = np.zeros(3 * SAMPLED, np.float32)
    marked[::3] = 1.0
    totals = [histogram(*[marked] * 3).counts, histogram(marked, marked, marked, marked, marked, marked).counts]
    shares = [counts[counts.size // 2] / counts.sum() for counts in totals]
    np.testing.assert_allclose(shares, 2 / 3, atol=0.01)


def test_memory_has_a_stated_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensors in (1, 100, 1000, 5000, MOST):
        assert 2 * tensors * histogram_bytes(bits_for(tensors)) <= HISTOGRAM_BYTES
    assert bits_for(100) == FINEST and bits_for(MOST) == COARSEST
    one = Observed(FINEST)
    size = sum(half.histogram.table.nbytes for half in one.halves)
    for turn in range(50):
        one.add(np.random.default_rng(turn).normal(size=1000).astype(np.float32) * 2**turn, turn)
    assert sum(half.histogram.table.nbytes for half in one.halves) == size == 2 * histogram_bytes(FINEST)


# -- methods ----------------------------------------------------------------------------------------------------

TENSORS = {
    "normal": lambda rng: rng.normal(size=5000),
    "relu": lambda rng: np.maximum(rng.normal(size=5000), 0),
    "shifted": lambda rng: rng.normal(size=5000) + 5,
    "outliers": lambda rng: np.concatenate([rng.laplace(size=5000), [60.0, -90.0]]),
    "negative": lambda rng: -np.abs(rng.normal(size=5000)),
    "mostly zero": lambda rng: np.concatenate([np.zeros(4000), rng.normal(size=1000) ** 3]),
}


@pytest.mark.parametrize("form", ["uint8", "int8"])
@pytest.mark.parametrize("name", TENSORS)
def test_the_error_is_the_one_that_quantizing_makes(name: str, form: Form) -> None:
    array = TENSORS[name](np.random.default_rng(0)).astype(np.float32)
    given = seen(array)
    for share in (1.0, 0.5, 0.2):
        chosen = given.low * share, given.high * share
        found = mean_squared_error(given.mass, chosen, form)
        np.testing.assert_allclose(found, real_error(array, chosen, form), rtol=0.06)


@pytest.mark.parametrize("form", ["uint8", "int8"])
@pytest.mark.parametrize("name", TENSORS)
def test_no_range_has_a_smaller_error_than_mse(name: str, form: Form) -> None:
    array = TENSORS[name](np.random.default_rng(1)).astype(np.float32)
    given = seen(array)
    errors = {one: real_error(array, interval(one, given, form, 99.9), form) for one in METHODS}
    assert errors["mse"] <= 1.02 * min(errors.values())
    shares = (real_error(array, (given.low * a, given.high * a), form) for a in np.linspace(0.1, 1, 50))
    assert errors["mse"] <= 1.06 * min(shares)


def test_each_method_gives_what_it_says() -> None:
    array = np.concatenate([np.random.default_rng(2).normal(size=20000), [50.0]]).astype(np.float32)
    given = seen(array)
    low, high = float(array.min()), float(array.max())
    assert interval("minmax", given, "uint8", 99) == (low, high)
    assert interval("average", given, "uint8", 99) == (0.9 * low, 0.9 * high)
    percentile = interval("percentile", given, "uint8", 99)
    np.testing.assert_allclose(percentile, np.quantile(array, [0.005, 0.995]), rtol=2.0**-FINEST)
    assert interval("percentile", given, "uint8", 100)[0] == low
    far = seen(np.concatenate([array, [5000.0]]).astype(np.float32))
    assert 3 < interval("entropy", far, "uint8", 99)[1] < 100, "one outlier does not take the bits of all others"


def test_entropy_keeps_what_is_even() -> None:
    even = np.random.default_rng(3).uniform(-1, 1, 20000).astype(np.float32)
    low, high = interval("entropy", seen(even), "uint8", 99)
    assert low < -0.9 and high > 0.9


def test_what_saturates_is_counted() -> None:
    array = np.arange(1000, dtype=np.float32)
    assert saturated(seen(array).mass, (0.0, 999.0), "uint8") == 0
    np.testing.assert_allclose(saturated(seen(array).mass, (0.0, 499.5), "uint8"), 0.5, atol=0.02)


@pytest.mark.parametrize("chosen", [(0.0, 0.0), (-1.0, 3.0), (2.0, 3.0), (-3.0, -2.0)])
def test_grids_are_those_of_the_integers(chosen: tuple[float, float]) -> None:
    scale, low, high = grid(chosen, "uint8")
    assert low <= 0 <= high and abs((high - low) / scale - 255) < 1e-9
    scale, low, high = grid(chosen, "int8")
    assert (round(low / scale), round(high / scale)) == (-128, 127)


# -- the choice -------------------------------------------------------------------------------------------------


def observed(first: Array, second: Array) -> Observed:
    one = Observed()
    for turn, array in enumerate((first, second)):
        one.add(array.astype(np.float32), turn, second=turn == 1)
    return one


def test_auto_takes_the_method_that_errs_least_on_the_other_half() -> None:
    rng = np.random.default_rng(4)
    plain = observed(rng.uniform(-1, 1, 5000), rng.uniform(-1, 1, 5000)).range("auto", 99.99, "uint8")
    assert plain.method == "minmax", "where methods err alike, nothing is cut"
    heavy = observed(rng.laplace(size=5000) ** 3, rng.laplace(size=5000) ** 3).range("auto", 99.99, "int8")
    errs = {one.method: one.unseen for one in heavy.choices}
    assert errs[heavy.method] >= max(errs.values()) - 10 * np.log10(_ranges.ALIKE)
    assert heavy.chosen("minmax").high == heavy.largest and heavy.saturated is not None
    with pytest.raises(KeyError):
        heavy.chosen("best")


def test_the_shift_between_halves_is_measured() -> None:
    rng = np.random.default_rng(5)
    steady = observed(rng.uniform(0, 1, 5000), rng.uniform(0, 1, 5000)).range("auto", 99.99, "uint8")
    moved = observed(rng.uniform(0, 1, 5000), rng.uniform(0, 4, 5000)).range("auto", 99.99, "uint8")
    assert steady.shift is not None and steady.shift < 0.01
    assert moved.shift is not None and 0.7 < moved.shift < 0.8


def test_one_feed_is_half_of_nothing() -> None:
    one = Observed()
    one.add(np.float32([1, 2, 3]))
    found = one.range("auto", 99.99, "uint8")
    assert (found.low, found.high, found.method, found.shift) == (1.0, 3.0, "minmax", 0.0)
