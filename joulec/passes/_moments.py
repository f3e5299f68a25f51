"""Second moments of what operators read, collected over the calibration data: the statistics behind closed forms.

An operator y = W x with an error D in its weights errs by D x, and the mean of |D x|^2 over the data is tr(D G D^T),
with the Gram matrix G = mean of x x^T. Whatever corrects weights in closed form needs G and nothing else of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from joulec.ir.module import Module
from joulec.ir.values import Array
from joulec.passes._exposing import branches
from joulec.passes._observe import stream
from joulec.passes.base import Context

SAMPLES = 512
"""Feeds that moments are collected from, at most."""

CHUNK_BYTES = 512 << 20
"""Bytes of Gram matrices collected in one run over the data; one that is larger has a run of its own."""

WIDEST = 6144
"""Columns of a Gram matrix beyond which none is collected: two halves of this take 576 MiB."""

PER_COLUMN, LEAST_ROWS = 16, 8192
"""Rows wanted, by the columns of a Gram matrix and in all: more make it no more exact."""


@dataclass(frozen=True)
class Reading:
    """What an operator multiplies weights with.

    Attributes:
        names: of the values that it reads; more than one where operators share the weight.
        groups, width: groups of channels that are summed over separately, and numbers in one sum.
        rows: given an array of that value, how many rows are wanted and a number that shifts which ones are taken:
            float32 (groups, rows, width), or None where the array has none.
    """

    names: tuple[str, ...]
    groups: int
    width: int
    rows: Callable[[Array, int, int], Array | None]

    @property
    def too_wide(self) -> bool:
        """Whether no Gram matrix is collected of it."""
        return self.width > WIDEST or self.bytes > 4 * CHUNK_BYTES

    @property
    def bytes(self) -> int:
        """Bytes of its moments."""
        return 2 * self.groups * self.width * self.width * 8


@dataclass
class Moments:
    """Sums of x x^T over the rows x that an operator read.

    Attributes:
        halves: float64 (2, groups, width, width): of every other feed, and of those between, so that what was fitted to
            one half can be judged on the other.
        sums: float64 (2, groups, width): of the rows themselves.
        rows: how many, in each half.
    """

    halves: Array
    sums: Array
    rows: list[int] = field(default_factory=lambda: [0, 0])
    _waiting: tuple[list[Array], list[Array]] = field(default_factory=lambda: ([], []))

    @classmethod
    def of(cls, reading: Reading) -> Moments:
        """None seen yet."""
        return cls(
            np.zeros((2, reading.groups, reading.width, reading.width)), np.zeros((2, reading.groups, reading.width))
        )

    def add(self, rows: Array, half: int) -> None:
        """See float32 (groups, rows, width)."""
        self.rows[half] += rows.shape[1]
        self.sums[half] += rows.sum(axis=1, dtype=np.float64)
        self._waiting[half].append(rows)
        if sum(one.shape[1] for one in self._waiting[half]) >= rows.shape[2]:
            self._multiply(half)

    def _multiply(self, half: int) -> None:
        """Products of as many rows at once as there are columns: those of a few rows cost more in additions."""
        if self._waiting[half]:
            rows = np.concatenate(self._waiting[half], axis=1)
            self.halves[half] += rows.transpose(0, 2, 1) @ rows
            self._waiting[half].clear()

    @property
    def gram(self) -> Array:
        """The mean of x x^T: float64 (groups, width, width)."""
        both = self.half(0) * self.rows[0] + self.half(1) * self.rows[1]
        mean: Array = both / max(sum(self.rows), 1)
        return mean

    @property
    def mean(self) -> Array:
        """The mean of x: float64 (groups, width)."""
        mean: Array = self.sums.sum(axis=0) / max(sum(self.rows), 1)
        return mean

    def half(self, which: int) -> Array:
        """The mean of x x^T over one half."""
        self._multiply(which)
        mean: Array = self.halves[which] / max(self.rows[which], 1)
        return mean


def observed(module: Module) -> set[str | None]:
    """Names of values that a run of the model can hand out."""
    made = {value.name for graph in branches(module.graph) for node in graph for value in node.outputs}
    return made | {value.name for value in module.inputs()}


def collect(module: Module, context: Context, readings: Sequence[Reading]) -> Iterator[tuple[int, Moments]]:
    """The moments of each reading, by its position, as soon as they are complete; none of what is too wide or not seen.

    Memory is bounded by `CHUNK_BYTES` and by one feed's activations; what does not fit is collected in further runs
    over the data.

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    if context.feeds is None or context.runner is None:
        return
    parts = _parts(readings)
    feeds = min(context.feeds.count or SAMPLES, SAMPLES)
    for index, part in enumerate(parts):
        seen = {position: Moments.of(readings[position]) for position in part}
        names = list(dict.fromkeys(name for position in part for name in readings[position].names))
        data = itertools.islice(context.feeds, SAMPLES)
        for turn, arrays in enumerate(stream(module, context.runner, data, names)):
            for position, moments in seen.items():
                seen_now = [array for name in readings[position].names for array in arrays[name]]
                _see(readings[position], seen_now, turn, feeds, moments)
            context.progress("collecting input statistics", min(1.0, (index + (turn + 1) / feeds) / len(parts)))
        yield from ((position, moments) for position, moments in seen.items() if all(moments.rows))


def _parts(readings: Sequence[Reading]) -> list[list[int]]:
    """Positions of readings in runs of at most `CHUNK_BYTES`, and at least one."""
    parts: list[list[int]] = []
    room = 0
    for position, reading in enumerate(readings):
        if reading.too_wide:
            continue
        if not parts or reading.bytes > room:
            parts.append([])
            room = CHUNK_BYTES
        parts[-1].append(position)
        room -= reading.bytes
    return parts


def _see(reading: Reading, arrays: Sequence[Array], turn: int, feeds: int, moments: Moments) -> None:
    wanted = -(-max(PER_COLUMN * reading.width, LEAST_ROWS) // feeds)
    for array in arrays:
        rows = reading.rows(array, wanted, turn) if array.size else None
        if rows is not None and np.all(np.isfinite(rows)):
            moments.add(rows, turn % 2)


def spread(count: int, wanted: int, turn: int) -> slice:
    """About `wanted` of `count` places at equal distances, others for each turn."""
    step = max(1, count // max(wanted, 1))
    return slice(turn % step, None, step)


def channels_of(name: str, axis: int, width: int) -> Reading:
    """The numbers of a value along one axis (from the front, or negative from the back), at all places alike."""

    def rows(array: Array, wanted: int, turn: int) -> Array | None:
        if not -array.ndim <= axis < array.ndim or array.shape[axis] != width:
            return None
        flat = np.moveaxis(array, axis, -1).reshape(-1, width)
        return np.asarray(flat[spread(len(flat), wanted, turn)], np.float32)[None]

    return Reading((name,), 1, width, rows)
