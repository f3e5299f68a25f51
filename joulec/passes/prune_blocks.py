"""prune-blocks: leave out whole residual blocks, so that the model has fewer layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.shapes import infer_shapes
from joulec.ir.values import Array
from joulec.passes._moments import observed
from joulec.passes._observe import stream
from joulec.passes._patterns import first_match
from joulec.passes._refit import refit, said
from joulec.passes._residual import Residual, residuals
from joulec.passes._statistics import NO_DATA, has_data
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.eliminate_dead_code import EliminateDeadCode

SAMPLES = 64
"""Feeds that blocks are judged on, at most."""


@dataclass(frozen=True)
class PruneBlocks(Pass):
    """Leave out whole residual blocks: of y = x + f(x) only x is left, and the model has fewer layers.

    A block is a branch of an addition beside a shortcut of the same shape, which may hold one layer of its own. With a
    count those go whose sums are most nearly their shortcuts, each channel scaled and shifted, on the calibration data;
    without one joulec chooses how many go, as far as `--max-drop` allows. With calibration data the layers behind are
    then fitted to what they put out in the whole model, one after another, by least squares. No mask says that a block
    has gone, so `joulec finetune` does not know of it.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    prunes: ClassVar[bool] = True
    indivisible: ClassVar[bool] = True

    count: int | None = option(None, "how many blocks to leave out; those go that change the least")
    blocks: tuple[str, ...] = option(
        (), 'the blocks to leave out, "NAME;NAME"; NAME is the addition at the end of one, * and ? match any name'
    )
    correct: bool = option(True, "fit the layers behind by least squares on the data, where there are any")

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be at least 1, not {self.count}")
        if self.count is not None and self.blocks:
            raise ValueError("give count or blocks, not both")

    @property
    def undecided(self) -> bool:
        """Whether it leaves it to joulec what to remove."""
        return self.count is None and not self.blocks

    def run(self, module: Module, context: Context) -> PassResult:
        """Find the blocks, choose, leave them out, and fit what is behind."""
        if self.undecided:
            return PassResult.nothing("no count ordered; with --max-drop and --data joulec chooses it")
        rewriter = Rewriter(module, self.pass_name())
        found = survey(module, rewriter)
        if self.count is not None and not has_data(context):
            return PassResult.nothing(f"which blocks change the least is not known: {NO_DATA}; or name some: blocks=")
        chosen = list(self._chosen(module, context, found))
        notes = [_counted(chosen, found), *self._unknown(found)]
        notes += self._left_out(module, context, chosen, rewriter) if chosen else []
        return PassResult.of(rewriter, notes)

    def _chosen(self, module: Module, context: Context, found: Sequence[Residual]) -> Iterator[Residual]:
        if self.count is None:
            yield from (one for one in found if first_match(one.add, self.blocks) is not None)
            return
        losses = changes(module, context, found)
        order = sorted(range(len(found)), key=lambda at: losses[at])[: self.count]
        yield from (found[at] for at in sorted(order))

    def _unknown(self, found: Sequence[Residual]) -> Iterator[str]:
        for pattern in self.blocks:
            if not any(first_match(one.add, (pattern,)) for one in found):
                yield f"no residual block ends in an addition called '{pattern}'"

    def _left_out(
        self, module: Module, context: Context, chosen: Sequence[Residual], rewriter: Rewriter
    ) -> list[str]:  # fmt: skip
        """Leave out what was chosen, in graph order; what an outer block holds goes with it."""
        whole, before = module.clone(), _in_front_of(module, chosen[0].nodes[0])
        left: dict[int, ir.Value] = {}  # of a sum that has gone: a shortcut may come from another block's
        for one in chosen:
            left[id(one.joined)] = left.get(id(one.shortcut), one.shortcut)
            with rewriter.rewriting("leave-out", one.add):
                rewriter.replace(one.joined, left[id(one.joined)])
        rewriter.rewrites += EliminateDeadCode().run(module, context).rewrites
        if not self.correct:
            return []
        if not has_data(context):
            return [f"what follows is not corrected: {NO_DATA}"]
        return said(refit(whole, module, context, {}, rewriter, before))


def survey(module: Module, rewriter: Rewriter) -> list[Residual]:
    """The blocks that can be left out, in graph order; why other sums cannot goes to `rewriter`."""
    infer_shapes(module)
    found = []
    for one in residuals(module):
        if not isinstance(one, Residual):
            rewriter.refuse("leave-out", *one)
        elif not rewriter.can_replace(one.joined, one.shortcut):
            rewriter.refuse("leave-out", one.add, "the sum is an output of the model, and the shortcut cannot be one")
        else:
            found.append(one)
    return found


def _counted(chosen: Sequence[Residual], found: Sequence[Residual]) -> str:
    if not found:
        return "there is no residual block that can be left out"
    names = ", ".join(f"'{one.name}'" for one in chosen)
    return f"{len(chosen)} of {len(found)} residual blocks left out{': ' if names else ''}{names}"


def _in_front_of(module: Module, first: ir.Node) -> frozenset[str]:
    """Names of what is computed before a node."""
    nodes = itertools.takewhile(lambda node: node is not first, module.graph)
    return frozenset(value.name or "" for node in nodes for value in node.outputs)


# -- what a block changes -------------------------------------------------------------------------------------------


def changes(module: Module, context: Context, found: Sequence[Residual]) -> list[float]:
    """What is lost of each sum with its branch, from 0 to 1; 1 where that cannot be seen.

    It is the share of the variance of the sum's channels that its shortcut, each channel scaled and shifted as fits
    best, does not explain: layers that follow can take over a scale and a shift, and are fitted for that.

    Raises:
        InputError: a feed does not fit the model, or the model fails on it.
    """
    names, seen = observed(module), [_Change(one.channel_axis) for one in found]
    pairs = [(one.shortcut.name or "", one.joined.name or "") for one in found]
    wanted = [name for name in dict.fromkeys(itertools.chain(*pairs)) if name in names]
    if context.feeds is None or context.runner is None or not wanted:
        return [1.0] * len(found)
    count = min(context.feeds.count or SAMPLES, SAMPLES)
    feeds = itertools.islice(context.feeds, SAMPLES)
    for turn, arrays in enumerate(stream(module, context.runner, feeds, wanted)):
        context.progress("asking what each block changes", min(1.0, (turn + 1) / count))
        for change, (shortcut, joined) in zip(seen, pairs, strict=True):
            if shortcut in arrays and joined in arrays:
                change.see(arrays[shortcut][0], arrays[joined][0])
    return [change.lost for change in seen]


class _Change:
    """Sums over what was seen of a shortcut s and the sum y: n, s, y, s^2, y^2, s y, of each channel."""

    def __init__(self, axis: int) -> None:
        self._axis = axis
        self._sums: Array | None = None

    def see(self, shortcut: Array, joined: Array) -> None:
        """See two arrays of one shape."""
        if shortcut.shape != joined.shape or not joined.size:
            return
        pair = (np.moveaxis(one, self._axis, -1).astype(np.float64) for one in (shortcut, joined))
        s, y = (one.reshape(-1, one.shape[-1]) for one in pair)
        sums = np.stack([np.full(s.shape[1], len(s)), *(one.sum(axis=0) for one in (s, y, s * s, y * y, s * y))])
        if np.all(np.isfinite(sums)):
            self._sums = sums if self._sums is None else self._sums + sums

    @property
    def lost(self) -> float:
        """The share of the variance that is not explained."""
        if self._sums is None:
            return 1.0
        n, s, y, ss, yy, sy = self._sums
        varied, total, common = ss - s * s / n, np.maximum(yy - y * y / n, 0.0), sy - s * y / n
        explained = np.divide(common**2, varied, out=np.zeros_like(common), where=varied > 1e-9 * ss)
        whole = float(total.sum())
        return float(np.clip(1 - explained.sum() / whole, 0, 1)) if whole > 0 else 0.0
