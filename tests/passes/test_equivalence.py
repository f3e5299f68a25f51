"""Equivalence: what counts as the same numbers, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

from joulec.passes.equivalence import TOLERANCE, deviation

F = np.float32


@pytest.mark.parametrize(
    ("reference", "actual", "expected"),
    [
        (np.array([1.0, -4.0], F), np.array([1.0, -3.0], F), 0.25),
        (np.array([np.nan, 1.0], F), np.array([np.nan, 1.0], F), 0.0),
        (np.array([np.nan, 1.0], F), np.array([1.0, 1.0], F), np.inf),
        (np.array([np.inf, 1.0], F), np.array([-np.inf, 1.0], F), np.inf),
        (np.array([np.inf], F), np.array([np.inf], F), 0.0),
        (np.array([1], np.int64), np.array([2], np.int64), np.inf),
        (np.array([1.0], F), np.array([1.0]), np.inf),
        (np.ones((1, 2), F), np.ones(2, F), np.inf),
        (np.zeros(0, F), np.zeros(0, F), 0.0),
        ([np.ones(1, F)], [np.ones(1, F), np.ones(1, F)], np.inf),
        (np.array(["a"]), np.array(["b"]), np.inf),
    ],
)
def test_deviation(reference: object, actual: object, expected: float) -> None:
    assert deviation(reference, actual) == expected


def test_rounding_that_a_saturated_sigmoid_leaves_is_no_deviation() -> None:
    scores = np.linspace(-16, -13, 50, dtype=F)
    one, other = F(1) / (F(1) + np.exp(-scores)), F(1) - F(1) / (F(1) + np.exp(scores))
    assert np.max(np.abs(one - other)) > TOLERANCE["float32"] * np.max(np.abs(one))
    assert deviation(one, other) <= TOLERANCE["float32"]


@pytest.mark.parametrize("scale", [1e-4, 1e-3, 1.0, 1e6])
def test_a_tenth_more_is_a_deviation_at_every_scale_a_model_has(scale: float) -> None:
    values = np.linspace(0.1, 1, 9, dtype=F) * F(scale)
    assert deviation(values, values * F(1.1)) > TOLERANCE["float32"]
