"""Compiling one lowered module for one target: run the passes, measure what joulec chose, keep only what pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from joulec.accuracy import Judge
from joulec.backends.base import Backend
from joulec.decisions import Decisions, decision_of
from joulec.describe import step_report
from joulec.energy.model import EnergyModel
from joulec.errors import BudgetError, InputError, JoulecError
from joulec.ir.feeds import Feed, Feeds
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.passes import spelling
from joulec.passes.base import Context, Pass
from joulec.passes.calibrate import Calibrate
from joulec.passes.default import exact_passes
from joulec.passes.pipeline import Observer, Outcome, Pipeline, Step
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.quantize import Quantize
from joulec.payoff import Paired, confirm_slower, time_pair
from joulec.report.data import Decision, Latency, StepReport

DEFAULT_MAX_DROP = 0.01
"""The accuracy budget in absolute points when the user orders nothing."""

QUANTIZATIONS: tuple[Quantize, ...] = (Quantize(), Quantize(only=("Conv", "ConvTranspose")))
"""Ways to quantize that joulec tries by itself, the most thorough first; the fastest within the budget is kept."""


LAYOUT = "layout"
"""What the decision about `Backend.layouts` is called."""


@dataclass(frozen=True)
class Orders:
    """What the user ordered; None means that joulec chooses.

    Attributes:
        passes: replaces the default list.
        sparsity: share of weights to prune.
        int8: insist on INT8, forbid it, or leave it to joulec.
        max_drop: the accuracy budget in absolute points; None switches it off.
        budget_given: whether `max_drop` is the user's own, so that it binds what they ordered too.
    """

    passes: tuple[Pass, ...] | None = None
    sparsity: float | None = None
    int8: bool | None = None
    max_drop: float | None = DEFAULT_MAX_DROP
    budget_given: bool = False

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise InputError(f"sparsity must lie between 0 and 1, not {self.sparsity}")
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise InputError(f"max_drop must be a number of points from 0 up, or None, not {self.max_drop}")
        if self.passes is None:
            return
        if self.sparsity is not None:
            raise InputError("--sparsity and --passes: write prune-magnitude{sparsity=...} into --passes instead")
        if self.int8 is False and any(isinstance(one, Quantize) for one in self.passes):
            raise InputError("--no-int8 and --passes contradict each other: --passes holds quantize")

    @property
    def given(self) -> bool:
        """Whether anything was ordered that must be carried out even if it is slower."""
        return self.passes is not None or self.sparsity is not None or self.int8 is True

    def spelled(self) -> tuple[str, ...]:
        """The orders in the spelling of the command line, for the report."""
        said = []
        if self.passes is not None:
            said.append(f"--passes {spelling.spell(self.passes)}")
        if self.sparsity is not None:
            said.append(f"--sparsity {self.sparsity:g}")
        if self.int8 is not None:
            said.append("--int8" if self.int8 else "--no-int8")
        if self.budget_given:
            said.append("--max-drop none" if self.max_drop is None else f"--max-drop {self.max_drop:g}")
        return tuple(said)


@dataclass(frozen=True)
class Inputs:
    """What a module is judged on.

    Attributes:
        feeds: calibration data, or None.
        probes: a few feeds for comparing and timing; may be made up.
        shapes: sizes of symbolic dimensions.
        judge: scores accuracy, or None.
        obstacle: why the input model does not run here, or None. Where it does not, there are no probes, and nothing
            is compared, timed, calibrated or judged.
    """

    feeds: Feeds | None
    probes: Sequence[Feed]
    shapes: Mapping[str, int | tuple[int, ...]]
    judge: Judge | None
    obstacle: str | None = None


@dataclass(frozen=True)
class Compiled:
    """The module to emit and everything there is to say about how it came to be."""

    module: Module
    steps: tuple[Step, ...]
    decisions: Decisions
    score: float | None
    notes: tuple[str, ...]


@dataclass
class _Trail(Observer):
    """Keeps the module after each pass, for finding the one that made the model slower."""

    modules: list[Module] = field(default_factory=list)

    def after_pass(self, index: int, total: int, step: Step, module: Module) -> None:
        self.modules.append(module)


@dataclass
class Compiler:
    """Compiles `base` for one backend.

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

    def compile(self) -> Compiled:
        """Run the pipeline, choose, and judge the result.

        Raises:
            BudgetError: what the user ordered costs more accuracy than the budget they gave.
        """
        self._notes: list[str] = []
        self._steps: list[Step] = []
        self._dropped: list[StepReport] = []
        self._choices: list[Decision] = []
        self._excluded: list[str] = []
        self._int8: str | None = None
        self._drops: dict[int, tuple[Module, float]] = {}
        module = self._ordered() if self.orders.passes is not None else self._chosen()
        paired = None if self.recorded else self._against_input(module)
        if paired is not None and paired.slower and not self.orders.given:
            module, paired = self._undone(module, paired)
        score = self._within_budget(module)
        decisions = self.recorded or Decisions(
            self.backend.target.name, tuple(self._excluded), self._int8, tuple(self._choices), tuple(self._dropped),
            None if paired is None else latency_of(paired), self.orders.spelled(),
        )  # fmt: skip
        return Compiled(module, tuple(self._steps), decisions, score, tuple(dict.fromkeys(self._notes)))

    def _against_input(self, module: Module) -> Paired | None:
        """The whole build against the input model, which this machine can time for the CPU only."""
        if not self._can_time() or self.backend.target.name != "cpu":
            return None
        self.progress("timing the result against the input", None)
        shipped, feed = self.backend.finished(module), self.inputs.probes[0]
        return confirm_slower(self.runner, self.base, shipped, feed, self._options())

    def _undone(self, module: Module, paired: Paired) -> tuple[Module, Paired]:
        """The legal module alone, where all that was chosen together is slower than the input and it is not."""
        legal = self._legalized
        alone = self._against_input(legal.module)
        if alone is None or alone.slower:
            return module, paired
        reason = f"all together would run at {paired} the speed of the input"
        self._dropped += [step_report(step, reason) for step in self._steps[len(legal.steps) :]]
        self._steps, self._int8 = list(legal.steps), None
        self._choices = [one for one in self._choices if one.what != LAYOUT]
        self._excluded = [spelling.spell_pass(one) for one in self._droppable()]
        self._choices.append(_measured("all passes", False, reason, paired))
        return legal.module, alone

    # -- what is run ----------------------------------------------------------------------------------------

    def _ordered(self) -> Module:
        passes = list(self.orders.passes or ())
        if self.orders.int8 and not any(isinstance(one, Quantize) for one in passes):
            passes += [Calibrate(), Quantize()]
        self._int8 = next((spelling.spell_pass(one) for one in passes if isinstance(one, Quantize)), None)
        outcome = self._run([*self.backend.legalization(), *self.backend.preferences(), *passes], self.base)
        self._keep(outcome)
        self._choices.append(decision_of("passes", True, True, f"ordered: {spelling.spell(passes) or 'none'}"))
        return outcome.module

    def _chosen(self) -> Module:
        module = self._exact()
        if self.orders.sparsity is not None:
            outcome = self._run([PruneMagnitude(sparsity=self.orders.sparsity)], module)
            self._keep(outcome)
            pruned = outcome.steps[-1].status == "applied"
            said = f"ordered: sparsity {self.orders.sparsity:g}; "
            said += (
                f"zeros save storage when compressed, no energy on {self.backend.target.name}"
                if pruned
                else f"but {_why_unchanged(outcome)}"
            )
            self._choices.append(decision_of("pruning", pruned, True, said))
            module = outcome.module
        return self._aligned(self._quantized(module))

    def _run(self, passes: Sequence[Pass], module: Module, *more: Observer) -> Outcome:
        context = Context(
            target=self.backend.target,
            feeds=self.inputs.feeds,
            probes=self.inputs.probes,
            obstacle=self.inputs.obstacle,
            bindings=self.inputs.shapes,
            runner=self.runner,
            energy=self.energy,
            progress=self.progress,
        )
        return Pipeline(passes, [*self.observers, *more]).run(module, context)

    def _keep(self, outcome: Outcome) -> None:
        self._steps += outcome.steps
        self._notes += outcome.notes

    def _drop(self, outcome: Outcome, reason: str) -> None:
        """Record passes that were run and then undone."""
        self._dropped += [step_report(step, reason) for step in outcome.steps]

    # -- exact passes: not slower than without them ---------------------------------------------------------------

    def _exact(self) -> Module:
        self._legalized = self._run(self.backend.legalization(), self.base)  # no choice of ours: never left out
        self._keep(self._legalized)
        droppable, legal = self._droppable(), self._legalized.module
        excluded = list(self.recorded.excluded) if self.recorded else []
        while True:
            trail = _Trail()
            passes = [one for one in droppable if spelling.spell_pass(one) not in excluded]
            outcome = self._run(passes, legal, trail)
            slower = None if self.recorded else self._slower(legal, outcome)
            if slower is None:
                break
            culprit = self._culprit(legal, outcome, trail)
            reason = f"{culprit} made the model slower: {slower} the speed without"
            self._choices.append(_measured("pass " + culprit, False, reason, slower))
            excluded.append(culprit)
        if self.recorded is None and (drop := self._rounding(outcome.module)) is not None:
            excluded = [spelling.spell_pass(one) for one in droppable]
            reason = f"rounding alone costs {drop:.2g} points, the budget is {self.orders.max_drop:g}"
            self._choices.append(decision_of("exact passes", False, False, reason, drop=drop))
            outcome = self._run([], legal)
        self._keep(outcome)
        self._excluded = excluded
        return outcome.module

    def _droppable(self) -> list[Pass]:
        return [*self.backend.preferences(), *exact_passes()]

    def _rounding(self, module: Module) -> float | None:
        """What exact passes cost by reassociating sums, where that is more than the budget (a tiny one, or 0)."""
        if self.inputs.judge is None or self.orders.max_drop is None:
            return None
        drop = self._drop_of(module)
        return drop if drop > self.orders.max_drop else None

    def _drop_of(self, module: Module) -> float:
        """The drop of a module, judged once: a metric can take minutes."""
        if self.inputs.judge is None:
            return 0.0
        if id(module) not in self._drops:
            self._drops[id(module)] = (module, self.inputs.judge.drop(module))  # the module keeps its id from reuse
        return self._drops[id(module)][1]

    def _slower(self, legal: Module, outcome: Outcome) -> Paired | None:
        """The timing if it shows, and a longer one confirms, that the passes made the legal module slower."""
        if not self._can_time() or not _applied(outcome):
            return None
        self.progress("timing the exact passes", None)
        pair, feed = self._shipped(legal, outcome.module), self.inputs.probes[0]
        paired = confirm_slower(self.runner, *pair, feed, self._options())
        return paired if paired.slower else None

    def _culprit(self, legal: Module, outcome: Outcome, trail: _Trail) -> str:
        """The first pass after which the module is slower, by bisection over the passes that changed it."""
        applied = _applied(outcome)
        low, high = 0, len(applied) - 1
        while low < high:
            middle = (low + high) // 2
            candidate = trail.modules[applied[middle]]
            paired = time_pair(self.runner, *self._shipped(legal, candidate), self.inputs.probes[0], self._options())
            low, high = (low, middle) if paired.slower else (middle + 1, high)
        return outcome.steps[applied[low]].spelling

    def _shipped(self, base: Module, candidate: Module) -> tuple[Module, Module]:
        return self.backend.finished(base), self.backend.finished(candidate)

    def _can_time(self) -> bool:
        return bool(self.inputs.probes)

    def _options(self) -> SessionOptions:
        return self.backend.settings(self.threads).options(self.base.origin.custom_ops)

    # -- INT8: faster than float, within the budget --------------------------------------------------------------

    def _quantized(self, floating: Module) -> Module:
        refusal = self._why_not_int8()
        if refusal is not None:
            self._choices.append(decision_of("INT8", False, self.orders.int8 is not None, refusal))
            return floating
        if self.recorded is not None:
            return self._repeat(floating, self.recorded)
        if self.orders.int8:
            return self._insist(floating)
        return self._try_all(floating)

    def _why_not_int8(self) -> str | None:
        target = self.backend.target
        if self.orders.int8 is False:
            return "forbidden by --no-int8"
        if target.quantization is None:
            return f"{target.name} has no integer kernels for quantized graphs"
        if self.inputs.obstacle is not None:
            return "the input model does not run here, so it cannot be calibrated"
        if self.inputs.feeds is None:
            return "no calibration data: --data would unlock INT8"
        if self.orders.int8 is None and target.name != "cpu" and self.recorded is None:
            return f"joulec cannot measure {target.name} here, so it does not choose INT8 by itself; --int8 orders it"
        return None

    def _repeat(self, floating: Module, recorded: Decisions) -> Module:
        if recorded.int8 is None:
            return floating
        (quantize,) = spelling.parse(recorded.int8, {Quantize.pass_name(): Quantize})
        outcome = self._run([Calibrate(), quantize], floating)
        self._keep(outcome)
        self._int8 = recorded.int8
        return outcome.module

    def _insist(self, floating: Module) -> Module:
        outcome = self._run([Calibrate(), Quantize()], floating)
        self._keep(outcome)
        changed = outcome.steps[-1].status == "applied"
        why = "ordered with --int8" if changed else f"ordered with --int8, but {_why_unchanged(outcome)}"
        self._int8 = spelling.spell_pass(Quantize()) if changed else None
        self._choices.append(decision_of("INT8", changed, True, why))
        return outcome.module

    def _try_all(self, floating: Module) -> Module:
        best: tuple[Outcome, Paired, float | None] | None = None
        failed: list[tuple[Outcome, str, Paired | None, float | None]] = []
        tried: set[int] = set()
        for quantize in QUANTIZATIONS:
            outcome = self._run([Calibrate(), quantize], floating)
            count = outcome.module.node_count()
            if outcome.steps[-1].status != "applied" or count in tried:
                failed.append((outcome, _why_unchanged(outcome), None, None))
                continue
            tried.add(count)
            reason, paired, drop = self._pays(floating, outcome.module)
            if reason is not None or paired is None:
                failed.append((outcome, reason or "not timed", paired, drop))
            elif best is None or paired.ratio > best[1].ratio:
                best = (outcome, paired, drop)
        return self._settle(floating, best, failed)

    def _settle(
        self,
        floating: Module,
        best: tuple[Outcome, Paired, float | None] | None,
        failed: list[tuple[Outcome, str, Paired | None, float | None]],
    ) -> Module:
        if best is None:
            outcome, reason, paired, drop = failed[0]
            self._drop(outcome, reason)
            self._choices.append(_measured("INT8", False, f"the model stays float: {reason}", paired, drop))
            return floating
        outcome, paired, drop = best
        self._keep(outcome)
        self._int8 = outcome.steps[-1].spelling
        lost = "" if drop is None else f", drop {drop:.4f}"
        self._choices.append(_measured("INT8", True, f"{paired} the speed of float{lost}", paired, drop))
        return outcome.module

    def _pays(self, floating: Module, module: Module) -> tuple[str | None, Paired | None, float | None]:
        """Why INT8 does not pay (None if it does), its timing against float, and its drop."""
        try:
            drop = None if self.inputs.judge is None else self._drop_of(module)
            spent = (drop or 0.0) - self._drop_already_ordered(floating)
            if self.orders.max_drop is not None and spent > self.orders.max_drop:
                return f"it drops {spent:.4f}, the budget is {self.orders.max_drop:g}", None, drop
            if self.inputs.judge is not None and self.inputs.judge.blind:
                return "its accuracy cannot be judged: the input model gives nothing but zeros or NaN", None, drop
            self.progress("timing INT8 against float", None)
            paired = time_pair(self.runner, *self._shipped(floating, module), self.inputs.probes[0], self._options())
        except JoulecError as error:
            return str(error), None, None
        return (None if paired.faster else f"INT8 would run at {paired} the speed of float"), paired, drop

    def _drop_already_ordered(self, floating: Module) -> float:
        """What the user's own orders cost: held against INT8 only where their budget binds everything."""
        if self.orders.budget_given or self.orders.sparsity is None:
            return 0.0
        return self._drop_of(floating)

    # -- layout: what only the processor at hand can say ----------------------------------------------------------

    def _aligned(self, module: Module) -> Module:
        """Float images in the blocks of the runtime's kernels, where that is faster here."""
        passes = [] if self._int8 is not None or self.orders.sparsity is not None else self.backend.layouts()
        known = self.recorded and any(one.what == LAYOUT and one.kept for one in self.recorded.decisions)
        if not passes or known is False or (known is None and not self._can_time()):
            return module
        outcome = self._run(passes, module)
        if outcome.steps[0].status != "applied" or not (known or self._faster(module, outcome)):
            return module
        self._keep(outcome)
        return outcome.module

    def _faster(self, module: Module, outcome: Outcome) -> bool:
        pair = self._shipped(module, outcome.module)
        paired = time_pair(self.runner, *pair, self.inputs.probes[0], self._options())
        said = f"{outcome.steps[0].spelling} runs at {paired} the speed without"
        kept = paired.faster and self._rounding(outcome.module) is None
        self._choices.append(_measured(LAYOUT, kept, said, paired))
        if not kept:
            self._drop(outcome, said)
        return kept

    # -- the budget ------------------------------------------------------------------------------------------

    def _within_budget(self, module: Module) -> float | None:
        judge = self.inputs.judge
        if judge is None:
            return None
        drop = self._drop_of(module)
        self._notes += judge.notes
        score = judge.baseline - drop
        binding = self.orders.max_drop is not None and (self.orders.budget_given or not self.orders.spelled())
        if binding and self.orders.max_drop is not None and drop > self.orders.max_drop:
            ordered = ", ".join(self.orders.spelled())
            raise BudgetError(
                f"{judge.name} drops by {drop:.4f} ({judge.baseline:.4f} to {score:.4f}), the budget is "
                f"{self.orders.max_drop:g}; ordered: {ordered or 'nothing'}"
            )
        return score


def _applied(outcome: Outcome) -> list[int]:
    """Which steps changed the module."""
    return [index for index, step in enumerate(outcome.steps) if step.status == "applied"]


def _measured(what: str, kept: bool, reason: str, paired: Paired | None, drop: float | None = None) -> Decision:
    numbers = {} if paired is None else {"ratio": paired.ratio, "low": paired.low, "high": paired.high}
    return decision_of(what, kept, False, reason, drop=drop, **numbers)


def _why_unchanged(outcome: Outcome) -> str:
    """The first thing a pipeline that changed nothing has to say about it."""
    for step in outcome.steps:
        if step.status == "rolled back":
            return f"{step.spelling} was rolled back: {step.reason}"
    for step in outcome.steps:
        if step.result.notes and step.status == "unchanged":
            return step.result.notes[0]
    refused = [refusal.reason for step in outcome.steps for refusal in step.result.refusals]
    return f"nothing could be changed ({refused[0]})" if refused else "there was nothing to change"


def latency_of(paired: Paired) -> Latency:
    """A paired timing as the report holds it, rounded so that a rebuild writes the same text."""
    return Latency(
        before_ms=round(paired.base_ms, 6), after_ms=round(paired.candidate_ms, 6), ratio=round(paired.ratio, 4),
        low=round(paired.low, 4), high=round(paired.high, 4), rounds=paired.rounds, threads=paired.threads,
    )  # fmt: skip
