"""Layout: what only the processor at hand can say."""

from __future__ import annotations

from joulec.compile.bench import Bench
from joulec.ir.module import Module
from joulec.passes.pipeline import Outcome

LAYOUT = "layout"
"""What the decision about `Backend.layouts` is called."""


def aligned(bench: Bench, module: Module) -> Module:
    """Float images in the blocks of the runtime's kernels, where that is faster here."""
    passes = [] if bench.book.int8 is not None or bench.orders.sparsity is not None else bench.backend.layouts()
    known = bench.recorded and any(one.what == LAYOUT and one.kept for one in bench.recorded.decisions)
    if not passes or known is False or (known is None and not bench.times_target):
        return module
    outcome = bench.run(passes, module)
    if not _laid_out(outcome) or not (known or _faster(bench, module, outcome)):
        return module
    bench.book.keep(outcome)
    return outcome.module


def _laid_out(outcome: Outcome) -> list[str]:
    """The layouts that changed something; what cleans up behind them is last and none."""
    return [step.spelling for step in outcome.steps[:-1] if step.status == "applied"]


def _faster(bench: Bench, module: Module, outcome: Outcome) -> bool:
    worth = bench.weigh(module, outcome.module)
    said = f"{', '.join(_laid_out(outcome))}: {worth.said('the model without')}"
    kept = worth.better and bench.rounding(outcome.module) is None
    bench.book.choose(LAYOUT, kept, said, worth)
    if not kept:
        bench.book.drop(outcome, said)
    return kept
