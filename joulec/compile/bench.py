"""The bench that all stages of a compilation work on: it runs passes, times and judges modules, and keeps the book."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from joulec.backends.base import Backend
from joulec.compile.orders import Inputs, Orders
from joulec.compile.worth import Worth, measured, predicted
from joulec.decisions import Decisions, decision_of
from joulec.describe import step_report
from joulec.energy.bind import still_open
from joulec.energy.model import EnergyModel, Estimate
from joulec.fidelity import bound
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.passes._half_emulation import emulated
from joulec.passes.base import Context, Pass
from joulec.passes.excerpts import too_large
from joulec.passes.pipeline import Observer, Outcome, Pipeline, Step
from joulec.payoff import confirm_slower, time_pair
from joulec.report.data import Cost, Decision, Point, StepReport


@dataclass
class Book:
    """What was done and decided so far.

    Attributes:
        notes: things to say about it.
        steps: passes whose result stays, in order.
        dropped: passes that were run and then undone, with the reason.
        choices: decisions, in the order in which they fell.
        excluded: exact passes that are left out because they make the model slower, spelled.
        int8: the quantization that stays, spelled; None where the model stays float.
        float16: the conversion to 16-bit floats that stays, spelled.
        activations: pipelines that changed activations and stay, spelled.
        removals: passes that remove what was chosen for them, spelled, in order.
        reasons: pattern of that quantization that keeps an operator float -> why.
        points: sets of operators that were tried in INT8, in order.
        costs: what single operators cost in accuracy, where that was measured.
        doubts: what the measurements behind the choices cannot promise; a rebuild repeats it.
    """

    notes: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    dropped: list[StepReport] = field(default_factory=list)
    choices: list[Decision] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    int8: str | None = None
    float16: str | None = None
    activations: list[str] = field(default_factory=list)
    removals: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def absorb(self, other: Book) -> None:
        """Take over everything that another book holds."""
        for one in fields(self):
            held, found = getattr(self, one.name), getattr(other, one.name)
            if isinstance(held, list):
                held += found
            elif isinstance(held, dict):
                held |= found
            elif found is not None:
                setattr(self, one.name, found)

    def keep(self, outcome: Outcome) -> None:
        self.steps += outcome.steps
        self.notes += outcome.notes

    def drop(self, outcome: Outcome, reason: str) -> None:
        """Record passes that were run and then undone."""
        self.dropped += [step_report(step, reason) for step in outcome.steps]

    def choose(
        self, what: str, kept: bool, reason: str, worth: Worth | None = None, drop: float | None = None,
        ordered: bool = False,
    ) -> None:  # fmt: skip
        """Record a decision with what was measured, or predicted, for it."""
        numbers = {} if worth is None else worth.numbers()
        basis = None if worth is None else worth.basis
        self.choices.append(decision_of(what, kept, ordered, reason, basis, drop=drop, **numbers))


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a module.

    Attributes:
        module: the module; holding it keeps its identity from reuse.
        drop: in absolute points.
        bound: what the drop stays below on other data of this kind, about 5 times in 6; None where that is unknown.
        samples: how many samples it was judged on, where that is known.
    """

    module: Module
    drop: float
    bound: float | None = None
    samples: int | None = None


@dataclass
class Bench:
    """Runs passes on modules of one compilation, and measures them.

    Args:
        base: the lowered input model, what everything is compared with.
        backend: the target.
        orders: what the user ordered.
        inputs: data and probes.
        runner: runs modules.
        energy: prices nodes.
        threads: intra-op threads of every session.
        recorded: decisions to repeat instead of measuring.
        observers: told about passes.
        progress: told about measurements.
        here: whether the device that is compiled for and priced is this machine.
    """

    base: Module
    backend: Backend
    orders: Orders
    inputs: Inputs
    runner: Runner
    energy: EnergyModel
    threads: int = 1
    recorded: Decisions | None = None
    observers: Sequence[Observer] = ()
    progress: Callable[[str, float | None], None] = lambda message, fraction: None
    here: bool = True
    book: Book = field(default_factory=Book, init=False)
    _verdicts: dict[int, Verdict] = field(default_factory=dict, init=False)

    def run(
        self, passes: Sequence[Pass], module: Module, *more: Observer, probes: Sequence[Feed] | None = None
    ) -> Outcome:
        """Run passes on a module, verified as every pipeline is; on `probes` where the inputs' own do not fit."""
        context = self.context(module, probes)
        return Pipeline(self.orders.obeyed(passes), [*self.observers, *more]).run(module, context)

    @contextmanager
    def apart(self) -> Iterator[Book]:
        """What is done inside goes into a book of its own."""
        outer, self.book = self.book, Book()
        try:
            yield self.book
        finally:
            self.book = outer

    def context(self, module: Module, probes: Sequence[Feed] | None = None) -> Context:
        """What passes on this module may use."""
        large = too_large(module)
        given = self.inputs.probes if probes is None else probes
        return Context(
            target=self.backend.target,
            feeds=self.inputs.feeds,
            probes=given if large is None else (),
            obstacle=self.inputs.obstacle or large,
            excerpts=large is not None and self.inputs.obstacle is None,
            bindings=still_open(module, self.inputs.shapes),
            runner=self.runner,
            energy=self.energy,
            progress=self.progress,
            cache=self.inputs.cache,
        )

    # -- what a change is worth -----------------------------------------------------------------------------

    @property
    def can_time(self) -> bool:
        return bool(self.inputs.probes)

    @property
    def times_target(self) -> bool:
        """Whether what is measured here holds for the target, and for the device that is priced."""
        return self.can_time and self.here and self.backend.target.name == "cpu"

    def weigh(self, before: Module, after: Module, *, raw: bool = False, confirm: bool = False) -> Worth:
        """What it is worth to ship `after` instead of `before`: everything that joulec chooses is chosen by this.

        Args:
            before: what is compared with; as the backend would ship it, or as it is where `raw`.
            after: the module in question.
            confirm: where `after` is measured to be slower, measure again, three times as long.
        """
        if not self.times_target:
            return predicted(self._priced(before), self._priced(after))
        pair = before if raw else self.backend.finished(before), self.backend.finished(after)
        time = confirm_slower if confirm else time_pair
        return measured(time(self.runner, *pair, self.inputs.probes[0], self.options()))

    def _priced(self, module: Module) -> Estimate:
        return self.energy.estimate(module, still_open(module, self.inputs.shapes))

    def against_input(self, module: Module) -> Worth:
        """The whole build against the input model as it came."""
        if self.times_target:
            self.progress("timing the result against the input", None)
        return self.weigh(self.base, module, raw=True, confirm=True)

    def options(self) -> SessionOptions:
        """How sessions of this target are opened."""
        return self.backend.settings(self.threads).options(self.base.origin.custom_ops)

    # -- accuracy -------------------------------------------------------------------------------------------

    def drop_of(self, module: Module) -> float:
        """The drop of a module in absolute points."""
        return self.verdict(module).drop

    def verdict(self, module: Module) -> Verdict:
        """The drop of a module and what it says about other data; judged once, for a metric can take minutes."""
        judge = self.inputs.judge
        if judge is None:
            return Verdict(module, 0.0)
        if id(module) not in self._verdicts:
            drop = judge.drop(self._as_computed(module))
            upper = None if judge.changes is None else bound(drop, judge.changes)
            samples = None if judge.changes is None else len(judge.changes)
            self._verdicts[id(module)] = Verdict(module, drop, upper, samples)
        return self._verdicts[id(module)]

    def _as_computed(self, module: Module) -> Module:
        """What the target computes, for the CPU: 16-bit floats are rounded as its kernels round them."""
        return emulated(module) if self.backend.target.halves else module

    def rounding(self, module: Module) -> float | None:
        """What exact passes cost by reassociating sums, where that is more than the budget (a tiny one, or 0)."""
        if self.inputs.judge is None or self.orders.max_drop is None:
            return None
        drop = self.drop_of(module)
        return drop if drop > self.orders.max_drop else None


def applied(outcome: Outcome) -> list[int]:
    """Which steps changed the module."""
    return [index for index, step in enumerate(outcome.steps) if step.status == "applied"]


def why_unchanged(outcome: Outcome) -> str:
    """The first thing a pipeline that changed nothing has to say about it."""
    for step in outcome.steps:
        if step.status == "rolled back":
            return f"{step.spelling} was rolled back: {step.reason}"
    for step in outcome.steps:
        if step.result.notes and step.status == "unchanged":
            return step.result.notes[0]
    refused = [refusal.reason for step in outcome.steps for refusal in step.result.refusals]
    return f"nothing could be changed ({refused[0]})" if refused else "there was nothing to change"
