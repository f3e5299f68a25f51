"""What calibration keeps of one tensor while the data stream by: constant memory, whatever the number of samples."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from joulec.ir.values import Array

BINS = 4096
"""Bins of a histogram; a multiple of four, so that doubling its width maps bins onto bins."""


class Histogram:
    """Counts over [-width, width]; the width doubles as larger numbers come, merging bins in pairs."""

    def __init__(self) -> None:
        self.counts: Array = np.zeros(BINS, np.int64)
        self.width = 0.0

    def add(self, numbers: Array) -> None:
        """Count finite `numbers` of any shape."""
        largest = float(np.max(np.abs(numbers)))
        if self.width == 0.0 and largest > 0.0:
            self.width = largest  # zeros counted before stay where they are: in the middle
        while largest > self.width:
            self._double()
        width = self.width or 1.0
        self.counts += np.histogram(numbers, bins=BINS, range=(-width, width))[0]

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.width *= 2

    def interval(self, percentile: float) -> tuple[float, float]:
        """The narrowest symmetric cut of both tails that keeps `percentile` of the numbers, to a bin's width."""
        total = int(self.counts.sum())
        if total == 0:
            return 0.0, 0.0
        tail = total * (1 - percentile / 100) / 2
        edges = np.linspace(-self.width, self.width, BINS + 1)
        below = np.cumsum(self.counts)
        low = int(np.searchsorted(below, tail, side="right"))
        high = int(np.searchsorted(below, total - tail, side="left"))
        return float(edges[min(low, BINS - 1)]), float(edges[min(high, BINS - 1) + 1])


@dataclass
class Observed:
    """Running extremes of one tensor, and its histogram where a method needs one.

    Attributes:
        histogram: fed with every batch, or None.
        low, high: smallest and largest number seen.
        count: how many numbers were seen.
        broken: whether one of them was NaN or Inf.
    """

    histogram: Histogram | None = None
    low: float = field(default=float("inf"))
    high: float = field(default=float("-inf"))
    count: int = 0
    broken: bool = False

    def add(self, numbers: Array) -> None:
        """Take one batch."""
        if numbers.size == 0 or self.broken:
            return
        low, high = float(np.min(numbers)), float(np.max(numbers))
        if not (np.isfinite(low) and np.isfinite(high)):
            self.broken = True
            return
        self.low, self.high, self.count = min(self.low, low), max(self.high, high), self.count + numbers.size
        if self.histogram is not None:
            self.histogram.add(numbers)
