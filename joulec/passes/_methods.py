"""How a range is chosen from what was seen of a tensor: five methods, and the error that each would make.

All of them work on a `Mass` (where the numbers lie), so that one run over the data serves all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from joulec.ir.module import Range
from joulec.ir.values import Array
from joulec.passes._histogram import Mass
from joulec.passes._qdq import activation_parameters

Form = Literal["uint8", "int8"]
Interval = tuple[float, float]

METHODS = ("minmax", "average", "percentile", "entropy", "mse")
"""In order of preference: of methods that err alike, the one that cuts least."""

COARSE = tuple(2.0 ** (-step / 2) for step in range(21))
"""Shares of the whole range that a search tries first: down to 2^-10, two an octave."""

FINE = tuple(2.0 ** (step / 8) for step in range(-3, 4))
"""What it tries around the best of them."""

HOPELESS = 4.0
"""A search down the coarse shares ends where the error is this many times the least: clipping only gets worse."""

SMOOTHED = 1e-5
"""Least share of a bin in the quantized distribution: a bin that it lacks must not cost endlessly much."""

BINS_A_LEVEL = 8
"""Equal bins of one level, in which the entropy method compares distributions."""


@dataclass(frozen=True)
class Seen:
    """What calibration knows of one tensor.

    Attributes:
        mass: where its numbers lie.
        low, high: its extremes.
        average: moving averages of the extremes of each feed.
    """

    mass: Mass
    low: float
    high: float
    average: Interval


def interval(method: str, seen: Seen, form: Form, percentile: float) -> Interval:
    """The range that `method` gives a tensor; it never exceeds what was seen.

    Args:
        method: one of `METHODS`.
        seen: the tensor.
        form: the integers of the target, which a search of the smallest error has in mind.
        percentile: share of the numbers that the percentile method keeps.
    """
    chosen: Mapping[str, Callable[[], Interval]] = {
        "minmax": lambda: (seen.low, seen.high),
        "average": lambda: seen.average,
        "percentile": lambda: by_percentile(seen.mass, percentile),
        "entropy": lambda: by_entropy(seen, form),
        "mse": lambda: by_error(seen, form),
    }
    low, high = chosen[method]()
    return max(low, seen.low), min(high, seen.high)


def by_percentile(mass: Mass, percentile: float) -> Interval:
    """The range between equal tails that keeps `percentile` of the numbers, to a bin's width."""
    if not mass.count.size:
        return 0.0, 0.0
    tail = mass.total * (1 - percentile / 100) / 2
    below = np.cumsum(mass.count)
    last = mass.count.size - 1
    low = int(np.searchsorted(below, tail, side="right"))
    high = int(np.searchsorted(below, mass.total - tail, side="left"))
    return float(mass.low[min(low, last)]), float(mass.high[min(high, last)])


# -- the smallest squared error -------------------------------------------------------------------------------


def by_error(seen: Seen, form: Form) -> Interval:
    """The range with the smallest mean squared error of rounding and clipping together.

    One limit for both ends first, then each end alone: the error has one valley along each for all but odd tensors.
    """
    best = (seen.low, seen.high)
    two_sided = form == "uint8" and seen.low < 0 < seen.high
    for ends in ((True, True), (True, False), (False, True)) if two_sided else ((True, True),):
        for shares in (COARSE, FINE):
            best = _best(seen, form, best, shares, ends)
    return best


def _best(seen: Seen, form: Form, start: Interval, shares: Sequence[float], ends: tuple[bool, bool]) -> Interval:
    best, least = start, float("inf")
    for share in shares:
        tried = cut(start, share, seen, ends)
        error = mean_squared_error(seen.mass, tried, form)
        if error < least:
            best, least = tried, error
        elif error > HOPELESS * least and shares is COARSE:
            break
    return best


def cut(start: Interval, share: float, seen: Seen, ends: tuple[bool, bool] = (True, True)) -> Interval:
    """`start` with the named ends no further from zero than a share of where the further one of them was."""
    limit = share * max(abs(end) for end, moves in zip(start, ends, strict=True) if moves)
    low = max(-limit, seen.low) if ends[0] else start[0]
    high = min(limit, seen.high) if ends[1] else start[1]
    return min(low, high), max(low, high)


def mean_squared_error(mass: Mass, chosen: Interval, form: Form) -> float:
    """Mean of (x - dequantized(quantized(x)))^2 over the numbers, each counting as much as it is worth.

    They are taken to lie evenly within their bins.
    """
    if not mass.count.size:
        return 0.0
    scale, lowest, highest = grid(chosen, form)
    inside_low, inside_high = np.clip(mass.low, lowest, highest), np.clip(mass.high, lowest, highest)
    width = mass.high - mass.low
    wide = width > 1e-3 * scale
    safe = np.where(width > 0, width, 1.0)
    spread = (_rounding(inside_high / scale) - _rounding(inside_low / scale)) * scale**3 / safe
    centre = (mass.low + mass.high) / 2
    clipped = np.clip(centre, lowest, highest)
    point = np.square(clipped - np.rint(clipped / scale) * scale)
    beyond = _cubes(mass.low - lowest, mass.high - lowest, np.minimum) / safe
    beyond += _cubes(mass.low - highest, mass.high - highest, np.maximum) / safe
    error = np.where(wide, spread + beyond, point + np.square(centre - clipped))
    return float(np.sum(error * mass.worth) / max(mass.worth.sum(), 1e-300))


def _rounding(steps: Array) -> Array:
    """The integral of (v - round(v))^2 from 0 to `steps`: 1/12 for each whole step."""
    whole = np.rint(steps)
    result: Array = whole / 12 + (steps - whole) ** 3 / 3
    return result


def _cubes(low: Array, high: Array, side: Callable[[Array, float], Array]) -> Array:
    """The integral of v^2 over the part of [low, high] on one side of 0."""
    result: Array = (side(high, 0.0) ** 3 - side(low, 0.0) ** 3) / 3
    return result


def grid(chosen: Interval, form: Form) -> tuple[float, float, float]:
    """Step, smallest and largest number of the integers that cover `chosen`."""
    made = activation_parameters(Range(*chosen), form)
    scale, zero = float(made.scale), int(made.zero_point)
    smallest, largest = (0, 255) if form == "uint8" else (-128, 127)
    return scale, (smallest - zero) * scale, (largest - zero) * scale


def signal_to_noise(mass: Mass, error: float) -> float:
    """Power of the numbers over the mean squared error, in decibel; at most 200, the like of no error at all."""
    centre = (mass.low + mass.high) / 2
    power = float(np.sum(np.square(centre) * mass.worth) / max(mass.worth.sum(), 1e-300))
    if power <= 0.0 or error <= power * 1e-20:
        return 200.0
    return float(10 * np.log10(power / error))


def saturated(mass: Mass, chosen: Interval, form: Form) -> float:
    """Share of the numbers that lie beyond the grid of `chosen`."""
    scale, lowest, highest = grid(chosen, form)
    centre = (mass.low + mass.high) / 2
    outside = (centre < lowest - scale / 2) | (centre > highest + scale / 2)
    return float(mass.count[outside].sum() / max(mass.total, 1.0))


# -- the smallest loss of information -------------------------------------------------------------------------


def by_entropy(seen: Seen, form: Form) -> Interval:
    """The range with the smallest Kullback-Leibler divergence of the quantized distribution from the clipped one.

    The method of TensorRT's calibrator (S. Migacz, "8-bit Inference with TensorRT", GTC 2017): what is clipped counts
    at the border, and each level's mass is spread evenly over its bins that hold anything.
    """
    steps, counted = _cumulated(seen.mass)
    best, least = (seen.low, seen.high), float("inf")
    for shares in (COARSE, FINE):
        start = best
        for share in shares:
            tried = cut(start, share, seen)
            found = _divergence(steps, counted, grid(tried, form))
            if found < least:
                best, least = tried, found
    return best


def _cumulated(mass: Mass) -> tuple[Array, Array]:
    """The cumulated counts as a line: its corners, ascending, and the counts below them."""
    corners = np.stack([mass.low, mass.high], axis=1).ravel()
    below = np.concatenate([[0.0], np.cumsum(mass.count)])
    return corners, np.stack([below[:-1], below[1:]], axis=1).ravel()


def _divergence(corners: Array, counted: Array, levels: tuple[float, float, float]) -> float:
    scale, lowest, highest = levels
    count = round((highest - lowest) / scale) + 1
    edges = np.linspace(lowest - scale / 2, highest + scale / 2, count * BINS_A_LEVEL + 1)
    below = np.interp(edges + scale * 1e-6, corners, counted)  # zeros, which have no width, lie in one bin
    kept = np.diff(below)
    if kept.sum() <= 0:
        return float("inf")
    reference = kept.copy()
    reference[0] += below[0]
    reference[-1] += counted[-1] - below[-1]
    there = kept > 0
    cells = there.reshape(count, BINS_A_LEVEL).sum(axis=1)
    held = kept.reshape(count, BINS_A_LEVEL).sum(axis=1) / np.maximum(cells, 1)
    spread = np.where(there, np.repeat(held, BINS_A_LEVEL), 0.0)
    p, q = reference / reference.sum(), np.maximum(spread / spread.sum(), SMOOTHED)
    return float(np.sum(p * np.log(np.maximum(p, 1e-300) / q)))
