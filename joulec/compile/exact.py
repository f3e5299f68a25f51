"""The exact passes: all that do not make the model slower than it is without them."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulec.compile.bench import Bench, applied
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes.base import Pass
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Observer, Outcome, Step
from joulec.payoff import Paired


@dataclass
class _Trail(Observer):
    """Keeps the module after each pass, for finding the one that made the model slower."""

    modules: list[Module] = field(default_factory=list)

    def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
        self.modules.append(module)


def droppable(bench: Bench) -> list[Pass]:
    """The passes that may be left out; legalization may not."""
    return [*bench.backend.preferences(), *exact_passes()]


def optimize_exactly(bench: Bench, legal: Module) -> Module:
    """Run the exact passes on the legal module, without those after which it is slower."""
    excluded = list(bench.recorded.excluded) if bench.recorded else []
    while True:
        trail = _Trail()
        passes = [one for one in droppable(bench) if spelling.spell_pass(one) not in excluded]
        outcome = bench.run(passes, legal, trail)
        slower = None if bench.recorded else _slower(bench, legal, outcome)
        if slower is None:
            break
        culprit = _culprit(bench, legal, outcome, trail)
        bench.book.choose(
            "pass " + culprit, False, f"{culprit} made the model slower: {slower} the speed without", slower
        )
        excluded.append(culprit)
    if bench.recorded is None and (drop := bench.rounding(outcome.module)) is not None:
        excluded = [spelling.spell_pass(one) for one in droppable(bench)]
        reason = f"rounding alone costs {drop:.2g} points, the budget is {bench.orders.max_drop:g}"
        bench.book.choose("exact passes", False, reason, drop=drop)
        outcome = bench.run([], legal)
    bench.book.keep(outcome)
    bench.book.excluded = excluded
    return outcome.module


def _slower(bench: Bench, legal: Module, outcome: Outcome) -> Paired | None:
    if not bench.can_time or not applied(outcome):
        return None
    bench.progress("timing the exact passes", None)
    return bench.slower(legal, outcome.module)


def _culprit(bench: Bench, legal: Module, outcome: Outcome, trail: _Trail) -> str:
    """The first pass after which the module is slower, by bisection over the passes that changed it."""
    changed = applied(outcome)
    low, high = 0, len(changed) - 1
    while low < high:
        middle = (low + high) // 2
        slower = bench.time(legal, trail.modules[changed[middle]]).slower
        low, high = (low, middle) if slower else (middle + 1, high)
    return outcome.steps[changed[low]].spelling
