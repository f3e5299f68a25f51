"""Fitting kernel times: non-negative least squares on relative errors, with bootstrap intervals.

    T = run + sum over kernel families, and their terms (amount x coefficient),   all coefficients >= 0

Rows are divided by T, so that a rung of 10 us weighs as much as one of 10 ms. Non-negative, because a negative
coefficient fits noise and extrapolates to negative times (Lawson & Hanson 1974; scipy.optimize.nnls).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from joulec.errors import missing_extra
from joulec.ir.values import Array

Features = Mapping[str, Mapping[str, float]]
"""Kernel family -> term -> amount, of one run (`Estimate.features`)."""

RUN = ("run", "launch")
FOLDS, RESAMPLES = 10, 100


@dataclass(frozen=True)
class Law:
    """One coefficient: seconds per unit, and the 95 % interval that resampling the rungs gives."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """Fitted kernel times.

    Attributes:
        laws: (family, feature) -> coefficient; those fitted to zero are left out.
        spread: 95 % of the rungs, each predicted without itself, lie within predicted / spread to predicted * spread.
        errors: relative error of each rung, predicted without itself, in the order given.
    """

    laws: Mapping[tuple[str, str], Law]
    spread: float
    errors: tuple[float, ...]


def fit(runs: Sequence[Features], seconds: Sequence[float], seed: int = 0) -> Fit:
    """Fit the times of `runs`.

    Args:
        runs: what each run does.
        seconds: what each takes.
        seed: of the folds and resamples.

    Raises:
        UnavailableError: scipy is not installed.
    """
    columns = _columns(runs)
    rows, ones = _rows(runs, seconds, columns), np.ones(len(runs))
    random = np.random.default_rng(seed)
    best = _solve(rows, ones)
    draws = np.array([_solve(rows[pick], ones) for pick in random.integers(len(runs), size=(RESAMPLES, len(runs)))])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    laws = {
        column: Law(float(value), float(min(lo, value)), float(max(hi, value)))
        for column, value, lo, hi in zip(columns, best, low, high, strict=True)
        if value > 0
    }
    ratios = _held_out(rows, random)
    spread = float(np.exp(np.quantile(np.abs(np.log(np.maximum(ratios, 1e-6))), 0.95)))
    return Fit(laws, max(spread, 1.01), tuple(float(r) - 1.0 for r in ratios))


def coefficients(runs: Sequence[Features], seconds: Sequence[float]) -> dict[tuple[str, str], float]:
    """The best coefficients alone: (family, term) -> seconds per unit."""
    columns = _columns(runs)
    solution = _solve(_rows(runs, seconds, columns), np.ones(len(runs)))
    return {column: float(value) for column, value in zip(columns, solution, strict=True)}


def held_out_error(runs: Sequence[Features], seconds: Sequence[float], seed: int = 0) -> float:
    """Mean logarithmic error of the runs, each predicted without itself: how well this description of them works."""
    rows = _rows(runs, seconds, _columns(runs))
    ratios = _held_out(rows, np.random.default_rng(seed))
    return float(np.mean(np.abs(np.log(np.maximum(ratios, 1e-6)))))


def predict(laws: Mapping[tuple[str, str], Law], features: Features) -> float:
    """Seconds of one run; a family without coefficients counts nothing."""
    total = laws[RUN].value if RUN in laws else 0.0
    for family, amounts in features.items():
        for name, amount in amounts.items():
            law = laws.get((family, name))
            total += 0.0 if law is None else law.value * amount
    return total


def _columns(runs: Sequence[Features]) -> list[tuple[str, str]]:
    found = {(family, name): None for run in runs for family, amounts in run.items() for name in amounts}
    return [RUN, *sorted(found)]


def _rows(runs: Sequence[Features], seconds: Sequence[float], columns: list[tuple[str, str]]) -> Array:
    """(runs, columns): what each column adds to the predicted share of the measured time, per second a unit."""
    table: Array = np.array([[1.0 if c == RUN else run.get(c[0], {}).get(c[1], 0.0) for c in columns] for run in runs])
    shares: Array = table / np.asarray(seconds)[:, None]
    return shares


def _solve(rows: Array, wanted: Array) -> Array:
    try:
        from scipy.optimize import nnls
    except ImportError:
        raise missing_extra("scipy", "cpu", "fitting a device profile") from None
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-300)
    solution, _ = nnls(rows / scale, wanted, maxiter=100 * rows.shape[1])
    return np.asarray(solution / scale)


def _held_out(rows: Array, random: np.random.Generator) -> Array:
    """Predicted over measured, each fold by a fit of the others."""
    fold = random.permutation(len(rows)) % FOLDS
    ratios = np.empty(len(rows))
    for index in range(FOLDS):
        held = fold == index
        ratios[held] = rows[held] @ _solve(rows[~held], np.ones(int((~held).sum())))
    return ratios
