"""prune-channels: remove whole channels, hidden units and attention heads, so that the model is smaller everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from joulec.errors import CheckError
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array
from joulec.passes._channel_choice import corrections, idle, rankings
from joulec.passes._channel_survey import prepared
from joulec.passes._channels import cut, kept_by, without
from joulec.passes._choice import overrides
from joulec.passes._labels import Group, Labels
from joulec.passes._prunable import matching
from joulec.passes._readers import Reader, readers
from joulec.passes._refit import refit, said
from joulec.passes._statistics import NO_DATA, has_data
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.equivalence import Equivalence
from joulec.passes.target import Target


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove the weakest channels of every group of tied channels: fewer weights, operations and bytes everywhere.

    Channels that additions, concatenations, splits, depthwise and grouped convolutions, normalizations or shared
    weights tie together go together; hidden units of MLPs and attention heads are channels too. A group that reaches
    an input or output of the model, or an operator that nobody knows how to cut, stays, with the reason. Widths are
    rounded to what the target's kernels take at once: 16 channels on CPUs with AVX-512 and 8 on others, 8 on tensor
    cores in 16 bits and 32 in INT8. Without a ratio joulec chooses what goes of each group, as far as `--max-drop`
    allows. With calibration data those channels go that the others can stand in for best, and whatever reads them is
    corrected by least squares.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    prunes: ClassVar[bool] = True
    indivisible: ClassVar[bool] = True

    ratio: float | None = option(None, "share of channels to remove from every group, 0 to 1")
    groups: tuple[str, ...] = option(
        (), 'shares for single groups, "NAME=SHARE;..."; NAME is an operator that makes them'
    )
    multiple: int | None = option(
        None, "round widths to multiples of this, or of its halves where that is too coarse; none: the target's block"
    )
    dead: bool = option(False, "remove only channels whose weights are all zero, which changes nothing")
    correct: bool = option(True, "correct what reads the channels by least squares on the data, where there are any")

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0.0 <= self.ratio < 1.0:
            raise ValueError(f"ratio must lie in [0, 1), not {self.ratio:g}")
        if self.multiple is not None and not 1 <= self.multiple <= 1024:
            raise ValueError(f"multiple must lie between 1 and 1024, not {self.multiple}")
        if self.dead and (self.ratio is not None or self.groups):
            raise ValueError("give ratio or dead, not both")
        if any(share == 1 for _, share in overrides(self.groups)):
            raise ValueError("groups: a share must lie below 1, for one channel at least stays")

    @property
    def undecided(self) -> bool:
        """Whether it leaves it to joulec what to remove."""
        return self.ratio is None and not self.groups and not self.dead

    def run(self, module: Module, context: Context) -> PassResult:
        """Fold what computes on weights alone, find the groups, choose, and cut."""
        if self.undecided:
            return PassResult.nothing("no ratio ordered; with --max-drop and --data joulec chooses it")
        rewriter, folded, labels = prepared(module, context, self.pass_name())
        groups = labels.groups()
        for group in groups:
            if group.frozen is not None:
                rewriter.refuse("remove-channels", group.nodes[0], group.frozen)
        free = [group for group in groups if group.frozen is None]
        found = readers(module, labels) if self.correct and has_data(context) and not self.dead else []
        gone = [one for one in self._chosen(module, context, free, labels, found) if one.size]
        said = self._cut(module, labels, np.concatenate(gone), rewriter, context, found) if gone else []
        notes = [*self._notes(free, gone), *said]
        return PassResult(
            (*folded, *rewriter.rewrites) if rewriter.rewrites else folded,
            tuple(rewriter.refusals.values()),
            tuple(notes),
        )

    def _cut(
        self, module: Module, labels: Labels, gone: Array, rewriter: Rewriter, context: Context,
        found: Sequence[Reader],
    ) -> list[str]:  # fmt: skip
        """Cut, and show that what is left computes what the whole computes when nothing reads what went.

        Raises:
            CheckError: it does not; the pass is rolled back.
        """
        whole = module.clone()
        notes = [*self._correct(module, gone, rewriter, context, found), *_masked(module, labels, gone, rewriter)]
        reference = without(module, labels, gone)
        cut(module, labels, gone, rewriter)
        notes += self._compared(module, reference, context)
        if found:
            kept = kept_by(labels, gone)
            outputs = {node.outputs[0].name or "": kept(made) for made, node in labels.makers}
            notes += said(refit(whole, module, context, outputs, rewriter))
        return notes

    def _correct(
        self, module: Module, gone: Array, rewriter: Rewriter, context: Context, found: Sequence[Reader]
    ) -> list[str]:
        """Let the channels that stay take over what those that go did."""
        left: list[float] = []
        for reader, numbers, share in list(corrections(module, context, gone, found)):
            with rewriter.rewriting("make-up", next(iter(reader.weight.uses())).node):
                rewriter.set_tensor(reader.weight, numbers)
            left.append(share)
        if not found:
            return [f"what reads them is not corrected: {NO_DATA}"] if self.correct and not self.dead else []
        mean = 100 * float(np.mean(left)) if left else 100.0
        return [
            f"{len(left)} weights corrected by least squares on the data: {mean:.0f} % of the squared error is left"
        ]

    def _compared(self, module: Module, reference: Module | None, context: Context) -> list[str]:
        """What comparing the cut model with the whole one says.

        Raises:
            CheckError: they differ.
        """
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

    def _chosen(
        self, module: Module, context: Context, groups: list[Group], labels: Labels, found: Sequence[Reader]
    ) -> list[Array]:
        """The roots to remove, group by group."""
        if self.dead:
            unread = idle(labels)
            dead = [group.units[unread[group.units]] for group in groups]
            return [one[: group.units.size - 1] for one, group in zip(dead, groups, strict=True)]
        counts = [min(self._count(group, context.target), group.units.size - 1) for group in groups]
        return [one.units for one in rankings(module, context, labels, groups, counts, found)]

    def _count(self, group: Group, target: Target) -> int:
        """How many units go, so that what stays is a width that kernels like."""
        total, ratio = group.units.size, self.share_of(group)
        wanted = total * (1 - ratio)
        if group.width != total:
            return total - max(1, round(wanted))
        return total - rounded(wanted, total, self.multiple or target.channel_block)

    def share_of(self, group: Group) -> float:
        """The share of a group that shall go."""
        own = overrides(self.groups)
        shares = (matching(node.name or "", own) for node in group.nodes)
        return next((share for share in shares if share is not None), self.ratio or 0.0)

    def _notes(self, groups: list[Group], gone: list[Array]) -> Iterator[str]:
        total, lost = sum(group.units.size for group in groups), sum(one.size for one in gone)
        if not groups:
            yield "no group of channels can be cut here; the refusals say why"
        else:
            yield f"{lost} of {total} channels removed from {len(gone)} of {len(groups)} groups"


def _masked(module: Module, labels: Labels, gone: Array, rewriter: Rewriter) -> list[str]:
    """Say which weights are not corrected because masks hold zeros in them."""
    held: dict[str, ir.Node] = {}
    for one in labels.sums:
        read, name = labels.axes[id(one.weight)][one.weight_axis], one.weight.name or ""
        if name in module.masks and read is not None and np.isin(labels.roots(read), gone).any():
            held.setdefault(name, one.node)
    for name, node in held.items():
        rewriter.refuse("make-up", node, f"'{name}' is under a mask, whose zeros must stay")
    return [f"{len(held)} weights under masks read removed channels and are not corrected"] if held else []


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
