"""What calibration keeps of one tensor while the data stream by: constant memory, whatever the number of samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from joulec.ir.module import Choice, Range
from joulec.ir.values import Array
from joulec.passes._histogram import COARSEST, FINEST, Histogram, Mass, histogram_bytes
from joulec.passes._importance import Importance
from joulec.passes._methods import METHODS, Form, Seen, interval, mean_squared_error, saturated, signal_to_noise

HISTOGRAM_BYTES = 64 << 20
"""Memory of all histograms of one run over the data; many tensors share it with coarser bins."""

DECAY = 0.95
"""What a moving average of extremes keeps of what it was at each feed."""

ALIKE = 1.02
"""Methods whose errors differ by less than this factor err alike, and the one that cuts least is taken."""


MOST = HISTOGRAM_BYTES // (2 * histogram_bytes(COARSEST))
"""Tensors of one run: with the coarsest bins, two histograms each, they keep within `HISTOGRAM_BYTES`."""


def bits_for(tensors: int) -> int:
    """Mantissa bits of the bins with which this many tensors keep within `HISTOGRAM_BYTES`, two histograms each."""
    for bits in range(FINEST, COARSEST, -1):
        if 2 * tensors * histogram_bytes(bits) <= HISTOGRAM_BYTES:
            return bits
    return COARSEST


@dataclass
class Half:
    """One half of the data: its extremes and where its numbers lie."""

    histogram: Histogram
    low: float = float("inf")
    high: float = float("-inf")

    def add(self, numbers: Array, low: float, high: float, turn: int, importance: Importance | None) -> None:
        """Take one batch with these extremes."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.histogram.add(numbers, turn, importance)


@dataclass
class Observed:
    """One tensor: a histogram of each half of the data, running extremes and their moving averages.

    Attributes:
        bits: mantissa bits of the histograms' bins.
        importance: what errors in its channels are worth, or None where all are worth the same.
        halves: the first and the second half of the feeds.
        average: moving averages of the extremes of a feed.
        count: how many numbers were seen.
        broken: what was not finite (`NaN` or `Inf`) and in which feed, from 1; None while all is.
    """

    bits: int = FINEST
    importance: Importance | None = None
    halves: tuple[Half, Half] = field(init=False)
    average: tuple[float, float] | None = None
    count: int = 0
    broken: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        self.halves = Half(Histogram(self.bits)), Half(Histogram(self.bits))

    def add(self, numbers: Array, turn: int = 0, second: bool = False) -> None:
        """Take one batch, of feed number `turn` (from 0), which lies in the `second` half of the data or not."""
        if numbers.size == 0 or self.broken is not None:
            return
        low, high = float(np.min(numbers)), float(np.max(numbers))
        if not (np.isfinite(low) and np.isfinite(high)):
            self.broken = ("NaN" if np.isnan(low) else "Inf"), turn + 1
            return
        self.count += numbers.size
        before = self.average or (low, high)
        self.average = tuple(DECAY * old + (1 - DECAY) * new for old, new in zip(before, (low, high), strict=True))  # type: ignore[assignment]
        self.halves[second].add(numbers, low, high, turn, self.importance)

    @property
    def low(self) -> float:
        """The smallest number."""
        return min(half.low for half in self.halves)

    @property
    def high(self) -> float:
        """The largest number."""
        return max(half.high for half in self.halves)

    def range(self, method: str, percentile: float, form: Form) -> Range:
        """The range by `method`, or by the one that errs least where it is `auto`, with what each would be."""
        average = self.average or (self.low, self.high)
        whole = Seen(self.halves[0].histogram.merged(self.halves[1].histogram).mass(), self.low, self.high, average)
        parts = [
            Seen(half.histogram.mass(), half.low, half.high, (max(average[0], half.low), min(average[1], half.high)))
            for half in self.halves
            if half.low <= half.high
        ]
        choices = tuple(_choice(one, whole, parts, percentile, form) for one in METHODS)
        made = _least(choices) if method == "auto" else next(one for one in choices if one.method == method)
        return Range(
            made.low, made.high, made.method, made.sqnr, saturated(whole.mass, (made.low, made.high), form),
            self.low, self.high, _shift(parts), choices,
        )  # fmt: skip


def _choice(method: str, whole: Seen, parts: list[Seen], percentile: float, form: Form) -> Choice:
    """The range by `method` on all data, and the error on each half of the range that the other half gives."""
    low, high = interval(method, whole, form, percentile)
    if len(parts) < 2:
        parts = [whole, whole]
    masses = [part.mass for part in parts]
    crossed = [
        mean_squared_error(mass, interval(method, other, form, percentile), form)
        for mass, other in zip(masses, reversed(parts), strict=True)
    ]
    error = sum(error * mass.total for error, mass in zip(crossed, masses, strict=True)) / whole.mass.total
    own = mean_squared_error(whole.mass, (low, high), form)
    return Choice(method, low, high, round(signal_to_noise(whole.mass, own), 3), _to_db(whole.mass, error))


def _to_db(mass: Mass, error: float) -> float:
    return round(signal_to_noise(mass, error), 3)


def _least(choices: tuple[Choice, ...]) -> Choice:
    """The first that errs as little, on data that it was not made from, as the best does."""
    best = max(one.unseen for one in choices)
    return next(one for one in choices if one.unseen >= best - 10 * np.log10(ALIKE))


def _shift(parts: list[Seen]) -> float:
    """By how much the extremes of the halves differ, as a share of the whole range."""
    if len(parts) < 2:
        return 0.0
    (one, other) = parts
    whole = max(one.high, other.high) - min(one.low, other.low)
    return 0.0 if whole <= 0 else max(abs(one.low - other.low), abs(one.high - other.high)) / whole
