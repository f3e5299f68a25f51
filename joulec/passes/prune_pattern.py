"""prune-pattern: zeros in a pattern that kernels can skip, with the mask as its proof."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute
from joulec.passes._choice import has_n_of_m, keep_blocks, keep_n_of_m
from joulec.passes._prunable import Weight, reduction_axis, weights
from joulec.passes._statistics import NO_DATA, Statistics, has_data, prune
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.target import Target

PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

_BLOCK = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class PrunePattern(Pass):
    """Zero weights in a pattern: n of every m along the reduction (2:4 is what sparse tensor cores take), or blocks.

    In `n:m` the n largest of every m consecutive weights stay, along input channels for Conv (at each tap) and along
    the inner dimension for Gemm and MatMul. With `block=4x4,sparsity=0.5` half of the blocks of 4 outputs x 4 inputs
    go, in each tensor. After pruning each mask is checked to have the pattern.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    prunes: ClassVar[bool] = True

    n: int = option(2, "weights kept of every m")
    m: int = option(4, "consecutive weights along the reduction")
    block: str | None = option(None, "OUTPUTSxINPUTS, such as 4x4 or 1x8: prune whole blocks instead of n:m")
    sparsity: float | None = option(None, "share of blocks to zero; 0.5 if left out")
    score: Literal["magnitude", "wanda", "optimal-brain"] = option(
        "magnitude", "what weights are ranked by; the others need data"
    )
    correct: bool = option(True, "correct the weights that stay by least squares on the data, where there are any")

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m <= 1024:
            raise ValueError(f"n and m must hold 1 <= n < m <= 1024, not {self.n} and {self.m}")
        if self.block is not None and _BLOCK.fullmatch(self.block) is None:
            raise ValueError(f"block must be like 4x4, not '{self.block}'")
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity must lie between 0 and 1, not {self.sparsity:g}")
        if self.sparsity is not None and self.block is None:
            raise ValueError("sparsity belongs to block; n and m say the share themselves")

    def run(self, module: Module, context: Context) -> PassResult:
        """Prune every Conv, ConvTranspose, Gemm and MatMul weight that has a reduction of more than one element."""
        if self.score != "magnitude" and not has_data(context):
            return PassResult.nothing(f"score={self.score} weighs weights by their inputs, and there is {NO_DATA}")
        rewriter = Rewriter(module, self.pass_name())
        found = [one for one in weights(module, rewriter, PRODUCTS) if self._fits(one, rewriter)]
        statistics = Statistics(module, context, found, rewriter)
        masks = [self._mask(*one) for one in zip(found, statistics.scores(self.score), strict=True)]
        notes = prune(statistics, masks, self.correct)
        return PassResult.of(rewriter, [*self._notes(len(found), context.target), *notes] if rewriter.rewrites else ())

    def _fits(self, weight: Weight, rewriter: Rewriter) -> bool:
        axis, reason = self._axis(weight)
        if axis is None:
            rewriter.refuse("prune", weight.node, reason)
        return axis is not None

    def _mask(self, weight: Weight, stored: Array) -> Array:
        """True where a weight stays, as stored; scores as stored."""
        axis, _ = self._axis(weight)
        scores = weight.seen(stored)
        if axis is None or self.block is None:
            mask = keep_n_of_m(scores, self.n, self.m, axis or 0)
            if not has_n_of_m(mask, self.n, self.m, axis or 0):
                raise RuntimeError(f"mask of '{weight.name}' does not have the pattern {self.n}:{self.m}")
            return weight.unseen(mask)
        rows, columns = (int(part) for part in self.block.split("x"))
        share = 0.5 if self.sparsity is None else self.sparsity
        return weight.unseen(keep_blocks(scores, share, rows, columns, (_output_axis(weight, axis), axis)))

    def _axis(self, weight: Weight) -> tuple[int | None, str]:
        axis = reduction_axis(weight)
        if axis is None:
            return None, f"{weight.node.op_type} sums along no axis of '{weight.name}' that a pattern could follow"
        if any(_reading(*reader) != _reading(weight.node, weight.slot) for reader in weight.readers):
            return None, f"'{weight.name}' is shared by operators that sum along different axes of it"
        size = weight.seen().shape[axis]
        if self.block is None and size < self.m:
            why = "a depthwise convolution" if attribute(weight.node, "group", 1) > 1 else "the weight"
            return None, f"{why} sums over {size} elements along this axis, fewer than m={self.m}"
        return axis, ""

    def _notes(self, count: int, target: Target) -> Iterator[str]:
        if self.block is not None:
            yield f"{count} weights pruned in blocks of {self.block}"
        else:
            yield f"{count} weights checked: of every {self.m} along the reduction at most {self.n} are kept"
        pattern = self.block or f"{self.n}:{self.m}"
        if pattern in target.sparse_kernels:
            yield f"{target.name} has kernels that skip zeros in the pattern {pattern}"
        else:
            yield (
                f"no {target.name} kernel skips zeros in the pattern {pattern}: they save storage when compressed, "
                "not energy or time; prune-channels removes whole channels, which is faster everywhere"
            )


def _reading(node: ir.Node, slot: int) -> tuple[object, ...]:
    """How an operator reads a weight, as far as the reduction goes."""
    return node.op_type, slot, attribute(node, "transA", 0), attribute(node, "transB", 0)


def _output_axis(weight: Weight, axis: int) -> int:
    """The axis of outputs beside the reduction `axis`."""
    rank = weight.seen().ndim
    if weight.node.op_type in ("Conv", "ConvTranspose"):
        return 1 - axis
    return rank - 2 if axis == rank - 1 else rank - 1
