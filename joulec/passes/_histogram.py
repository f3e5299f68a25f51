"""A histogram of float32 numbers by octaves: constant memory, and the same counts whatever the order of the data.

A bin is a sign, one of the 24 octaves below the largest number seen, and the first bits of the mantissa; what is
smaller than that counts as zero, because beside the largest number no 8-bit grid can tell it from zero. When larger
numbers come, the octaves move up and the lowest ones merge into zero. Unlike equal bins over the whole range, these
resolve the bulk of a tensor with outliers as finely as the outliers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from joulec.ir.values import Array
from joulec.passes._importance import Importance

OCTAVES = 24
"""Octaves kept below the largest number: 16 more than the steps of an 8-bit grid."""

FINEST, COARSEST = 5, 3
"""Mantissa bits of a bin: a 32nd of an octave, or less fine where there are many tensors."""

SAMPLED = 1 << 14
"""Numbers of one tensor and feed that are counted; of larger tensors every k-th is, from another start each time, and
the two extremes always."""

_MAGNITUDE, _MANTISSA = np.uint32(0x7FFFFFFF), 23


def histogram_bytes(bits: int) -> int:
    """Memory of one histogram: for each bin a count and what the numbers in it are worth."""
    return 16 * (2 * (OCTAVES << bits) + 1)


@dataclass(frozen=True)
class Mass:
    """Where the numbers lie: the occupied bins, in ascending order.

    Attributes:
        low, high: float64 edges of each bin; a bin of zeros has both 0.
        count: float64 numbers in it.
        worth: float64 sums of what they are worth (`_importance`); the counts where all are worth the same.
    """

    low: Array
    high: Array
    count: Array
    worth: Array

    @property
    def total(self) -> float:
        """How many numbers there are."""
        return float(self.count.sum())


class Histogram:
    """Counts by sign, octave and leading mantissa bits.

    Args:
        bits: mantissa bits of a bin.
    """

    def __init__(self, bits: int = FINEST) -> None:
        self.bits = bits
        self.half = OCTAVES << bits
        self.table: Array = np.zeros((2, 2 * self.half + 1))
        """Counts, exact up to 2^53, and below them what the numbers are worth."""
        self.top = (OCTAVES + 1) << bits
        """One more than the largest bin, in units of float32's own bit pattern; never so low that zero has a bin."""

    @property
    def counts(self) -> Array:
        """How many numbers each bin holds, float64."""
        counts: Array = self.table[0]
        return counts

    def add(self, numbers: Array, turn: int = 0, importance: Importance | None = None) -> None:
        """Count finite `numbers` of any shape; `turn` moves the start where only every k-th is counted."""
        flat = np.ascontiguousarray(numbers, np.float32).ravel()
        if flat.size == 0:
            return
        places = np.array([int(np.argmin(flat)), int(np.argmax(flat))])
        shift, largest = _MANTISSA - self.bits, int(np.max(flat[places].view(np.uint32) & _MAGNITUDE))
        self._raise_to((largest >> shift) + 1 if largest else 0)
        step = -(-flat.size // SAMPLED)
        taken = np.arange(flat.size)
        if step > 1:  # an odd step, so that it seldom walks along one channel
            taken = np.concatenate([np.arange(turn % (step | 1), flat.size, step | 1), places])
            flat = flat[taken]
        along = None if importance is None else importance.along(np.shape(numbers))
        worth = None if along is None else along[1][taken // along[0] % along[1].size]
        self._count(flat.view(np.uint32), shift, worth)

    def _count(self, pattern: Array, shift: int, worth: Array | None) -> None:
        index = ((pattern & _MAGNITUDE) >> np.uint32(shift)).astype(np.int32) - (self.top - self.half - 1)
        np.maximum(index, 0, out=index)
        index[pattern > _MAGNITUDE] *= -1
        index += self.half
        counts = np.bincount(index, minlength=self.table.shape[1])
        self.table[0] += counts
        self.table[1] += counts if worth is None else np.bincount(index, worth, self.table.shape[1])

    def _raise_to(self, top: int) -> None:
        """Let the octaves end at `top` or above; those that fall out below become zeros."""
        # Whole octaves, so that the same numbers lie in the same bins whatever came first.
        moved = (-(-top >> self.bits) << self.bits) - self.top
        if moved <= 0:
            return
        self.top += moved
        half, old, kept = self.half, self.table, max(self.half - moved, 0)
        self.table = np.zeros_like(old)
        self.table[:, half + 1 : half + 1 + kept] = old[:, 2 * half + 1 - kept :]
        self.table[:, half - kept : half] = old[:, :kept]
        self.table[:, half] = old.sum(axis=1) - self.table.sum(axis=1)

    def merged(self, other: Histogram) -> Histogram:
        """The counts of both; neither is changed."""
        result, more = Histogram(self.bits), Histogram(self.bits)
        for mine, given in ((result, self), (more, other)):
            mine.table, mine.top = given.table.copy(), given.top
        top = max(result.top, more.top)
        result._raise_to(top)
        more._raise_to(top)
        result.table += more.table
        return result

    def mass(self) -> Mass:
        """The occupied bins."""
        shift = np.uint32(_MANTISSA - self.bits)
        patterns = np.arange(self.top - self.half, self.top + 1, dtype=np.uint32) << shift
        edges = patterns.view(np.float32).astype(np.float64)
        low = np.concatenate([-edges[:0:-1], [0.0], edges[:-1]])
        high = np.concatenate([-edges[-2::-1], [0.0], edges[1:]])
        there = self.counts > 0
        largest = float(np.finfo(np.float32).max)
        return Mass(low[there], np.minimum(high[there], largest), *self.table[:, there])
