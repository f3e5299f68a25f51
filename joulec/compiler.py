"""Compiling one lowered module for one target: run the passes, measure what joulec chose, keep only what pays."""

from __future__ import annotations

from dataclasses import dataclass, replace

from joulec.backends.base import SessionSettings
from joulec.compile.activations import ACTIVATIONS, cheaper
from joulec.compile.bench import Bench, Book, Verdict, why_unchanged
from joulec.compile.bound import bound
from joulec.compile.exact import droppable, optimize_exactly
from joulec.compile.half import FLOAT16, halved
from joulec.compile.int8 import preparation, quantized
from joulec.compile.layout import LAYOUT, aligned
from joulec.compile.orders import DEFAULT_MAX_DROP, Inputs, Orders
from joulec.compile.removal import Removals, undecided
from joulec.compile.spending import spent
from joulec.compile.tuning import tuned
from joulec.compile.worth import Worth
from joulec.decisions import Decisions
from joulec.describe import step_report
from joulec.errors import BudgetError
from joulec.ir import walk
from joulec.ir.machine import cpu_name
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._qdq_graph import is_dequantize
from joulec.passes._quantizers import quantizes
from joulec.passes._statistics import has_data
from joulec.passes.pipeline import Outcome, Step
from joulec.passes.prune_blocks import PruneBlocks
from joulec.passes.prune_channels import PruneChannels
from joulec.passes.prune_magnitude import PruneMagnitude
from joulec.passes.quantize import Quantize
from joulec.payoff import Paired
from joulec.report.data import Latency

__all__ = ["DEFAULT_MAX_DROP", "Compiled", "Compiler", "Inputs", "Orders", "latency_of"]


@dataclass(frozen=True)
class Compiled:
    """The module to emit and everything there is to say about how it came to be."""

    module: Module
    steps: tuple[Step, ...]
    decisions: Decisions
    score: float | None
    notes: tuple[str, ...]
    session: SessionSettings | None = None
    """How the artefact is opened, where that was tuned."""
    verdict: Verdict | None = None
    """What the judge said of `module`, where there is one."""


class Compiler(Bench):
    """Compiles `base` for one backend; the arguments are those of `Bench`."""

    def compile(self) -> Compiled:
        """Run the pipeline, choose, and judge the result.

        Raises:
            BudgetError: what the user ordered costs more accuracy than the budget they gave.
        """
        self.book = Book()
        module = self._fitted(self._ordered() if self.orders.passes is not None else self._chosen())
        worth = None if self.recorded else self.against_input(module)
        if worth is not None and worth.worse and not self.orders.given:
            module, worth = self._undone(module, worth)
        paired = None if worth is None else worth.paired
        score = self._within_budget(module)
        verdict = None if self.inputs.judge is None else self.verdict(module)
        book = self.book
        if (fixed := bound(self, module)) is not None:
            book.keep(fixed)
            module = fixed.module
        self._say_where_nothing_is_left(module)
        session = tuned(self, module)
        decisions = self.recorded or Decisions(
            self.backend.target.name, tuple(book.excluded), book.int8, tuple(book.choices),
            tuple(book.dropped), None if paired is None else latency_of(paired), self.orders.spelled(), book.reasons,
            tuple(book.points), tuple(book.doubts), book.float16, None if session is None else session.to_json(),
            tuple(book.activations), tuple(book.costs), tuple(book.removals),
        )  # fmt: skip
        notes = tuple(dict.fromkeys((*book.notes, *decisions.doubts)))
        return Compiled(module, tuple(book.steps), decisions, score, notes, session, verdict)

    def _ordered(self) -> Module:
        passes = list(self.orders.passes or ())
        before = [*self.backend.legalization(), *self.backend.preferences()]
        if self.orders.int8 and not any(quantizes(one) for one in passes) and any(undecided(one) for one in passes):
            self.book.choose("passes", True, f"ordered: {spelling.spell(passes)}", ordered=True)
            return spent(self, self.base, [*before, *self.orders.obeyed(passes)])
        if self.orders.int8 and not any(quantizes(one) for one in passes):
            passes += [*preparation(self.base, Quantize()), Quantize()]
        orders = [*before, *self.orders.obeyed(passes)]
        module, passes = Removals(self, self.base).carry_out(orders, self.orders.max_drop)
        self.book.int8 = next((spelling.spell_pass(one) for one in passes if quantizes(one)), None)
        self.book.choose("passes", True, f"ordered: {spelling.spell(passes[len(before) :]) or 'none'}", ordered=True)
        return module

    def _chosen(self) -> Module:
        self._legalized = self.run(self.backend.legalization(), self.base)  # no choice of ours: never left out
        self.book.keep(self._legalized)
        module = self._pruned(optimize_exactly(self, self._legalized.module))
        prunings = [PruneBlocks(), PruneChannels()] if self.orders.prune else []
        module = spent(self, module, prunings) if prunings else quantized(self, module)
        return aligned(self, cheaper(self, module))

    def _fitted(self, module: Module) -> Module:
        """In the provider's form: legalization of what was chosen and ordered, so never left out; and 16-bit floats."""
        passes = self.backend.fitting()
        if not passes:
            return halved(self, module)
        outcome = self.run(passes, module)
        self.book.keep(outcome)
        return halved(self, outcome.module)

    def _say_where_nothing_is_left(self, module: Module) -> None:
        """Rules of the provider may bring back to float all that was quantized, once sizes are known."""
        book, target = self.book, self.backend.target.name
        if book.int8 is None or not self.backend.fitting() or any(map(is_dequantize, walk.nodes(module.model))):
            return
        why = f"but by {target}'s rules every operator is better in float at these sizes ('joulec lint --rules')"
        book.choices = [
            replace(one, kept=False, reason=f"{one.reason}, {why}") if one.what == "INT8" and one.kept else one
            for one in book.choices
        ]

    def _pruned(self, module: Module) -> Module:
        """With the share of weights that was ordered away: by magnitude times input where there are data, which over
        all networks of `benchmarks/pruning` costs least."""
        if self.orders.sparsity is None:
            return module
        one = PruneMagnitude(sparsity=self.orders.sparsity)
        outcome = self.run([replace(one, score="wanda") if has_data(self.context(module)) else one], module)
        self.book.keep(outcome)
        self.book.choose("pruning", _applied_last(outcome), self._said_of_pruning(outcome), ordered=True)
        return outcome.module

    def _said_of_pruning(self, outcome: Outcome) -> str:
        said = f"ordered: sparsity {self.orders.sparsity:g}; "
        if not _applied_last(outcome):
            return said + f"but {why_unchanged(outcome)}"
        zeros = f"zeros save storage when compressed, no energy and no time on {self.backend.target.name}"
        return f"{said}{zeros}; what saves both is removing whole channels and blocks (--prune)"

    def _undone(self, module: Module, worth: Worth) -> tuple[Module, Worth]:
        """The legal module alone, where all that was chosen together is worse than the input and it is not."""
        legal, book = self._legalized, self.book
        alone = self.against_input(legal.module)
        if alone.worse:
            return module, worth
        reason = f"all together {worth.would('the input')}"
        book.dropped += [step_report(step, reason) for step in book.steps[len(legal.steps) :]]
        book.steps, book.int8, book.float16, book.activations = list(legal.steps), None, None, []
        book.removals = []
        book.choices = [one for one in book.choices if one.what not in (LAYOUT, FLOAT16, ACTIVATIONS)]
        book.excluded = [spelling.spell_pass(one) for one in droppable(self)]
        book.choose("all passes", False, reason, worth)
        return legal.module, alone

    def _within_budget(self, module: Module) -> float | None:
        judge = self.inputs.judge
        if judge is None:
            return None
        drop = self.drop_of(module)
        self.book.notes += judge.notes
        score = judge.baseline - drop
        binding = self.orders.max_drop is not None and (self.orders.budget_given or not self.orders.spelled())
        if binding and self.orders.max_drop is not None and drop > self.orders.max_drop:
            ordered = ", ".join(self.orders.spelled())
            raise BudgetError(
                f"{judge.name} drops by {drop:.4f} ({judge.baseline:.4f} to {score:.4f}), the budget is "
                f"{self.orders.max_drop:g}; ordered: {ordered or 'nothing'}"
            )
        return score


def _applied_last(outcome: Outcome) -> bool:
    return outcome.steps[-1].status == "applied"


def latency_of(paired: Paired) -> Latency:
    """A paired timing as the report holds it, rounded so that a rebuild writes the same text."""
    return Latency(
        before_ms=round(paired.base_ms, 6), after_ms=round(paired.candidate_ms, 6), ratio=round(paired.ratio, 4),
        low=round(paired.low, 4), high=round(paired.high, 4), rounds=paired.rounds, threads=paired.threads,
        machine=cpu_name(),
    )  # fmt: skip
