"""What the data say about prunable weights: scores that know the inputs, and the correction of what stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array
from joulec.passes._correction import corrected, optimal_brain, wanda
from joulec.passes._moments import Moments, Reading, collect, observed
from joulec.passes._products import Product, product_of
from joulec.passes._prunable import Weight, apply_mask
from joulec.passes.base import Context

Score = Literal["magnitude", "wanda", "optimal-brain"]

SCORES: Mapping[str, Callable[[Array, Array], Array]] = {"wanda": wanda, "optimal-brain": optimal_brain}
"""Scores that need the data: of a matrix of weights and the Gram matrix of what it multiplies."""

NO_DATA = "no calibration data (--data)"


def has_data(context: Context) -> bool:
    """Whether there is anything to take statistics from."""
    return context.feeds is not None and context.feeds.kind != "synthetic" and context.runner is not None


def magnitudes(weight: Weight) -> Array:
    """float32 magnitudes, as stored."""
    return np.abs(weight.numbers.astype(np.float32, copy=False))


def prune(statistics: Statistics, masks: Sequence[Array], correct: bool) -> list[str]:
    """Put masks (as stored) on weights and, where there are data, correct what stays; returns what there is to say."""
    weights, rewriter = statistics.weights, statistics.rewriter
    earlier = [rewriter.module.masks.get(weight.name) for weight in weights]
    whole = [one if old is None else one & old for one, old in zip(masks, earlier, strict=True)]
    changed = {index: one for index, one in enumerate(whole) if not _says_nothing(one, earlier[index])}
    corrected = dict(statistics.corrected(changed)) if correct and has_data(statistics.context) else {}
    for index, mask in changed.items():
        apply_mask(weights[index], mask, rewriter, corrected.get(index))
    if changed and correct and not has_data(statistics.context):
        return [f"weights that stay are not corrected: {NO_DATA}"]
    return list(statistics.notes())


def _says_nothing(mask: Array, earlier: Array | None) -> bool:
    return bool(mask.all()) if earlier is None else np.array_equal(mask, earlier)


@dataclass
class Statistics:
    """Weights beside what they are multiplied with.

    Attributes:
        module, context: the model, and what runs it on what.
        weights: the weights in question.
        rewriter: takes down why a weight has no statistics.
        left: of each weight that was corrected, the share of the squared error that was left.
    """

    module: Module
    context: Context
    weights: Sequence[Weight]
    rewriter: Rewriter
    left: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = observed(self.module)
        found = [_product(weight, names) for weight in self.weights]
        self._products = {index: one for index, one in enumerate(found) if not isinstance(one, str)}
        self._unknown = {index: one for index, one in enumerate(found) if isinstance(one, str)}

    def scores(self, kind: Score) -> list[Array]:
        """The score of every number of every weight, as stored.

        Beside `magnitude` they are shares of the squared output of the weight's layer; a weight without statistics has
        those that inputs without any structure would give it.
        """
        if kind == "magnitude":
            return [magnitudes(weight) for weight in self.weights]
        scores = [_plain(weight) for weight in self.weights]
        for index, moments in self._collected(self._products):
            weight, (product, _) = self.weights[index], self._products[index]
            matrix = product.matrix(weight.seen()).astype(np.float64)
            scores[index] = weight.unseen(product.seen(SCORES[kind](matrix, moments.gram)))
        return scores

    def corrected(self, masks: Mapping[int, Array]) -> Iterator[tuple[int, Array]]:
        """The numbers of weights under their masks (both as stored), by position; those without statistics are left
        out."""
        for index in sorted(self._unknown.keys() & masks.keys()):
            weight = self.weights[index]
            self.rewriter.refuse("correct", weight.node, f"'{weight.name}' as it is: {self._unknown[index]}")
        wanted = {index: one for index, one in self._products.items() if index in masks and not masks[index].all()}
        for index, moments in self._collected(wanted):
            weight, (product, _) = self.weights[index], wanted[index]
            matrix = product.matrix(weight.seen()).astype(np.float64)
            found, left = corrected(matrix, product.matrix(weight.seen(masks[index])), moments)
            self.left.append(left)
            yield index, weight.unseen(product.seen(found))

    def _collected(self, products: Mapping[int, tuple[Product, Reading]]) -> Iterator[tuple[int, Moments]]:
        order = list(products)
        for position, moments in collect(self.module, self.context, [products[index][1] for index in order]):
            yield order[position], moments

    def notes(self) -> Iterator[str]:
        """What the correction did."""
        if self.left:
            yield (
                f"{len(self.left)} weights corrected by least squares on the data: "
                f"{100 * float(np.mean(self.left)):.0f} % of the squared error of their products is left"
            )


def _plain(weight: Weight) -> Array:
    squares = np.square(weight.numbers.astype(np.float64))
    return squares / max(float(squares.sum()), np.finfo(np.float64).tiny)


def _product(weight: Weight, names: set[str | None]) -> tuple[Product, Reading] | str:
    """How the operators that read a weight multiply with it, all of them alike; or why that is not known."""
    shape = weight.seen().shape
    found = [product_of(node, slot, shape) for node, slot in weight.readers]
    for one in found:
        if isinstance(one, str):
            return one
    products = [one for one in found if isinstance(one, Product)]
    first, readings = products[0], [one.reading() for one in products]
    if any((one.flipped, one.groups, one.axis) != (first.flipped, first.groups, first.axis) for one in products):
        return "operators that sum along different axes share it"
    read = tuple(dict.fromkeys(one.name for one in products))
    if not names.issuperset(read):
        return "what it multiplies is computed inside a loop or function, or not at all"
    reading = replace(readings[0], names=read)
    return f"sums of {reading.width} numbers are too wide" if reading.too_wide else (first, reading)
