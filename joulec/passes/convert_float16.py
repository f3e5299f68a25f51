"""convert-float16: compute in 16-bit floats where the numbers fit and the outputs stay what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import onnx_ir as ir

from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.ir.runner import Runner
from joulec.passes._half_emulation import emulated
from joulec.passes._half_numbers import BFLOAT16, FLOAT16, feeds_of
from joulec.passes._half_places import FLOAT
from joulec.passes._half_plan import Plan
from joulec.passes._half_rewrite import to_half
from joulec.passes._outputs import distance, outputs_of
from joulec.passes._patterns import unmatched
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Compute in float16 (or bfloat16) where the target has kernels and the calibration data fit.

    Inputs and outputs stay float32. Nodes stay float32 where their numbers overflow with a headroom of four, where
    stored numbers are too small, where a divisor may become 0, where the kernel table has no such kernel, and where
    the casts around them would cost more energy than they save (a minimum cut). Products, norms, Softmax and
    reductions take 16 bits and add up in float32, as the CUDA kernels do. What is left is emulated on the CPU with
    every value rounded; while the outputs are off by more than `max-error`, the nodes that cost most stay float32.
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    indivisible: ClassVar[bool] = True
    to: Literal["float16", "bfloat16"] = cast(
        Literal["float16", "bfloat16"], option("float16", "the format; bfloat16 never overflows and keeps 8 bits")
    )
    max_error: float = cast(float, option(0.01, "relative error of the worst output that may remain, as norms"))
    keep_float: tuple[str, ...] = cast(
        "tuple[str, ...]", option((), "operators that stay float32: patterns of node names or operator types")
    )
    samples: int = cast(int, option(32, "feeds that magnitudes are taken from; four of them are emulated"))

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise ValueError(f"max-error must be above 0, not {self.max_error}")
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")

    def run(self, module: Module, context: Context) -> PassResult:
        """Plan, emulate, keep more in float32 until the error is small enough, then rewrite. O(edges) a round.

        Raises:
            InputError: a feed does not fit the model.
        """
        reason = self._nothing_to_do(module, context)
        if reason is not None or context.runner is None:
            return PassResult.nothing(reason or "")
        half = FLOAT16 if self.to == FLOAT16.name else BFLOAT16
        lost = [f"keep-float={one} fits no operator" for one in unmatched(module.model, self.keep_float)]
        plan = Plan(module, context, half, self.keep_float, self.samples)
        trial = _Trial(module, plan, context.runner, feeds_of(context, FEEDS))
        error = trial.settle(self.max_error)
        rewriter = Rewriter(module, self.pass_name())
        if plan.chosen and error <= self.max_error:
            to_half(rewriter, plan)
        for node in plan.nodes:
            if id(node) in plan.pinned and not plan.chosen & {id(node)}:
                rewriter.refuse(f"to-{half.name}", node, plan.pinned[id(node)])
        return PassResult.of(rewriter, [*lost, *_notes(plan, context, error)])

    def _nothing_to_do(self, module: Module, context: Context) -> str | None:
        if self.to not in context.target.halves:
            return f"{context.target.name} has no {self.to} kernels"
        if context.runner is None:
            return "nothing to run the model with: its magnitudes are not known (install joulec[cpu])"
        if context.feeds is None and not context.probes:
            return f"no data to look at: {context.obstacle or 'give --data'}"
        if not any(value.dtype == FLOAT for node in module.graph for value in node.outputs):
            return "nothing here is float32"
        return None


FEEDS = 4
"""Feeds on which a plan is emulated."""


class _Trial:
    """Emulates plans for one module and finds the nodes that spoil it."""

    def __init__(self, module: Module, plan: Plan, runner: Runner, feeds: Sequence[Feed]) -> None:
        self.module, self.plan, self.runner, self.feeds = module, plan, runner, feeds
        self.expected = outputs_of(runner, module, feeds)

    def settle(self, allowed: float) -> float:
        """Pin nodes until the error is at most `allowed`, or nothing is left. The blocks that are pinned grow, so that
        it ends: O(log nodes) rounds of O(log nodes) runs.
        """
        size, error = 1, self._error()
        while error > allowed and self.plan.chosen:
            for node in self._worst(size):
                self.plan.pin(node, f"its rounding costs most of the error of the outputs, {error:.2g}")
            self.plan.cut()
            size, error = 2 * size, self._error()
        return error

    def _worst(self, size: int) -> list[ir.Node]:
        """A run of at most `size` neighbours whose rounding alone makes the largest error, by bisection."""
        block = self.plan.candidates
        while len(block) > size:
            left, right = block[: len(block) // 2], block[len(block) // 2 :]
            block = max((left, right), key=self._error)
        return block

    def _error(self, only: Sequence[ir.Node] | None = None) -> float:
        """Relative error of the worst output, with only these nodes rounded."""
        everything = self.plan.chosen
        if only is not None:
            self.plan.chosen = {id(node) for node in only}
        try:
            trial = self.module.clone()
            to_half(Rewriter(trial, "trial"), self.plan)
            return distance(self.expected, outputs_of(self.runner, emulated(trial), self.feeds))
        finally:
            self.plan.chosen = everything


def _notes(plan: Plan, context: Context, error: float) -> list[str]:
    total = sum(id(node) in plan.places for node in plan.nodes)
    said = f"{len(plan.chosen)} of {total} nodes compute in {plan.half.name}"
    source = "made-up feeds" if context.feeds is None else context.feeds.description
    return [f"{said}; emulated with every value rounded, the worst output is off by {error:.1e} ({source})"]

