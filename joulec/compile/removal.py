"""What the accuracy budget buys when it is spent on removing weights: channels of every group, or whole blocks.

Each pass that leaves the choice to joulec has a path from the whole model to ever smaller ones, ordered by what a step
saves for what it loses. Where on that path the budget ends is judged on the models themselves.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from joulec.compile import depths, widths
from joulec.compile.bench import Bench, Book, Verdict
from joulec.compile.rivals import best_of
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


class _Path:
    """The path of one pass from one whole model; what was tried on it is tried once, whatever the budget.

    Args:
        bench: runs and judges.
        whole: the model at its start.
        order: the pass that leaves the choice to joulec.
    """

    def __init__(self, bench: Bench, whole: Module, order: Pass) -> None:
        self._bench, self._whole, self._order = bench, whole, order
        self._kind = KINDS[type(order)]
        self._deadline = time.monotonic() + bench.orders.search_seconds
        self._tried: dict[Pass, Smaller | None] = {}
        self._found: dict[float, Smaller | None] = {}
        self.steps: Sequence[Pass] = list(self._kind.path(bench, whole, order))

    def within(self, budget: float) -> Smaller | None:
        """The smallest model that keeps a budget, as far as time allowed to look for it; None where none was found."""
        if budget not in self._found:
            self._found[budget] = self._searched(budget)
        return self._found[budget]

    def _searched(self, budget: float) -> Smaller | None:
        """By bisection; then what breaks the budget stays, and the steps behind it are tried one by one."""
        low, high, best = 0, len(self.steps), None
        while low < high and (time.monotonic() < self._deadline or best is None):
            middle = (low + high) // 2
            tried = self._accurate(self.steps[middle], budget)
            low, high, best = (low, middle, best) if tried is None else (middle + 1, high, tried)
        for last, one in itertools.pairwise(self.steps[low:]):
            if self._kind.beside is None or time.monotonic() > self._deadline:
                break
            further = self._kind.beside(self._order if best is None else best.one, last, one)
            best = self._accurate(further, budget) or best
        return best

    def _accurate(self, one: Pass, budget: float) -> Smaller | None:
        """The model that a pass makes, within the budget on the data that the user judges by; else None."""
        if one not in self._tried:
            self._bench.progress("looking for the smallest model within the budget", None)
            self._tried[one] = self._try(one)
        tried = self._tried[one]
        return tried if tried is not None and tried.verdict.drop <= budget else None

    def _try(self, one: Pass) -> Smaller | None:
        outcome = self._bench.run([one], self._whole)
        if outcome.steps[-1].status != "applied":
            return None
        try:
            return Smaller(one, outcome, self._bench.verdict(outcome.module))
        except JoulecError:
            return None


@dataclass(frozen=True)
class _Way:
    """Passes as they were carried out.

    Attributes:
        book: what was decided for it.
        module: what came of it.
        passes: with their choices.
    """

    book: Book
    module: Module
    passes: list[Pass]


class Removals:
    """Carries out passes, and decides what those remove that leave it to joulec.

    Args:
        bench: runs and measures, and keeps the book.
        module: the whole model.
    """

    def __init__(self, bench: Bench, module: Module) -> None:
        self._bench, self._module = bench, module
        self._ran: dict[tuple[Pass, ...], Outcome] = {}
        self._paths: dict[tuple[Pass, ...], _Path] = {}

    def carry_out(self, passes: Sequence[Pass], budget: float | None) -> tuple[Module, list[Pass]]:
        """Run passes one behind another.

        Args:
            passes: of which some may leave the choice to joulec.
            budget: how far accuracy may drop for these, in absolute points; None where there is none to go by.

        Returns:
            What they make of the module, and the passes as they were run: with their choices, and without those that
            nothing came of, or without which the budget buys more for those behind them.
        """
        ways = [self._way(passes, budget)]
        for one in list(filter(undecided, passes))[:-1]:
            if any(spelled.startswith(one.pass_name()) for spelled in ways[-1].book.removals):
                passes = [other for other in passes if other is not one]  # it left less to those behind it
                ways.append(self._way(passes, budget))
        best = self._best(ways)
        self._bench.book.absorb(best.book)
        return best.module, best.passes

    def _way(self, passes: Sequence[Pass], budget: float | None) -> _Way:
        with self._bench.apart() as book:
            return _Way(book, *self._carried_out(passes, budget))

    def _best(self, ways: Sequence[_Way]) -> _Way:
        """The way on which most is saved, with what the others came to."""
        if len(ways) == 1:
            return ways[0]
        worths = [self._bench.weigh(self._module, one.module) for one in ways]
        paying = [(worth, one.module, one) for worth, one in zip(worths, ways, strict=True) if worth.better]
        best = best_of(self._bench, paying) or ways[-1]
        for worth, one in zip(worths, ways, strict=True):
            if one is not best:
                names = " and ".join(spelled.partition("{")[0] for spelled in one.book.removals)
                drop = self._bench.drop_of(one.module)
                said = f"{worth.would('the whole')}, drop {drop:.4f}; the budget is spent better otherwise"
                best.book.choose(names, False, said, worth, drop, ordered=True)
        return best

    def _carried_out(self, passes: Sequence[Pass], budget: float | None) -> tuple[Module, list[Pass]]:
        at, waiting = self._module, list(_repeated(self._bench, passes))
        done: tuple[Pass, ...] = ()
        while waiting:
            ready = list(itertools.takewhile(lambda one: not undecided(one), waiting))
            waiting = waiting[len(ready) :]
            if ready:
                at, done = self._kept(self._run(at, done, tuple(ready))), (*done, *ready)
            elif (found := self._within(at, done, waiting.pop(0), budget)) is not None:
                at, done = self._kept(found.outcome), (*done, found.one)
        return at, list(done)

    def _run(self, module: Module, before: tuple[Pass, ...], passes: tuple[Pass, ...]) -> Outcome:
        key = (*before, *passes)
        if key not in self._ran:
            self._ran[key] = self._bench.run(passes, module)
        return self._ran[key]

    def _kept(self, outcome: Outcome) -> Module:
        """The outcome goes on record, and what pruning has to say is noted."""
        self._bench.book.keep(outcome)
        pruning = [step for step in outcome.steps if step.spelling.startswith("prune-")]
        self._bench.book.notes += [f"{step.spelling}: {note}" for step in pruning for note in step.result.notes]
        return outcome.module

    def _within(self, whole: Module, before: tuple[Pass, ...], order: Pass, budget: float | None) -> Smaller | None:
        """The smallest model on the path that keeps the budget, where it pays, or None; the decision goes on record."""
        bench, kind = self._bench, KINDS[type(order)]
        refusal = _why_not(bench, kind, budget)
        if refusal is not None or budget is None:
            bench.book.choose(kind.what, False, refusal or "", ordered=True)
            return None
        if (key := (*before, order)) not in self._paths:
            self._paths[key] = _Path(bench, whole, order)
        best = self._paths[key].within(budget)
        if best is None:
            said = "could go within the budget" if self._paths[key].steps else "can be cut here"
            bench.book.choose(kind.what, False, f"no {kind.what} {said}", ordered=True)
        return None if best is None else self._weighed(whole, best, kind, budget)

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


def _repeated(bench: Bench, passes: Sequence[Pass]) -> Iterator[Pass]:
    """The passes, with what an earlier build chose where one is repeated."""
    if bench.recorded is None:
        yield from passes
        return
    kept = [one for spelled in bench.recorded.removals for one in spelling.parse(spelled, REMOVALS)]
    for one in passes:
        chosen = next((found for found in kept if type(found) is type(one)), None) if undecided(one) else one
        if chosen is not None:
            yield chosen
