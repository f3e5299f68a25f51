"""prune-channels: remove whole channels, hidden units and attention heads, so that the model is smaller everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from joulec.errors import CheckError
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import Array, constant
from joulec.passes._channels import axes_of, cut, labelled, unshare, without
from joulec.passes._labels import Group, Labels
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.equivalence import Equivalence
from joulec.passes.fold_constants import FoldConstants


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the weakest channels of every group of tied channels: fewer weights, operations and bytes everywhere.

    Channels that additions, concatenations, splits, depthwise and grouped convolutions, normalizations or shared
    weights tie together go together; hidden units of MLPs and attention heads are channels too. A group that reaches
    an input or output of the model, or an operator that nobody knows how to cut, stays, with the reason. Widths are
    rounded to what kernels like.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    prunes: ClassVar[bool] = True
    indivisible: ClassVar[bool] = True

    ratio: float | None = option(None, "share of channels to remove from every group, 0 to 1")
    multiple: int = option(16, "round widths to multiples of this, or of its halves where that is too coarse")
    dead: bool = option(False, "remove only channels whose weights are all zero, which changes nothing")

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0.0 <= self.ratio < 1.0:
            raise ValueError(f"ratio must lie in [0, 1), not {self.ratio:g}")
        if not 1 <= self.multiple <= 1024:
            raise ValueError(f"multiple must lie between 1 and 1024, not {self.multiple}")
        if self.dead and self.ratio is not None:
            raise ValueError("give ratio or dead, not both")

    def run(self, module: Module, context: Context) -> PassResult:
        """Fold what computes on weights alone, find the groups, choose, and cut."""
        if self.ratio is None and not self.dead:
            return PassResult.nothing("no ratio ordered; with --max-drop and --data joulec chooses it")
        folded = FoldConstants().run(module, context)
        rewriter = Rewriter(module, self.pass_name())
        unshare(module, rewriter)
        infer_shapes(module)
        labels = labelled(module)
        groups = labels.groups()
        for group in groups:
            if group.frozen is not None:
                rewriter.refuse("remove-channels", group.nodes[0], group.frozen)
        free = [group for group in groups if group.frozen is None]
        gone = list(self._chosen(free, labels))
        said = self._cut(module, labels, np.concatenate(gone), rewriter, context) if gone else []
        notes = [*self._notes(free, gone, rewriter), *said]
        return PassResult(
            (*folded.rewrites, *rewriter.rewrites) if rewriter.rewrites else folded.rewrites,
            tuple(rewriter.refusals.values()), tuple(notes),
        )  # fmt: skip

    def _cut(self, module: Module, labels: Labels, gone: Array, rewriter: Rewriter, context: Context) -> list[str]:
        """Cut, and show that what is left computes what the whole computes when nothing reads what went.

        Raises:
            CheckError: it does not; the pass is rolled back.
        """
        reference = without(module, labels, gone)
        cut(module, labels, gone, rewriter)
        if context.runner is None or not context.probes:
            return ["not compared with the whole: no feeds to run the model on"]
        if reference is None:
            return ["not compared with the whole: some channels are read by more than stored weights"]
        equivalence = Equivalence(context.runner, context.probes)
        if (problem := equivalence.refer_to(reference)) is not None:
            return [f"not compared with the whole: {problem}"]
        found = equivalence.compare(module)
        if found is not None and not found.ok:
            raise CheckError(
                f"output '{found.output}' of the cut model deviates by {found.value:.2g} from the whole one's "
                "without the same channels"
            )
        return [] if found is None else [f"equal to the whole without these channels, up to {found.value:.1g}"]

    def _chosen(self, groups: list[Group], labels: Labels) -> Iterator[Array]:
        """The roots to remove, group by group."""
        scores, unread = strengths(labels), idle(labels)
        for group in groups:
            if self.dead:
                found = group.units[unread[group.units]]
                count = min(found.size, group.units.size - 1)
            else:
                found = group.units[np.argsort(scores[group.units], kind="stable")]
                count = min(self._count(group), group.units.size - 1)
            if count > 0:
                yield found[:count]

    def _count(self, group: Group) -> int:
        """How many units go, so that what stays is a width that kernels like."""
        total, ratio = group.units.size, self.ratio or 0.0
        wanted = total * (1 - ratio)
        if group.width != total:
            return total - max(1, round(wanted))
        return total - rounded(wanted, total, self.multiple)

    def _notes(self, groups: list[Group], gone: list[Array], rewriter: Rewriter) -> Iterator[str]:
        total, lost = sum(group.units.size for group in groups), sum(one.size for one in gone)
        if not groups:
            yield "no group of channels can be cut here; the refusals say why"
        else:
            yield f"{lost} of {total} channels removed from {len(gone)} of {len(groups)} groups"


def rounded(wanted: float, total: int, multiple: int) -> int:
    """The width nearest to `wanted` that is a multiple of `multiple`, or of a half of it and so on, no farther than a
    sixteenth of `total` away; never `total` itself where less is wanted, and never 0."""
    if wanted >= total:
        return total
    step = multiple
    while step > 1:
        low = int(wanted // step) * step
        near = sorted((abs(width - wanted), width) for width in (low, low + step) if 0 < width < total)
        if near and near[0][0] <= total / 16:
            return near[0][1]
        step //= 2
    return min(max(1, round(wanted)), total - 1) if total > 1 else 1


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
