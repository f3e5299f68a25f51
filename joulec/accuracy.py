"""Accuracy of a module: the user's own metric, or fidelity to the input model where there is none."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from joulec.data import Metric
from joulec.fidelity import Decisions
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.values import Array


class Judge(ABC):
    """Scores modules; higher is better. A drop is a difference of scores in absolute points."""

    name: str
    data: str
    """What it judges by, in words."""
    baseline: float
    changes: Array | None = None
    """Of the last score: per sample, the most that its part of the score can have changed; None where unknown."""

    @abstractmethod
    def score(self, module: Module) -> float:
        """The module's score."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the last score must know."""
        return ()

    @property
    def blind(self) -> bool:
        """Whether the last score says nothing, because nothing could be judged."""
        return False

    def drop(self, module: Module) -> float:
        """How much worse than the input model it is; negative where it is better."""
        return self.baseline - self.score(module)


class MetricJudge(Judge):
    """The user's function `metric(infer) -> float`, run on the module in question.

    Beside the score, what the model decides on each sample is compared with what the input model decided.

    Args:
        metric: loaded by `joulec.data.load_metric`, which tells its failures in one line.
        runner: where modules run.
        baseline: the input model; its score is what a drop is measured from.
        options: how sessions are opened.
    """

    name = "metric"
    data = "the metric's own data"

    def __init__(self, metric: Metric, runner: Runner, baseline: Module, options: SessionOptions) -> None:
        self._metric, self._runner, self._options = metric, runner, options
        self._decided: Decisions | None = None
        self.baseline = self.score(baseline)

    def score(self, module: Module) -> float:
        handle, decided = self._runner.load(module, options=self._options), Decisions(self._decided)

        def infer(feed: Feed) -> dict[str, Array]:
            outputs = self._runner.run(handle, feed)
            decided.add(outputs)
            return outputs

        try:
            score = float(self._metric(infer))
        finally:
            self._runner.unload(handle)
        self.changes = None if self._decided is None else self._decided.changed(decided)
        self._decided = self._decided or decided
        return score


class FidelityJudge(Judge):
    """1 - ||y - y0|| / ||y0|| over all feeds, of the worst output; y0 are the input model's outputs.

    Both models run feed by feed, so memory does not grow with the number of feeds. Outputs whose y0 is all zeros, or
    holds no finite number, cannot be judged and are named in `zero_outputs`; where zeros come out as anything else,
    fidelity is 0.
    """

    name = "fidelity"
    baseline = 1.0

    def __init__(self, runner: Runner, baseline: Module, feeds: Feeds, options: SessionOptions) -> None:
        self._runner, self._reference, self._feeds, self._options = runner, baseline, feeds, options
        self.data = feeds.description
        self.zero_outputs: tuple[str, ...] = ()
        self._judged = 0

    @property
    def blind(self) -> bool:
        return self._judged == 0

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.zero_outputs:
            return ()
        names = ", ".join(f"'{name}'" for name in self.zero_outputs)
        said = "all zeros in the input model, or nothing finite, so that fidelity says nothing about it"
        return (f"{said}: output {names}",)

    def score(self, module: Module) -> float:
        reference = self._runner.load(self._reference, options=self._options)
        candidate = self._runner.load(module, options=self._options)
        self._errors: list[float] = []
        try:
            norms = self._norms(reference, candidate)
        finally:
            self._runner.unload(reference)
            self._runner.unload(candidate)
        self.zero_outputs = tuple(name for name, (_, norm) in norms.items() if norm == 0)
        ratios = [math.sqrt(error / norm) for error, norm in norms.values() if norm > 0]
        self._judged = len(ratios)
        self.changes = np.array(self._errors) - np.mean(self._errors) if len(self._errors) > 1 else None
        wrong = any(error > 0 for error, norm in norms.values() if norm == 0)
        return 1.0 - max([*ratios, 1.0] if wrong else ratios, default=0.0)

    def _norms(self, reference: int, candidate: int) -> dict[str, tuple[float, float]]:
        """Squared norms per output: of the difference, and of the reference."""
        sums: dict[str, tuple[float, float]] = {}
        for feed in self._feeds:
            expected, actual, worst = self._runner.run(reference, feed), self._runner.run(candidate, feed), 0.0
            for name, value in expected.items():
                error, norm = _squares(value, actual[name])
                worst = max(worst, error / norm if norm > 0 else 0.0)
                before = sums.get(name, (0.0, 0.0))
                sums[name] = (before[0] + error, before[1] + norm)
            self._errors.append(math.sqrt(min(worst, 1.0)))
        return sums


def _squares(expected: Any, actual: Any) -> tuple[float, float]:
    """Squared norms of the difference and of `expected`, over its finite numbers; the others must be the same."""
    if not _is_real(expected) or not _is_real(actual):
        return (0.0 if _same(expected, actual) else 1.0), 1.0
    if expected.shape != actual.shape:
        return 1.0, 1.0
    one, other = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)) or not _same(one[~finite], other[~finite]):
        return float("inf"), 1.0
    one, other = one[finite], other[finite]
    return float(np.sum((one - other) ** 2)), float(np.sum(one**2))


def _is_real(value: Any) -> bool:
    """Whether `value` is an array of real numbers; numpy files the small floats of ml_dtypes under `V`."""
    return isinstance(value, np.ndarray) and (value.dtype.kind in "biuf" or "float" in value.dtype.name)


def _same(expected: Any, actual: Any) -> bool:
    """Equality of strings, complex numbers, sequences of tensors, maps and absent optionals; NaN equals NaN."""
    if isinstance(expected, Mapping):
        return isinstance(actual, Mapping) and _same(list(expected.items()), list(actual.items()))
    if isinstance(expected, list | tuple):
        pairs = zip(expected, actual, strict=False)
        return len(expected) == len(actual) and all(_same(one, other) for one, other in pairs)
    one, other = np.asarray(expected), np.asarray(actual)
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc" and other.dtype.kind in "fc")
