"""The pipeline: run passes in order; around each one verify, time, price and compare; keep it or roll it back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.shapes import first_line, infer_shapes
from joulec.ir.verify import Verifier
from joulec.passes.base import Context, Fidelity, Pass, PassResult
from joulec.passes.equivalence import Deviation, Equivalence
from joulec.passes.excerpts import Excerpts
from joulec.passes.spelling import spell, spell_pass

if TYPE_CHECKING:
    from joulec.energy.model import Estimate

PROBES = 2
"""Feeds on which exact passes are compared with the input."""

Status = Literal["applied", "unchanged", "rolled back"]


@dataclass(frozen=True)
class Step:
    """What one pass did to the module, as the pipeline saw it.

    Attributes:
        spelling: the pass with its options, e.g. `prune-magnitude{sparsity=0.5}`.
        fidelity: what it promises about the numbers.
        status: `applied`, `unchanged`, or `rolled back` with the reason in `reason`.
        result: the rewriter's record.
        seconds: time in the pass itself; verification and pricing are not counted.
        nodes: node count before and after.
        energy: estimates before and after, or None where nothing prices.
        deviation: worst deviation from the module before it, for exact passes that were compared.
        reason: why it was rolled back, or why its numbers were not compared.
    """

    spelling: str
    fidelity: Fidelity
    status: Status
    result: PassResult
    seconds: float
    nodes: tuple[int, int]
    energy: tuple[Estimate, Estimate] | None = None
    deviation: Deviation | None = None
    reason: str | None = None


class Observer:
    """Watches a pipeline: progress, timing, dumps. Override what you need; the pipeline never depends on it.

    Where what all passes made together does not hold, they run again one by one, and index begins at 0 again.
    """

    def before_pass(self, index: int, total: int, one: Pass, module: Module) -> None:
        """Called before pass number `index` (from 0) of `total` runs."""

    def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
        """Called when the pass is done; `module` is what the next pass gets, and may change: clone it to keep it."""


@dataclass(frozen=True)
class Outcome:
    """The module a pipeline made, the steps that led there, and the module after each step."""

    module: Module
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Attempt:
    """What came of one pass on one module.

    Attributes:
        result: the rewriter's record; empty where the pass raised.
        seconds: time in the pass itself.
        deviation: worst deviation of the outputs, where they were compared.
        reason: why the result must not stay, or None.
        error: joulec's own error behind the reason, if there is one.
    """

    result: PassResult
    seconds: float
    deviation: Deviation | None = None
    reason: str | None = None
    error: JoulecError | None = None


def attempt(
    one: Pass, candidate: Module, context: Context, verifier: Verifier, equivalence: Equivalence | None,
    excerpts: Callable[[PassResult], Deviation | None] | None = None,
) -> Attempt:  # fmt: skip
    """Run `one` on `candidate` in place, and check what it left: structure, signature, masks and (EXACT) outputs.

    Where the whole cannot be run (`equivalence` is None), `excerpts` compares parts of it around the rewrites.
    """
    start = time.perf_counter()
    try:
        result = one.run(candidate, context)
    except JoulecError as error:
        return Attempt(PassResult(), time.perf_counter() - start, reason=str(error), error=error)
    except Exception as error:  # noqa: BLE001 - a broken pass must not break the build; it is rolled back and said
        said = f"{type(error).__name__}: {first_line(error)}"
        return Attempt(PassResult(), time.perf_counter() - start, reason=said)
    seconds = time.perf_counter() - start
    if not result.changed:
        return Attempt(result, seconds)
    try:
        infer_shapes(candidate)
        verifier.verify(candidate)
        found = None
        if one.fidelity is Fidelity.EXACT and equivalence is not None:
            found = equivalence.compare(candidate)
        elif one.fidelity is Fidelity.EXACT and excerpts is not None:
            found = excerpts(result)
    except JoulecError as error:
        return Attempt(result, seconds, reason=str(error), error=error)
    except Exception as error:  # noqa: BLE001 - what a broken result provokes in the checks is the pass's fault too
        return Attempt(result, seconds, reason=f"{type(error).__name__}: {first_line(error)}")
    if found is None or found.ok:
        return Attempt(result, seconds, found)
    said = f"output '{found.output}' deviates by {found.value:.2g}, allowed is {found.tolerance:.0e}"
    return Attempt(result, seconds, found, said)


@dataclass
class Pipeline:
    """An ordered list of passes.

    Args:
        passes: run first to last.
        observers: told before and after each.
    """

    passes: Sequence[Pass]
    observers: Sequence[Observer] = field(default_factory=tuple)

    def __str__(self) -> str:
        return spell(self.passes)

    def run(self, module: Module, context: Context) -> Outcome:
        """Run every pass on a copy of `module`; the argument is left as it was.

        A pass that raises, leaves an invalid module, changes the signature, breaks a mask, or (if EXACT) changes the
        outputs beyond tolerance is rolled back, and its step says why. Several exact passes run without a look in
        between first: their reference is the pipeline's input anyhow, so checking the end checks them all. Only if
        that does not hold, they run again with every check after each. O(passes x nodes) beside their own work.
        """
        return self._together(module, context) or self._one_by_one(module, context)

    def _together(self, module: Module, context: Context) -> Outcome | None:
        """What all passes make, checked at the end; None where that is not enough."""
        exact = all(one.fidelity is Fidelity.EXACT for one in self.passes)
        if len(self.passes) < 2 or not exact or context.excerpts:
            return None
        run = _Run(module, context)
        return run.outcome() if self._each(run, run.trust) and run.holds() else None

    def _one_by_one(self, module: Module, context: Context) -> Outcome:
        run = _Run(module, context)
        self._each(run, run.step)
        return run.outcome()

    def _each(self, run: _Run, take: Callable[[Pass], Step | None]) -> bool:
        """Take every step; False as soon as one fails."""
        total = len(self.passes)
        for index, one in enumerate(self.passes):
            for observer in self.observers:
                observer.before_pass(index, total, one, run.module)
            if (step := take(one)) is None:
                return False
            run.steps.append(step)
            for observer in self.observers:
                observer.after_pass(index, total, step, run.module)
        return True


class _Run:
    """One run of a pipeline: the module so far, its price, and the reference outputs that exact passes must keep."""

    def __init__(self, module: Module, context: Context) -> None:
        self.module = module.clone()
        self.spare: Module | None = None
        self.context = context
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self._note(infer_shapes(self.module))
        self.verifier = Verifier(self.module)
        self._note(self.verifier.known_problem and f"input model: {self.verifier.known_problem}")
        self.excerpts = Excerpts(context.runner) if context.excerpts and context.runner is not None else None
        self.equivalence = self._equivalence()
        self.price = self._price(self.module)

    def _note(self, note: str | None) -> None:
        if note:
            self.notes.append(note)

    def _equivalence(self) -> Equivalence | None:
        context = self.context
        if context.runner is None or not (context.probes or context.candidates):
            self._note(f"outputs were not compared: {context.obstacle or 'no feeds to run the model on'}")
            return None
        tried, most = (context.candidates, PROBES) if context.candidates else (context.probes, None)
        equivalence = Equivalence(context.runner, tried, most)
        if (problem := equivalence.refer_to(self.module)) is not None:
            self._note(f"outputs were not compared: {problem}")
            return None
        if equivalence.unstable:
            self._note(f"outputs not compared, they differ from run to run: {', '.join(equivalence.unstable)}")
        return equivalence

    def _price(self, module: Module) -> Estimate | None:
        return None if self.context.energy is None else self.context.energy.estimate(module, self.context.bindings)

    def outcome(self) -> Outcome:
        """What came of it."""
        return Outcome(self.module, tuple(self.steps), (*self.notes, *self._said_of_excerpts()))

    def trust(self, one: Pass) -> Step | None:
        """Run one pass on the module itself, without a check; None where it raises."""
        nodes, price, start = self.module.node_count(), self.price, time.perf_counter()
        try:
            result = one.run(self.module, self.context)
        except Exception:  # noqa: BLE001 - it will raise again where passes run one by one, and be rolled back and said
            return None
        seconds = time.perf_counter() - start
        if result.changed:
            infer_shapes(self.module)
            self.price = self._price(self.module)
        return self._taken(one, result, seconds, nodes, price)

    def holds(self) -> bool:
        """Whether what trusted passes made is valid and computes the same; the last change gets the deviation."""
        last = max((i for i, step in enumerate(self.steps) if step.status == "applied"), default=None)
        if last is None:
            return True
        try:
            self.verifier.verify(self.module)
            found = None if self.equivalence is None else self.equivalence.compare(self.module)
        except Exception:  # noqa: BLE001 - whichever pass provoked it is found and said where they run one by one
            return False
        self.steps[last] = replace(self.steps[last], deviation=found)
        return found is None or found.ok

    def step(self, one: Pass) -> Step:
        """Run one pass on a copy; adopt the copy if everything holds."""
        nodes, price = self.module.node_count(), self.price
        candidate, self.spare = self.spare or self.module.clone(), None
        tried = attempt(one, candidate, self.context, self.verifier, self.equivalence, self._parts(one))
        result, reason = tried.result, tried.reason
        if reason is None:
            self._adopt(one, candidate, result.changed)
        return self._taken(one, result, tried.seconds, nodes, price, tried.deviation, reason)

    def _taken(
        self, one: Pass, result: PassResult, seconds: float, nodes: int, price: Estimate | None,
        deviation: Deviation | None = None, reason: str | None = None,
    ) -> Step:  # fmt: skip
        """The step that `one` was, from `nodes` and `price` before it to those of the module now."""
        status: Status = "rolled back" if reason else "applied" if result.changed else "unchanged"
        energy = None if price is None or self.price is None else (price, self.price)
        count = (nodes, self.module.node_count())
        return Step(spell_pass(one), one.fidelity, status, result, seconds, count, energy, deviation, reason)

    def _parts(self, one: Pass) -> Callable[[PassResult], Deviation | None] | None:
        excerpts, before = self.excerpts, self.module
        return None if excerpts is None else lambda result: excerpts.compare(before, one, result, self.context)

    def _said_of_excerpts(self) -> list[str]:
        """What was compared instead of the whole, in one line."""
        if self.excerpts is None or not (self.excerpts.compared or self.excerpts.skipped):
            return []
        done, left = self.excerpts.compared, self.excerpts.skipped
        return [f"excerpts around what the passes changed: {done} run and compared, {left} could not be run alone"]

    def _adopt(self, one: Pass, candidate: Module, changed: bool) -> None:
        if not changed:
            self.spare = candidate  # still a copy of the module: the next pass may have it
            return
        self.module = candidate
        self.price = self._price(candidate)
        if one.fidelity is Fidelity.LOSSY and self.equivalence is not None:
            self.equivalence.refer_to(candidate)
