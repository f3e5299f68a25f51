"""Which channels of a group go first: by what the data say that removing them costs, or by the weights around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from joulec.ir.module import Module
from joulec.ir.values import Array, constant
from joulec.passes._channels import axes_of
from joulec.passes._labels import Group, Labels
from joulec.passes._moments import Moments, collect
from joulec.passes._readers import Elimination, Ranking, Reader, made_up, ranked
from joulec.passes.base import Context


def rankings(
    module: Module, context: Context, labels: Labels, groups: Sequence[Group], counts: Sequence[int],
    found: Sequence[Reader],
) -> list[Ranking]:  # fmt: skip
    """The first `counts` units to go of each group, in order.

    Where the readers of a group have statistics, by what removing a unit costs them when those that stay make up for
    it; elsewhere by the strength of the weights around it.
    """
    scores = strengths(labels)
    chosen = [_by_strength(group, count, scores) for group, count in zip(groups, counts, strict=True)]
    wanted = {index: _readers_of(group, found) for index, group in enumerate(groups) if counts[index] > 0}
    order = sorted({reader for readers in wanted.values() for reader in readers})
    waiting: dict[int, Moments] = {}
    for position, moments in collect(module, context, [found[reader].reading for reader in order]):
        waiting[order[position]] = moments
        for index in [index for index, readers in wanted.items() if readers and waiting.keys() >= readers]:
            context.progress("ranking channels", 1 - len(wanted) / len(groups))
            eliminations = [Elimination(found[one], waiting[one]) for one in sorted(wanted.pop(index))]
            chosen[index] = ranked(groups[index].units, eliminations, counts[index])
        needed = {reader for readers in wanted.values() for reader in readers}
        waiting = {reader: one for reader, one in waiting.items() if reader in needed}
    return chosen


def _readers_of(group: Group, found: Sequence[Reader]) -> set[int]:
    """Positions of the readers of a group."""
    return {index for index, one in enumerate(found) if np.isin(one.roots, group.units).any()}


def _by_strength(group: Group, count: int, scores: Array) -> Ranking:
    strength = scores[group.units]
    order = np.argsort(strength, kind="stable")
    total = max(float(strength.sum()), np.finfo(np.float64).tiny)
    return Ranking(group.units[order][:count], np.cumsum(strength[order])[:count] / total)


def corrections(
    module: Module, context: Context, gone: Array, found: Sequence[Reader]
) -> Iterator[tuple[Reader, Array, float]]:
    """Weights that make up for the roots `gone`, as stored, and the share of the squared error that is left."""
    hit = [one for one in found if np.isin(one.roots, gone).any()]
    for position, moments in collect(module, context, [one.reading for one in hit]):
        made = made_up(hit[position], np.isin(hit[position].units(), gone), moments)
        if made is not None:
            yield hit[position], *made


def strengths(labels: Labels) -> Array:
    """A number for each root: how much of the weights around it there is.

    For each weight of two or more axes the squares along a channel are summed and divided by their mean, so that
    layers of different scale count alike; a channel's strength is what makes it times what reads it.
    """
    size = 1 + max((int(one.max()) for _, axes in axes_of(labels) for one in axes if one is not None), default=0)
    made, read = np.zeros(size), np.zeros(size)
    outputs = {id(labels_) for labels_, _ in labels.makers}
    for value, axes in axes_of(labels):
        numbers = constant(value)
        if numbers is None or numbers.ndim < 2 or sum(dim > 1 for dim in numbers.shape) < 2:
            continue
        squares = np.square(numbers.astype(np.float32, copy=False))
        for axis, one in enumerate(axes):
            if one is None:
                continue
            energy = squares.sum(tuple(at for at in range(squares.ndim) if at != axis), dtype=np.float64)
            mean = float(energy.mean())
            if mean > 0 and np.isfinite(mean):
                np.add.at(made if id(one) in outputs else read, labels.roots(one), energy / mean)
    return made * read


def idle(labels: Labels) -> Array:
    """For each root whether every weight that reads its channels is zero there, so that nothing changes without it."""
    size = 1 + max((int(one.max()) for _, axes in axes_of(labels) for one in axes if one is not None), default=0)
    found = np.ones(size, bool)
    for escaped in labels.escaped:
        found[labels.roots(escaped)] = False
    for value, axis in labels.reads:
        one, weight = labels.axes[id(value)][axis], constant(value)
        if one is not None and weight is not None:
            read = np.any(weight != 0, axis=tuple(at for at in range(weight.ndim) if at != axis))
            found[labels.roots(one[read])] = False
    return found
