"""How good predictions are: errors, ranks, signs and intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from predict import SCORED, Predicted, Timed
from zoo import Run

LEAST = 10e-6
"""Kernels of at least this many seconds are scored: the profiler's clock has steps of 1 us."""

LEVEL = 0.95
"""Of the intervals."""

NOISE = 0.02
"""Changes below this are none: what a measured ratio of the same model shows by itself."""


@dataclass(frozen=True)
class Score:
    """One method's figures.

    Attributes:
        mape: mean absolute error of the models' CPU seconds, relative to what was measured.
        latency_mape: the same of their latency.
        op_median: median absolute error of kernels, relative; None where the method has no times of kernels.
        tau: Kendall's rank correlation of the models' times.
        signs: share of the measured changes whose direction is predicted.
        coverage: share of the models whose time lies in the interval; None where the method has none.
        interval: mean score of the 95 % intervals, which wide ones lose as well as missed ones; None without one.
        models, kernels, changes: how many each figure is of.
    """

    mape: float
    latency_mape: float
    op_median: float | None
    tau: float
    signs: float
    coverage: float | None
    interval: float | None
    models: int
    kernels: int
    changes: int

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {name: round(v, 4) if isinstance(v, float) else v for name, v in asdict(self).items()}


def score(timed: Sequence[Timed], predicted: Mapping[Run, Predicted], pairs: Mapping[tuple[Run, Run], Any]) -> Score:
    """Score predictions of every run.

    Args:
        timed: what was measured.
        predicted: what a method says, run by run.
        pairs: (from, to) -> measured ratio of times with its 95 % interval.
    """
    from scipy.stats import kendalltau

    models = [one for one in timed if one.run.variant in SCORED]
    ratio = np.array([predicted[one.run].seconds / one.cpu_seconds for one in models])
    wall = np.array([predicted[one.run].seconds / one.seconds for one in models])
    kernels = kernel_errors(timed, predicted)
    signs = sign_hits(predicted, pairs)
    tau = kendalltau([one.cpu_seconds for one in models], [predicted[one.run].seconds for one in models])
    return Score(
        float(np.mean(np.abs(ratio - 1))), float(np.mean(np.abs(wall - 1))),
        float(np.median(np.abs(kernels))) if kernels else None,
        float(tau.statistic), float(np.mean(signs)), _coverage(models, predicted),
        _interval(models, predicted),
        len(models), len(kernels), len(signs),
    )  # fmt: skip


def kernel_errors(timed: Sequence[Timed], predicted: Mapping[Run, Predicted], least: float = LEAST) -> list[float]:
    """Relative errors of all kernels that take long enough to be told."""
    return [
        predicted[one.run].nodes[name] / seconds - 1
        for one in timed
        for name, seconds in one.kernels.items()
        if seconds >= least and name in predicted[one.run].nodes
    ]


def detectable(pair: Mapping[str, float]) -> bool:
    """Whether a measured change is one: its 95 % interval excludes 1, and it is beyond noise."""
    return (pair["low"] > 1 or pair["high"] < 1) and abs(pair["ratio"] - 1) > NOISE


def sign_hits(predicted: Mapping[Run, Predicted], pairs: Mapping[tuple[Run, Run], Any]) -> list[bool]:
    """For each change that was measured as one, whether the prediction goes the same way."""
    return [
        (predicted[base].seconds - predicted[candidate].seconds) * (pair["ratio"] - 1) > 0
        for (base, candidate), pair in pairs.items()
        if detectable(pair)
    ]


def _coverage(models: Sequence[Timed], predicted: Mapping[Run, Predicted]) -> float | None:
    spreads = [predicted[one.run].spread for one in models]
    if any(spread is None for spread in spreads):
        return None
    inside = [
        1 / spread <= one.cpu_seconds / predicted[one.run].seconds <= spread
        for one, spread in zip(models, spreads, strict=True)
        if spread is not None
    ]
    return float(np.mean(inside))


def _interval(models: Sequence[Timed], predicted: Mapping[Run, Predicted]) -> float | None:
    """Mean interval score of log times: the width, and 2 / alpha times how far beyond it the truth lies (Gneiting and
    Raftery, Strictly Proper Scoring Rules, 2007, section 6.2). Smaller is better.
    """
    found = []
    for one in models:
        spread = predicted[one.run].spread
        if spread is None:
            return None
        beyond = abs(np.log(one.cpu_seconds / predicted[one.run].seconds)) - np.log(spread)
        found.append(2 * np.log(spread) + 2 / (1 - LEVEL) * max(beyond, 0.0))
    return float(np.mean(found))


def left_out(
    timed: Sequence[Timed], group: Callable[[Run], str], predict: Callable[[list[Timed]], Mapping[Run, Predicted]]
) -> dict[Run, Predicted]:
    """Predictions of each group of runs by what the runs of other groups taught."""
    found: dict[Run, Predicted] = {}
    for name in dict.fromkeys(group(one.run) for one in timed):
        taught = [one for one in timed if group(one.run) != name and one.run.variant in SCORED]
        predicted = predict(taught)
        found.update({one.run: predicted[one.run] for one in timed if group(one.run) == name})
    return found
