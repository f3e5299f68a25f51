"""What is scored: joulec's predictions, and what simpler models make of the same runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from zoo import EXACT, INT8, Run

from joulec.energy import EnergyModel, Estimate, load_profile
from joulec.energy.calibrate import best_fit, fitted_profile
from joulec.energy.fit import RUN, coefficients
from joulec.energy.ladder import ladder
from joulec.energy.profile import DeviceProfile

SCORED = (EXACT, INT8)
"""Variants that count as models; the others are what optimizations start from, or lead to."""


@dataclass(frozen=True)
class Timed:
    """One run and what was measured of it.

    Attributes:
        run: which.
        seconds, cpu_seconds: latency and CPU seconds of an inference.
        kernels: node -> seconds of its kernels by the profiler, which cost nothing of their own any more.
    """

    run: Run
    seconds: float
    cpu_seconds: float
    kernels: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicted:
    """What a method says of one run: seconds in all and, where it tells them, by node; the factor of its interval."""

    seconds: float
    nodes: Mapping[str, float]
    spread: float | None = None


def timed_runs(data: Mapping[str, Any]) -> list[Timed]:
    """The runs in the data file."""
    found = []
    for key, entry in data["networks"].items():
        network, _, batch = key.rpartition(" x")
        for variant, one in entry["runs"].items():
            run = Run(entry["family"], network, int(batch), variant)
            found.append(Timed(run, one["seconds"], one["cpu_seconds"], _kernels(one)))
    return found


def _kernels(one: Mapping[str, Any]) -> dict[str, float]:
    """Kernel times that add up to the model's: what the profiler itself costs is taken off, each kernel alike."""
    told = {name: v if isinstance(v, list) else [v, 1] for name, v in one.get("kernels", {}).items()}
    given = {name: (1e-6 * time, number) for name, (time, number) in told.items()}
    count = sum(number for _, number in given.values())
    surplus = (sum(seconds for seconds, _ in given.values()) - one["cpu_seconds"]) / max(count, 1)
    cost = max(surplus, 0.0)
    return {name: seconds - number * cost for name, (seconds, number) in given.items() if name}


class Joulec:
    """What `joulec estimate` says with a profile that `joulec calibrate-device` would write from these rungs."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self._data = data
        self._rungs = [rung for rung in ladder() if rung.name in data["rungs"]]
        self._times = [data["rungs"][rung.name] for rung in self._rungs]

    @cached_property
    def _fitted(self) -> tuple[DeviceProfile, Any, list[Any]]:
        return best_fit(self._rungs, self._times, 1)

    @cached_property
    def profile(self) -> DeviceProfile:
        """The profile; no model had a part in it."""
        base, fitted, _ = self._fitted
        return fitted_profile(base, fitted, 1, "calibrated", len(self._rungs), self._data["drift"])

    def taught(self, estimates: Mapping[Run, Estimate], seen: Sequence[Timed]) -> dict[Run, Predicted]:
        """What these models, beside the rungs, lead to: times of whole models."""
        _, _, features = self._fitted
        runs = [*features, *(estimates[one.run].features for one in seen)]
        laws = coefficients(runs, [*self._times, *(one.cpu_seconds for one in seen)])
        return {run: Predicted(_seconds(laws, one), {}) for run, one in estimates.items()}


def _seconds(laws: Mapping[tuple[str, str], float], estimate: Estimate) -> float:
    terms = ((family, name, n) for family, amounts in estimate.features.items() for name, n in amounts.items())
    return laws[RUN] + sum(laws.get((family, name), 0.0) * amount for family, name, amount in terms)


def with_profile(profile: DeviceProfile, runs: Sequence[Run]) -> dict[Run, Estimate]:
    """Estimates of all runs."""
    model = EnergyModel(profile)
    return {run: model.estimate(run.module(), in_place=True) for run in runs}


def as_told(estimate: Estimate, spread: float | None) -> Predicted:
    """An estimate's seconds."""
    return Predicted(estimate.seconds, {node.name: node.seconds or 0.0 for node in estimate.nodes}, spread)


def roofline() -> DeviceProfile:
    """The generic CPU as it ships, one core of it: nothing fitted."""
    return load_profile().with_cores(1)


def in_proportion(amount: str, estimates: Mapping[Run, Estimate], taught: Sequence[Timed]) -> dict[Run, Predicted]:
    """Time in proportion to `flops` or `bytes`, at the median rate of the runs that may be seen."""
    totals = {run: sum(getattr(n, amount) or 0 for n in one.nodes) for run, one in estimates.items()}
    rate = float(np.median([one.cpu_seconds / totals[one.run] for one in taught]))
    return {
        run: Predicted(rate * totals[run], {n.name: rate * (getattr(n, amount) or 0) for n in one.nodes})
        for run, one in estimates.items()
    }
