"""Errors count by the weights that they are multiplied with next."""

from __future__ import annotations

import int8_kit as kit
import numpy as np

from joulec.passes._importance import Importance, importances
from joulec.passes._methods import mean_squared_error
from joulec.passes._ranges import Observed
from joulec.passes.blocks import survey


def of(text: str, **weights: np.ndarray) -> dict[str, Importance]:
    return importances(survey(kit.build(text, weights), kit.CPU.quantization, "cpu").blocks)  # type: ignore[arg-type]


def test_a_conv_values_its_input_by_its_weights() -> None:
    w = kit.random(w=(6, 4, 3, 3))["w"]
    (name, found), *_ = of("g (float[1,4,8,8] x) => (float[1,6,6,6] y) { y = Conv(x, w) }", w=w).items()
    expected = np.square(w, dtype=np.float64).sum(axis=(0, 2, 3))
    assert name == "x" and found.axis == 1
    np.testing.assert_allclose(found.weights, expected / expected.mean())


def test_groups_see_their_own_channels() -> None:
    w = np.ones((4, 1, 1, 1), np.float32) * np.float32([1, 2, 3, 4]).reshape(4, 1, 1, 1)
    found = of("g (float[1,4,8,8] x) => (float[1,4,8,8] y) { y = Conv<group=4>(x, w) }", w=w)["x"]
    np.testing.assert_allclose(found.weights, np.array([1, 4, 9, 16]) / 7.5)


def test_products_value_the_last_axis_and_readers_add_up() -> None:
    w, v = (kit.random(i, w=(8, 5))["w"] for i in range(2))
    text = """g (float[3,8] x) => (float[3,5] y, float[3,5] z) { y = MatMul(x, w)  z = Gemm<transB=1>(x, v) }"""
    found = of(text, w=w, v=np.ascontiguousarray(v.T))["x"]
    expected = (np.square(w, dtype=np.float64) + np.square(v, dtype=np.float64)).sum(axis=1)
    assert found.axis == -1
    np.testing.assert_allclose(found.weights, expected / expected.mean(), rtol=1e-6)


def test_what_keeps_channels_hands_it_back() -> None:
    w, v = (kit.random(i, w=(4, 4, 1, 1))["w"] for i in range(2))
    text = """g (float[1,4,8,8] x) => (float[1,4,4,4] y) {
      c = Conv(x, w)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)  y = Conv(p, v)
    }"""
    found = of(text, w=w, v=v)
    np.testing.assert_array_equal(found["c"].weights, found["p"].weights)


def test_a_weight_of_zeros_says_nothing() -> None:
    assert of("g (float[3,8] x) => (float[3,5] y) { y = MatMul(x, w) }", w=np.zeros((8, 5), np.float32)) == {}


def test_shapes_that_do_not_fit_count_alike() -> None:
    found = Importance(1, np.ones(4))
    assert found.along((1, 4, 3, 3)) is not None and found.along((1, 4, 3, 3))[0] == 9  # type: ignore[index]
    assert found.along((1, 5, 3)) is None and found.along((4,)) is None
    assert Importance(-1, np.ones(4)).along((2, 4))[0] == 1  # type: ignore[index]


def test_a_loud_channel_that_nobody_needs_does_not_set_the_range() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(1, 2, 64, 64)).astype(np.float32)
    array[:, 1] *= 100
    quiet, blind = Observed(importance=Importance(1, np.array([2.0, 1e-6]))), Observed()
    for one in (quiet, blind):
        one.add(array)
        one.add(array[::-1], 1, second=True)
    chosen, plain = quiet.range("mse", 99.99, "uint8"), blind.range("mse", 99.99, "uint8")
    assert chosen.high < plain.high / 2
    mass = quiet.halves[0].histogram.mass()
    interval, other = (chosen.low, chosen.high), (plain.low, plain.high)
    assert mean_squared_error(mass, interval, "uint8") < mean_squared_error(mass, other, "uint8") / 2
    np.testing.assert_allclose(mass.worth.sum(), 4096 * 2 + 4096 * 1e-6)
