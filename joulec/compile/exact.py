"""The exact passes: all that do not make the model slower than it is without them."""

from __future__ import annotations

from dataclasses import dataclass, field

from joulec.compile.bench import Bench, applied
from joulec.compile.worth import Worth
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes.base import Pass
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Observer, Outcome, Step


@dataclass
class _Trail(Observer):
    """Keeps the module after each pass, for finding the one that made the model slower."""

    modules: list[Module] = field(default_factory=list)

    def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
        same = index > 0 and step.status != "applied"
        self.modules[index:] = [self.modules[index - 1] if same else module.clone()]


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
        worth = None if bench.recorded else _weighed(bench, legal, outcome)
        if worth is None or not worth.worse:
            break
        culprit = _culprit(bench, legal, outcome, trail)
        said = f"the model with {culprit} {worth.would('the one without')}"
        bench.book.choose(f"pass {culprit}", False, said, worth)
        excluded.append(culprit)
    if bench.recorded is None and (drop := bench.rounding(outcome.module)) is not None:
        excluded = [spelling.spell_pass(one) for one in droppable(bench)]
        reason = f"rounding alone costs {drop:.2g} points, the budget is {bench.orders.max_drop:g}"
        bench.book.choose("exact passes", False, reason, drop=drop)
        outcome = bench.run([], legal)
    bench.book.keep(outcome)
    bench.book.excluded = excluded
    return outcome.module


def _weighed(bench: Bench, legal: Module, outcome: Outcome) -> Worth | None:
    if not applied(outcome):
        return None
    if bench.times_target:
        bench.progress("timing the exact passes", None)
    return bench.weigh(legal, outcome.module, confirm=True)


def _culprit(bench: Bench, legal: Module, outcome: Outcome, trail: _Trail) -> str:
    """The first pass after which the module is worse, by bisection over the passes that changed it."""
    changed = applied(outcome)
    low, high = 0, len(changed) - 1
    while low < high:
        middle = (low + high) // 2
        worse = bench.weigh(legal, trail.modules[changed[middle]]).worse
        low, high = (low, middle) if worse else (middle + 1, high)
    return outcome.steps[changed[low]].spelling
