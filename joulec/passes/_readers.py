"""Sums over channels that may go: what reads them, what removing them costs, and how what stays makes up for it.

A layer reads channels x with the matrix W. Without the channels R its output is nearest to the old one when those that
stay, S, take over what they can predict of them: W_S + W_R G_RS (G_SS)^-1, with the Gram matrix G of x. What then
remains is tr(W_R C W_R^T), C the Schur complement of G_SS in G. Channels go one after another, each time those for
which this is least: optimal brain surgeon (Hassibi and Stork 1993) for whole columns. Convolutions count a channel
alike at all taps, so that one small Gram matrix serves all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.values import Array, constant
from joulec.passes._correction import DAMPINGS, damped
from joulec.passes._labels import Labels, Sum
from joulec.passes._moments import Moments, Reading, channels_of, observed, spread

WIDEST = 2048
"""Columns of a sum beyond which all columns of one channel (its pixels behind a Flatten) count alike."""

ROUNDS = 48
"""Rounds in which channels are ranked, at most; with more channels several go in one."""

DAMPING = 1e-3
"""Share of the mean diagonal that is added while ranking."""


@dataclass(frozen=True)
class Reader:
    """A weight that channels are multiplied with and summed.

    Attributes:
        weight: where it is stored.
        axis: of the weight, along the channels.
        roots: of the labels along that axis.
        reading: what it is multiplied with.
        columns: (channels, columns of one) where columns of a channel count alike; None where each has its own.
    """

    weight: ir.Value
    axis: int
    roots: Array
    reading: Reading
    columns: Array | None = None

    def units(self) -> Array:
        """The root that each column of the Gram matrix belongs to."""
        return self.roots if self.columns is None else self.roots[self.columns[:, 0]]

    def matrix(self) -> Array:
        """The weight as (outputs, columns of the Gram matrix), float64."""
        rows = np.moveaxis(np.asarray(constant(self.weight), np.float64), self.axis, -1).reshape(-1, self.roots.size)
        return rows if self.columns is None else self._folded(rows)

    def _folded(self, rows: Array) -> Array:
        folded = rows[:, self.columns]  # (outputs, channels, columns of one)
        return np.ascontiguousarray(np.moveaxis(folded, 1, -1)).reshape(-1, folded.shape[1])

    def stored(self, matrix: Array) -> Array:
        """The inverse of `matrix`, in the dtype and layout of the weight."""
        numbers = np.asarray(constant(self.weight))
        rows = matrix
        if self.columns is not None:
            folded = np.moveaxis(matrix.reshape(-1, self.columns.shape[1], self.columns.shape[0]), -1, 1)
            rows = np.empty((len(folded), self.roots.size))
            rows[:, self.columns] = folded
        moved = [*numbers.shape[: self.axis], *numbers.shape[self.axis + 1 :], self.roots.size]
        return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), -1, self.axis)).astype(numbers.dtype)


def readers(module: Module, labels: Labels) -> list[Reader]:
    """Every weight that sums over labelled channels, once each, as far as statistics of what it reads can be had."""
    names = observed(module)
    found: dict[tuple[int, int], Reader] = {}
    for one in labels.sums:
        axes = labels.axes.get(id(one.weight))
        labelled = None if axes is None else axes[one.weight_axis]
        if labelled is None or one.value.name not in names or not one.weight.is_initializer():
            continue
        if one.weight.name in module.masks:  # its zeros must stay zeros
            continue
        reader, key = _reader(one, labels.roots(labelled)), (id(one.weight), one.weight_axis)
        if reader is None:
            continue
        before = found.get(key)
        found[key] = reader if before is None else _joined(before, reader)
    ambiguous = [key[0] for key in found]  # a weight that is summed over along two axes is left alone
    return [one for key, one in found.items() if ambiguous.count(key[0]) == 1]


def _reader(one: Sum, roots: Array) -> Reader | None:
    if roots.size <= WIDEST:
        reading = channels_of(one.value.name or "", one.axis, roots.size)
        return Reader(one.weight, one.weight_axis, roots, reading)
    order = np.argsort(roots, kind="stable")
    units, counts = np.unique(roots, return_counts=True)
    if np.any(counts != counts[0]) or units.size > WIDEST:
        return None
    columns = order.reshape(units.size, counts[0])
    reading = _alike(channels_of(one.value.name or "", one.axis, roots.size), columns)
    return Reader(one.weight, one.weight_axis, roots, reading, columns)


def _alike(whole: Reading, columns: Array) -> Reading:
    """The columns of one channel as if they were rows of their own."""

    def rows(array: Array, wanted: int, turn: int) -> Array | None:
        wide = whole.rows(array, wanted, turn)
        if wide is None:
            return None
        flat = np.moveaxis(wide[0][:, columns], 1, -1).reshape(-1, columns.shape[0])
        return np.ascontiguousarray(flat[spread(len(flat), wanted, turn)])[None]

    return replace(whole, width=len(columns), rows=rows)


def _joined(one: Reader, other: Reader) -> Reader:
    return replace(one, reading=replace(one.reading, names=(*one.reading.names, *other.reading.names)))


# -- ranking ------------------------------------------------------------------------------------------------------


class Elimination:
    """One reader while channels go: what the next ones cost, when those that stay make up for it.

    Args:
        reader: the reader.
        moments: of what it reads.
    """

    def __init__(self, reader: Reader, moments: Moments) -> None:
        gram, matrix = moments.gram, reader.matrix()
        self._units = reader.units()
        self._inverse = np.linalg.inv(damped(gram, DAMPING)[0])
        self._squares = matrix.T @ matrix
        energy = float(np.sum(self._squares * gram[0]))
        self._scale = 1.0 / energy if energy > 0 else 0.0

    def costs(self, units: Array) -> Array:
        """What removing each unit adds to the squared error, as a share of the squared output."""
        at = np.flatnonzero(np.isin(self._units, units))
        found = np.zeros(units.size)
        if at.size == 0:
            return found
        place = np.searchsorted(units, self._units[at])
        order = np.argsort(place, kind="stable")
        present, counts = np.unique(place, return_counts=True)
        if np.all(counts == counts[0]):
            columns = at[order].reshape(present.size, counts[0])
            square = columns[:, :, None], columns[:, None, :]
            lost = np.linalg.inv(self._inverse[square]) * np.swapaxes(self._squares[square], 1, 2)
            found[present] = lost.sum(axis=(1, 2))
        else:  # each column by itself: what those of one unit could do for each other does not count
            single = np.diagonal(self._squares)[at] / np.diagonal(self._inverse)[at]
            np.add.at(found, place, single)
        return found * self._scale

    def remove(self, units: Array) -> None:
        """Let the others take over what these did."""
        at = np.flatnonzero(np.isin(self._units, units))
        if at.size == 0:
            return
        shares = np.linalg.solve(self._inverse[np.ix_(at, at)], self._inverse[at])
        self._inverse -= self._inverse[:, at] @ shares
        crossed = self._squares[:, at] @ shares
        within = shares.T @ (self._squares[np.ix_(at, at)] @ shares)
        self._squares += within - crossed - crossed.T
        left = np.ones(self._units.size, bool)
        left[at] = False
        self._units, self._inverse = self._units[left], self._inverse[np.ix_(left, left)]
        self._squares = self._squares[np.ix_(left, left)]


@dataclass(frozen=True)
class Ranking:
    """Units in the order in which they go.

    Attributes:
        units: their roots.
        losses: the share of the squared outputs of all readers, summed, that is lost when the unit has gone, with all
            before it.
    """

    units: Array
    losses: Array


def ranked(units: Array, eliminations: Sequence[Elimination], count: int) -> Ranking:
    """The first `count` units to go, each time those that cost least."""
    left, total = units, 0.0
    gone: list[Array] = []
    losses: list[Array] = []
    step = max(1, -(-count // ROUNDS))
    while (missing := count - sum(map(len, gone))) > 0:
        costs = np.sum([one.costs(left) for one in eliminations], axis=0)
        weakest = np.argsort(costs, kind="stable")[: min(step, missing)]
        gone.append(left[weakest])
        losses.append(total + np.cumsum(np.maximum(costs[weakest], 0)))
        total = float(losses[-1][-1])
        for one in eliminations:
            one.remove(gone[-1])
        left = np.delete(left, weakest)
    empty = np.zeros(0)
    return Ranking(np.concatenate([*gone, empty.astype(np.int64)]), np.concatenate([*losses, empty]))


# -- correction -----------------------------------------------------------------------------------------------------


def made_up(reader: Reader, gone: Array, moments: Moments) -> tuple[Array, float] | None:
    """The weight with what the channels `gone` did taken over by those that stay, as far as these predict them.

    Args:
        reader: whose weight.
        gone: bool, for each column of the Gram matrix.
        moments: of what it reads.

    Returns:
        The weight as stored, and the share of the squared error that is left on data not fitted to; None where other
        data do not gain from it.
    """
    matrix = reader.matrix()
    lost = -matrix[:, gone]
    halves = [moments.half(which)[0] for which in (0, 1)]
    plain = sum(_energy(lost, half[np.ix_(gone, gone)]) for half in halves)
    if plain <= 0 or gone.all():
        return None
    errors = []
    for share in DAMPINGS:
        changes = [_taken_over(matrix, gone, half, share) for half in halves]
        errors.append(sum(_energy(changes[i], halves[1 - i]) for i in (0, 1)))
    best = int(np.argmin(errors))
    if errors[best] >= plain:
        return None
    return reader.stored(matrix + _taken_over(matrix, gone, moments.gram[0], DAMPINGS[best])), errors[best] / plain


def _taken_over(matrix: Array, gone: Array, gram: Array, share: float) -> Array:
    """The change of the whole matrix: its columns `gone` become zero, the others take over."""
    change = np.where(gone, -matrix, 0.0)
    full = damped(gram[None], share)[0]
    solved = np.linalg.solve(full[np.ix_(~gone, ~gone)], full[np.ix_(~gone, gone)] @ matrix[:, gone].T)
    change[:, ~gone] = solved.T
    return change


def _energy(matrix: Array, gram: Array) -> float:
    return float(np.sum((matrix @ gram) * matrix))
