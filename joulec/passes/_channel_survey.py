"""What removing channels would cost and save, group by group: what a search for widths goes by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewrite, Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import Array
from joulec.passes._channel_choice import rankings
from joulec.passes._channels import labelled, unshare
from joulec.passes._labels import Group, Labels
from joulec.passes._patterns import literal
from joulec.passes._readers import readers
from joulec.passes.base import Context
from joulec.passes.fold_constants import FoldConstants


@dataclass(frozen=True)
class Axis:
    """One axis of what a node computes or sums over.

    Attributes:
        fixed: share of it that no group holds.
        groups: share of it that each group holds, by the group's position.
    """

    fixed: float
    groups: Mapping[int, float]


@dataclass(frozen=True)
class Survey:
    """Groups of channels that may go.

    Attributes:
        names: pattern that names an operator of each group.
        units: how many channels each has to choose among.
        losses: of each, what is lost when 1, 2, ... channels have gone: shares of the squared outputs of their readers.
        work: node name -> the axes that its work is the product of.
    """

    names: tuple[str, ...]
    units: tuple[int, ...]
    losses: tuple[Array, ...]
    work: Mapping[str, tuple[Axis, ...]]

    def left(self, node: str, kept: Sequence[float]) -> float:
        """The share of a node's work that is left where these shares of the groups are."""
        axes = self.work.get(node, ())
        return float(
            np.prod([axis.fixed + sum(share * kept[at] for at, share in axis.groups.items()) for axis in axes])
        )


def prepared(module: Module, context: Context, name: str) -> tuple[Rewriter, tuple[Rewrite, ...], Labels]:
    """`module` ready to be cut: constants folded, vectors unshared, shapes and labels known.

    Returns:
        A rewriter for the pass called `name`, what folding rewrote, and the labels.
    """
    folded = FoldConstants().run(module, context)
    rewriter = Rewriter(module, name)  # behind folding: it must know the names that folding gave
    unshare(module, rewriter)
    infer_shapes(module)
    return rewriter, folded.rewrites, labelled(module)


def survey(module: Module, context: Context) -> Survey:
    """Look at every group that can be cut; `module` stays as it is.

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    copy = module.clone()
    _, _, labels = prepared(copy, context, "survey")
    free = [group for group in labels.groups() if group.frozen is None and group.units.size > 1]
    counts = [group.units.size - 1 for group in free]
    found = rankings(copy, context, labels, free, counts, readers(copy, labels))
    names = tuple(literal(group.nodes[0].name or "") for group in free)
    sizes = tuple(group.units.size for group in free)
    return Survey(names, sizes, tuple(one.losses for one in found), _work(copy, labels, free))


def _work(module: Module, labels: Labels, groups: Sequence[Group]) -> dict[str, tuple[Axis, ...]]:
    """What each node's work is the product of: its output's labelled axes, and the axis that it sums over."""
    of_root = {int(root): index for index, group in enumerate(groups) for root in group.units}
    summed = {id(one.node): labels.axes[id(one.weight)][one.weight_axis] for one in labels.sums}
    found = {}
    for node in module.graph:
        made = [one for one in labels.axes.get(id(node.outputs[0]), []) if one is not None] if node.outputs else []
        inner = summed.get(id(node))
        every = [*made, *([] if inner is None else [inner])]
        if every:
            found[node.name or ""] = tuple(_axis(labels.roots(one), of_root) for one in every)
    return found


def _axis(roots: Array, of_root: Mapping[int, int]) -> Axis:
    shares: dict[int, float] = {}
    for root, count in zip(*np.unique(roots, return_counts=True), strict=True):
        if int(root) in of_root:
            at = of_root[int(root)]
            shares[at] = shares.get(at, 0.0) + float(count) / roots.size
    return Axis(1.0 - sum(shares.values()), shares)
