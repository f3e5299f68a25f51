"""prune-magnitude: set the smallest weights to zero, and keep the mask that says which stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from joulec.errors import InputError
from joulec.ir.module import Module
from joulec.ir.rewrite import Rewriter
from joulec.passes._choice import Plan, overrides, read_schedule
from joulec.passes._prunable import weights
from joulec.passes._statistics import NO_DATA, Statistics, has_data, prune
from joulec.passes.base import Context, Fidelity, Pass, PassResult, option
from joulec.passes.target import Target


@dataclass(frozen=True)
class PruneMagnitude(Pass):
    """Zero the weights of smallest magnitude, T = Model x Mask, by sparsity or threshold, globally or per tensor.

    With calibration data the weights that stay are corrected by least squares, so that what they are summed to changes
    least; and weights can be chosen by what they matter for it, `score=wanda` (magnitude times the norm of the input)
    or `score=optimal-brain` (what is lost when the others make up for it).
    """

    fidelity: ClassVar[Fidelity] = Fidelity.LOSSY
    prunes: ClassVar[bool] = True

    sparsity: float | None = option(None, "share of weights to zero, 0 to 1")
    threshold: float | None = option(None, "zero weights of smaller magnitude than this")
    scope: Literal["global", "tensor"] = option("global", "whether sparsity holds over all weights, or in each tensor")
    tensors: tuple[str, ...] = option((), 'shares for single tensors, "NAME=SHARE;..."; * and ? match any name')
    score: Literal["magnitude", "wanda", "optimal-brain"] = option(
        "magnitude", "what weights are ranked by; the others need data"
    )
    correct: bool = option(True, "correct the weights that stay by least squares on the data, where there are any")
    schedule: str | None = option(None, "a TOML file with sparsity or threshold, scope, and a table [tensors]")

    def __post_init__(self) -> None:
        if self.sparsity is not None and self.threshold is not None:
            raise ValueError("give sparsity or threshold, not both")
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity must lie between 0 and 1, not {self.sparsity:g}")
        if self.threshold is not None and not self.threshold >= 0.0:
            raise ValueError(f"threshold must not be negative, it is {self.threshold:g}")
        if self.threshold is not None and self.score != "magnitude":
            raise ValueError(f"a threshold is one of magnitudes; give sparsity for score={self.score}")
        overrides(self.tensors)

    def files(self) -> tuple[str, ...]:
        """The schedule."""
        return () if self.schedule is None else (self.schedule,)

    def plan(self) -> Plan:
        """What the options say, over what the schedule says.

        Raises:
            InputError: the schedule cannot be read.
        """
        own = overrides(self.tensors)
        if self.schedule is None:
            return Plan(self.sparsity, self.threshold, self.scope, own)
        written = read_schedule(self.schedule).plan
        if self.sparsity is not None or self.threshold is not None:
            return Plan(self.sparsity, self.threshold, self.scope, own + written.tensors)
        if written.sparsity is not None and written.threshold is not None:
            raise InputError(f"{self.schedule}: give sparsity or threshold, not both")
        return Plan(written.sparsity, written.threshold, written.scope, own + written.tensors)

    def run(self, module: Module, context: Context) -> PassResult:
        """Prune every weight of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN; each shared weight once."""
        plan = self.plan()
        if plan.sparsity is None and plan.threshold is None and not plan.tensors:
            return PassResult.nothing(
                f"no sparsity ordered: zeros without a pattern save no energy on {context.target.name}, "
                "only storage when compressed"
            )
        if self.score != "magnitude" and not has_data(context):
            return PassResult.nothing(f"score={self.score} weighs weights by their inputs, and there is {NO_DATA}")
        rewriter = Rewriter(module, self.pass_name())
        found = list(weights(module, rewriter))
        statistics = Statistics(module, context, found, rewriter)
        masks = plan.masks([one.name for one in found], statistics.scores(self.score))
        notes = prune(statistics, list(masks), self.correct)
        return PassResult.of(rewriter, [*notes, *worth(context.target)])


def worth(target: Target) -> list[str]:
    """What zeros without a pattern are worth on this target, so that nobody expects speed from them."""
    if target.sparse_kernels:
        patterns = ", ".join(sorted(target.sparse_kernels))
        return [f"{target.name} kernels skip zeros only in the pattern {patterns}; these zeros have none"]
    return [
        f"no {target.name} kernel skips zeros: they save storage when compressed, not energy or time; "
        "prune-channels removes whole channels, which is faster everywhere"
    ]
