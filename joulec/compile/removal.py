"""What the accuracy budget buys when it is spent on removing weights: channels of every group, or whole blocks.

Each pass that leaves the choice to joulec has a path from the whole model to ever smaller ones, ordered by what a step
saves for what it loses. Where on that path the budget ends is judged on the models themselves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from joulec.compile import depths, widths
from joulec.compile.bench import Bench, Verdict
from joulec.errors import JoulecError
from joulec.fidelity import too_few
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes.base import Pass
from joulec.passes.pipeline import Outcome
from joulec.passes.prune_blocks import PruneBlocks
from joulec.passes.prune_channels import PruneChannels


@dataclass(frozen=True)
class Kind:
    """One kind of removal.

    Attributes:
        what: what its decision is called: the things that go.
        order: what a user can write instead of leaving it to joulec.
        path: ever smaller models, from a bench, the whole model and the pass as ordered.
        beside: given what was found, and two neighbours on the path: what was found with the step between them; None
            where steps make no sense without those before.
    """

    what: str
    order: str
    path: Callable[[Bench, Module, Any], Iterable[Any]]
    beside: Callable[[Any, Any, Any], Any] | None = None


KINDS: dict[type[Pass], Kind] = {
    PruneBlocks: Kind("blocks", "a count", depths.path, depths.beside),
    PruneChannels: Kind("channels", "a ratio", widths.path),
}
"""The passes that leave the choice to joulec."""

REMOVALS = {kind.pass_name(): kind for kind in KINDS}
"""The same by name, for reading what was decided."""


def undecided(one: Pass) -> bool:
    """Whether a pass leaves it to joulec what to remove."""
    return isinstance(one, PruneBlocks | PruneChannels) and one.undecided


@dataclass(frozen=True)
class Smaller:
    """A model on the path.

    Attributes:
        one: the pass that makes it.
        outcome: of running it.
        verdict: how accurate the result is.
    """

    one: Pass
    outcome: Outcome
    verdict: Verdict


class Removals:
    """Decides what goes; what was tried is tried once, whatever the budget.

    Args:
        bench: runs and measures.
        module: the whole model.
    """

    def __init__(self, bench: Bench, module: Module) -> None:
        self._bench, self._module = bench, module
        self._tried: dict[tuple[Pass, ...], Smaller | None] = {}
        self._made: dict[tuple[Pass, ...], Module] = {(): module}
        self._paths: dict[tuple[Pass, ...], Sequence[Pass]] = {}

    def decided(self, passes: Sequence[Pass], budget: float | None) -> list[Pass]:
        """`passes` with all that leave the choice to joulec decided; one that nothing came of is gone.

        Args:
            passes: run one behind another on the module.
            budget: how far accuracy may drop, in absolute points; None where there is none to go by.
        """
        done: list[Pass] = []
        recorded = iter(_recorded(self._bench))
        for one in passes:
            if not undecided(one):
                done.append(one)
            elif self._bench.recorded is not None:
                done += [next(recorded)] if _was_kept(self._bench, one) else []
            elif (found := self._within(tuple(done), one, budget)) is not None:
                done.append(found.one)
        return done

    def _within(self, before: tuple[Pass, ...], order: Pass, budget: float | None) -> Smaller | None:
        """The smallest model on the path that keeps the budget, where it pays, or None; the decision goes on record."""
        bench, kind = self._bench, KINDS[type(order)]
        refusal = _why_not(bench, kind, budget)
        if refusal is not None or budget is None:
            bench.book.choose(kind.what, False, refusal or "", ordered=True)
            return None
        whole = self._before(before)
        if (key := (*before, order)) not in self._paths:
            self._paths[key] = list(kind.path(bench, whole, order))
        best = self._searched(before, order, self._paths[key], budget)
        if best is None:
            said = "could go within the budget" if self._paths[key] else "can be cut here"
            bench.book.choose(kind.what, False, f"no {kind.what} {said}", ordered=True)
        return None if best is None else self._weighed(whole, best, kind, budget)

    def _before(self, passes: tuple[Pass, ...]) -> Module:
        if passes not in self._made:
            self._made[passes] = self._bench.run(passes, self._module).module
        return self._made[passes]

    def _searched(
        self, before: tuple[Pass, ...], order: Pass, path: Sequence[Pass], budget: float
    ) -> Smaller | None:  # fmt: skip
        """By bisection; then what breaks the budget stays, and the steps behind it are tried one by one."""
        deadline = time.monotonic() + self._bench.orders.search_seconds
        low, high, best = 0, len(path), None
        while low < high and (time.monotonic() < deadline or best is None):
            middle = (low + high) // 2
            tried = self._accurate(before, path[middle], budget)
            low, high, best = (low, middle, best) if tried is None else (middle + 1, high, tried)
        return self._further(before, order, path[low:], best, budget, deadline)

    def _further(
        self, before: tuple[Pass, ...], order: Pass, rest: Sequence[Pass], best: Smaller | None, budget: float,
        deadline: float,
    ) -> Smaller | None:  # fmt: skip
        """What was found with what it can take of the steps behind the one that broke the budget."""
        beside = KINDS[type(order)].beside
        for last, one in itertools.pairwise(rest):
            if beside is None or time.monotonic() > deadline:
                break
            found = beside(order if best is None else best.one, last, one)
            best = self._accurate(before, found, budget) or best
        return best

    def _accurate(self, before: tuple[Pass, ...], one: Pass, budget: float) -> Smaller | None:
        """The model that a pass makes, within the budget on the data that the user judges by; else None."""
        if (key := (*before, one)) not in self._tried:
            self._bench.progress("looking for the smallest model within the budget", None)
            self._tried[key] = self._try(self._before(before), one)
        tried = self._tried[key]
        return tried if tried is not None and tried.verdict.drop <= budget else None

    def _try(self, module: Module, one: Pass) -> Smaller | None:
        outcome = self._bench.run([one], module)
        if outcome.steps[-1].status != "applied":
            return None
        try:
            return Smaller(one, outcome, self._bench.verdict(outcome.module))
        except JoulecError:
            return None

    def _weighed(self, whole: Module, best: Smaller, kind: Kind, budget: float) -> Smaller | None:
        """The pass is ordered, what it removes is joulec's choice, and that must pay like any other."""
        book, worth = self._bench.book, self._bench.weigh(whole, best.outcome.module)
        removed = next((one for one in best.outcome.steps[-1].result.notes if f" {kind.what} " in one), "")
        said = f"{removed}, drop {best.verdict.drop:.4f}; {worth.would('the whole')}"
        book.choose(kind.what, worth.better, said, worth, best.verdict.drop, ordered=True)
        if not worth.better:
            book.drop(best.outcome, said)
            return None
        book.removals.append(spelling.spell_pass(best.one))
        _doubt(self._bench, best.verdict, budget)
        return best


def _why_not(bench: Bench, kind: Kind, budget: float | None) -> str | None:
    if bench.inputs.obstacle is not None:
        return f"the input model does not run here, so what {kind.what} are worth is not known"
    if bench.inputs.judge is None or bench.inputs.feeds is None:
        return f"no calibration data: with --data and --max-drop joulec chooses {kind.what}; or order {kind.order}"
    if budget is None:
        return f"no budget: --max-drop says what removing {kind.what} may cost; or order {kind.order}"
    return None


def _doubt(bench: Bench, verdict: Verdict, budget: float) -> None:
    """Say where the data are too few to promise the budget on other data."""
    samples = verdict.samples
    if samples is not None and (needed := too_few(samples, budget)) is not None:
        few = f"{samples} samples are too few to promise a drop of at most {budget:g} on other data"
        bench.book.doubts.append(f"{few}: that takes {needed}")


def _recorded(bench: Bench) -> list[Pass]:
    """What an earlier build chose, in order."""
    kept = () if bench.recorded is None else bench.recorded.removals
    return [one for spelled in kept for one in spelling.parse(spelled, REMOVALS)]


def _was_kept(bench: Bench, one: Pass) -> bool:
    return any(type(kept) is type(one) for kept in _recorded(bench))
