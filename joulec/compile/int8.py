"""INT8: faster than float and within the accuracy budget, or not at all; an order is carried out and said."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import onnx_ir as ir

from joulec.compile.bench import Bench, Verdict, why_unchanged
from joulec.compile.journal import Journal
from joulec.compile.rivals import best_of
from joulec.compile.search import Proposal, Search
from joulec.compile.worth import Worth, measured
from joulec.decisions import Decisions
from joulec.errors import JoulecError
from joulec.fidelity import too_few
from joulec.ir import walk
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._calibration_file import module_digest
from joulec.passes._quantizers import QUANTIZERS, REFINEMENTS
from joulec.passes.base import Pass
from joulec.passes.calibrate import Calibrate, not_quantizable
from joulec.passes.materialize_weights import MaterializeWeights, computes_weights
from joulec.passes.pipeline import Outcome
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic
from joulec.payoff import Paired
from joulec.report.data import Point

QUANTIZATIONS: tuple[Pass, ...] = (Quantize(), Quantize(only=("Conv", "ConvTranspose")), QuantizeDynamic())
"""Ways to quantize that joulec tries by itself, the most thorough first; the fastest within the budget is kept."""

RECURRENT = QuantizeDynamic(weights="tensor")
"""One more for models with LSTM: its kernel is 1.09x as fast with one scale for all weights of a direction (`python
benchmarks/int8 --cases "keras LSTM"`, AMD EPYC, one thread)."""


@dataclass(frozen=True)
class _Tried:
    """One way to quantize, and why it does not pay (None if it does)."""

    proposal: Proposal
    outcome: Outcome
    reason: str | None
    worth: Worth | None = None
    verdict: Verdict | None = None
    accurate: bool = False

    @property
    def applied(self) -> bool:
        """Whether anything was quantized."""
        return self.outcome.steps[-1].status == "applied"

    @property
    def drop(self) -> float | None:
        return None if self.verdict is None else self.verdict.drop


def quantized(bench: Bench, floating: Module) -> Module:
    """The float module quantized, where that was ordered, recorded or pays; else as it is."""
    refusal = _why_not(bench)
    if refusal is not None:
        bench.book.choose("INT8", False, refusal, ordered=bench.orders.int8 is not None)
        return floating
    if bench.recorded is not None:
        return _repeat(bench, floating, bench.recorded)
    return _insist(bench, floating) if bench.orders.int8 else _try_all(bench, floating)


def preparation(floating: Module, quantize: Pass) -> list[Pass]:
    """What must run before `quantize`: weights that nodes compute are stored, ranges that it needs are measured."""
    stored: list[Pass] = [MaterializeWeights()] if computes_weights(floating) else []
    return [*stored, Calibrate()] if isinstance(quantize, Quantize) else stored


def _why_not(bench: Bench) -> str | None:
    target = bench.backend.target
    if bench.orders.int8 is False:
        return "forbidden by --no-int8"
    if target.quantization is None:
        return f"{target.name} has no integer kernels for quantized graphs"
    if bench.inputs.obstacle is not None:
        return "the input model does not run here, so it cannot be calibrated"
    if bench.inputs.feeds is None and not (bench.orders.int8 and target.name == "cpu"):
        return "no calibration data: --data would unlock INT8"
    return None


def _repeat(bench: Bench, floating: Module, recorded: Decisions) -> Module:
    if recorded.int8 is None:
        return floating
    *refinements, quantize = spelling.parse(recorded.int8, {**REFINEMENTS, **QUANTIZERS})
    outcome = bench.run([*preparation(floating, quantize), *refinements, quantize], floating)
    bench.book.keep(Proposal(quantize, recorded.reasons).explained(outcome))
    bench.book.int8 = recorded.int8
    return outcome.module


def _insist(bench: Bench, floating: Module) -> Module:
    """INT8 as ordered: all of it, or as much as the accuracy budget allows where all is too much.

    Where no range can be calibrated, ranges are taken at each run.
    """
    trials = _Trials(bench, floating)
    tried = trials.attempt(Proposal(Quantize()), timed=False)
    why = "ordered with --int8"
    if not tried.applied:
        why = f"{why}, but {why_unchanged(tried.outcome)}"
        if bench.backend.target.name == "cpu":
            other = trials.attempt(Proposal(QuantizeDynamic()), timed=False)
            tried, why = (other, f"{why}; so with ranges taken at each run") if other.applied else (tried, why)
    elif not tried.accurate:
        fewer = next((one for one in trials.descend(timed=False) if one.accurate), tried)
        refined = tried if trials.late else trials.refine(tried, timed=False)
        tried = refined if refined.accurate else fewer
    bench.book.keep(tried.outcome)
    changed = tried.applied
    if tried.proposal.reasons:
        why += "; some operators stay float for the accuracy budget"
    _record(bench, tried, changed)
    bench.book.choose("INT8", changed, why, ordered=True)
    trials.note(tried)
    return tried.outcome.module


def _try_all(bench: Bench, floating: Module) -> Module:
    """The best quantization within the budget that is better than float, or none."""
    trials = _Trials(bench, floating)
    for quantize in _ways(bench, floating):
        trials.attempt(Proposal(quantize))
    trials.search()
    tried = trials.best() or trials.nearest()
    outcome, worth, drop = tried.outcome, tried.worth, tried.drop
    if tried.reason is not None or worth is None:
        reason = tried.reason or "not weighed"
        bench.book.drop(outcome, reason)
        stays = reason if reason == not_quantizable(floating) else f"the model stays float: {reason}"
        bench.book.choose("INT8", False, stays, worth, drop)
        trials.note(None)
        return floating
    bench.book.keep(outcome)
    _record(bench, tried, True)
    lost = "" if drop is None else f", drop {drop:.4f}"
    bench.book.choose("INT8", True, f"{worth.said('float')}{lost}", worth, drop)
    trials.note(tried)
    return outcome.module


def _ways(bench: Bench, floating: Module) -> tuple[Pass, ...]:
    """Those that the target has kernels for: only the CPU provider finds ranges at each run."""
    if bench.backend.target.name != "cpu":
        return QUANTIZATIONS[:-1]
    recurrent = any(walk.is_onnx(node, "LSTM") for node in walk.nodes(floating.model))
    return (*QUANTIZATIONS, RECURRENT) if recurrent else QUANTIZATIONS


def _record(bench: Bench, tried: _Tried, changed: bool) -> None:
    refined = map(spelling.spell_pass, tried.proposal.refinements)
    bench.book.int8 = ",".join((*refined, tried.outcome.steps[-1].spelling)) if changed else None
    bench.book.reasons = dict(tried.proposal.reasons) if changed else {}


class _Trials:
    """Ways to quantize one float module that were tried, each judged first and timed if it is accurate."""

    def __init__(self, bench: Bench, floating: Module) -> None:
        self._bench, self._floating = bench, floating
        self._prepared: dict[tuple[Pass, ...], Outcome] = {}
        self._made: dict[tuple[object, ...], _Tried] = {}
        self._search: Search | None = None
        path = bench.inputs.journal
        self._journal = Journal(path, "" if path is None else module_digest(floating))
        self.tried: list[_Tried] = []

    def best(self) -> _Tried | None:
        """The best of those that pay."""
        paying = [one for one in self.tried if one.reason is None]
        return best_of(self._bench, [(one.worth, one.outcome.module, one) for one in paying if one.worth is not None])

    def nearest(self) -> _Tried:
        """Where none pays: of those within the budget the fastest, else the one that loses least."""
        weighed = [one for one in self.tried if one.worth is not None]
        if weighed:
            return max(weighed, key=lambda one: one.worth.rank if one.worth is not None else 0.0)
        judged = [one for one in self.tried if one.drop is not None]
        return min(judged, key=lambda one: one.drop or 0.0) if judged else self.tried[0]

    @property
    def late(self) -> bool:
        """Whether the time for searching is over, or there is none."""
        search = self._searcher()
        return search is None or search.late

    def attempt(self, proposal: Proposal, timed: bool = True) -> _Tried:
        """Quantize as proposed, judge the result, and (where that is within the budget) weigh it against float."""
        before = self._prepare(proposal.quantize, proposal.refinements)
        made = proposal.explained(self._bench.run([proposal.quantize], before.module))
        outcome = replace(made, steps=(*before.steps, *made.steps), notes=(*before.notes, *made.notes))
        if outcome.steps[-1].status != "applied":
            return self._add(_Tried(proposal, outcome, why_unchanged(outcome)))
        nodes = Counter(f"{node.op_type} {node.name}" for node in outcome.module.graph)
        key = (proposal.refinements, getattr(proposal.quantize, "weights", None), *sorted(nodes.items()))
        if key not in self._made:
            self._made[key] = self._add(self._judged(proposal, outcome, timed))
        return self._made[key]

    def _prepare(self, quantize: Pass, refinements: tuple[Pass, ...] = ()) -> Outcome:
        """The float module with all that `quantize` needs, and its weights refined; made once."""
        passes = (*preparation(self._floating, quantize), *refinements)
        if passes not in self._prepared and refinements:
            before = self._prepare(quantize)
            made = self._bench.run(refinements, before.module)
            steps, notes = (*before.steps, *made.steps), (*before.notes, *made.notes)
            self._prepared[passes] = replace(made, steps=steps, notes=notes)
        elif passes not in self._prepared:
            self._prepared[passes] = self._bench.run(passes, self._floating)
        return self._prepared[passes]

    def _add(self, tried: _Tried) -> _Tried:
        self.tried.append(tried)
        return tried

    def _judged(self, proposal: Proposal, outcome: Outcome, timed: bool) -> _Tried:
        bench = self._bench
        try:
            verdict = None if bench.inputs.judge is None else self._verdict(proposal, outcome.module)
            reason = None if verdict is None else self._too_inaccurate(verdict)
            if reason is not None or not timed:
                return _Tried(proposal, outcome, reason, None, verdict, reason is None)
            worth = self._weighed(proposal, outcome.module)
        except JoulecError as error:
            return _Tried(proposal, outcome, str(error))
        reason = None if worth.better else f"INT8 {worth.would('float')}"
        return _Tried(proposal, outcome, reason, worth, verdict, True)

    def _verdict(self, proposal: Proposal, module: Module) -> Verdict:
        what = f"verdict of {proposal.spelled}"
        known = self._journal.recall(what, "drop", "bound", "samples")
        if known is not None and known["drop"] is not None:
            return Verdict(module, **known)
        found, judge = self._bench.verdict(module), self._bench.inputs.judge
        if judge is not None and not judge.blind:
            self._journal.note(what, drop=found.drop, bound=found.bound, samples=found.samples)
        return found

    def _weighed(self, proposal: Proposal, module: Module) -> Worth:
        if not self._bench.times_target:
            return self._bench.weigh(self._floating, module)
        what = f"timing of {proposal.spelled}"
        if (known := self._journal.recall(what, *Paired.__dataclass_fields__)) is not None:
            return measured(Paired(**known))
        self._bench.progress("timing INT8 against float", None)
        found = self._bench.weigh(self._floating, module)
        if found.paired is not None:
            self._journal.note(what, **asdict(found.paired))
        return found

    def _too_inaccurate(self, verdict: Verdict) -> str | None:
        judge, budget = self._bench.inputs.judge, self._bench.orders.max_drop
        already = self._drop_already_ordered()
        if budget is not None and verdict.drop - already > budget:
            return f"it drops {verdict.drop - already:.4f}, the budget is {budget:g}"
        if budget is not None and verdict.bound is not None and verdict.bound - already > budget:
            seen = f"it drops {verdict.drop - already:.4f} on {verdict.samples} samples"
            return f"{seen}, on others up to {verdict.bound - already:.4f}; the budget is {budget:g}"
        if judge is not None and judge.blind:
            return "its accuracy cannot be judged: the input model gives nothing but zeros or NaN"
        return None

    def _drop_already_ordered(self) -> float:
        """What the user's own orders cost: held against INT8 only where their budget binds everything."""
        if self._bench.orders.budget_given or self._bench.orders.sparsity is None:
            return 0.0
        return self._bench.drop_of(self._floating)

    # -- beyond the fixed ways ------------------------------------------------------------------------------

    def search(self) -> None:
        """Leave float what does not pay; where that is not accurate enough, what costs most accuracy too."""
        search = self._searcher()
        if search is None:
            return
        proposal = search.fastest()
        fastest = None if proposal is None or search.late else self.attempt(proposal)
        if proposal is None or (fastest is not None and fastest.accurate):
            return
        for tried in self.descend():
            if tried.accurate and search.late:
                return
        if fastest is not None and not search.late:
            self.refine(fastest)

    def refine(self, tried: _Tried, timed: bool = True) -> _Tried:
        """The same set with weights that are fitted to the data. Comes last: the statistics can take minutes."""
        kept = getattr(tried.proposal.quantize, "keep_float", ())
        refinements = tuple(one(keep_float=kept) for one in REFINEMENTS.values())
        return self.attempt(replace(tried.proposal, refinements=refinements), timed)

    def descend(self, timed: bool = True) -> Iterator[_Tried]:
        """Sets found by bisection: the fastest one within the budget, and the next more accurate one.

        Sets come from the fastest to the most accurate, so the first within the budget splits them in two.
        """
        search = self._searcher()
        proposals = [] if search is None else list(search.ever_more_accurate())
        low, high = 0, len(proposals)
        while search is not None and low < high and not search.late:
            middle = (low + high) // 2
            if self.attempt(proposals[middle], timed=False).accurate:
                high = middle
            else:
                low = middle + 1
        for proposal in proposals[high : high + 2]:
            yield self._timed(proposal) if timed else self.attempt(proposal, timed=False)

    def _timed(self, proposal: Proposal) -> _Tried:
        """What was judged before, timed too."""
        tried = self.attempt(proposal, timed=False)
        if not tried.accurate or tried.worth is not None:
            return tried
        again = self._judged(tried.proposal, tried.outcome, True)
        self.tried[self.tried.index(tried)] = again
        return again

    def _searcher(self) -> Search | None:
        """The search, where there is something to search in and a way to measure it."""
        full = next((one for one in self.tried if one.applied and isinstance(one.proposal.quantize, Quantize)), None)
        seconds = self._bench.orders.search_seconds
        if self._search is None and full is not None and self._bench.can_time and seconds > 0:
            deadline = time.monotonic() + seconds  # the fixed ways are beside it
            arguments = self._floating, self._prepare(Quantize()).module, full.outcome.module, deadline
            insist = bool(self._bench.orders.int8)
            self._search = Search(self._bench, *arguments, journal=self._journal, insist=insist)
        return self._search

    # -- what is said ---------------------------------------------------------------------------------------

    def note(self, kept: _Tried | None) -> None:
        """Put every set that was tried on record, and say what the data cannot promise."""
        search = None if kept is None else self._searcher()
        if search is not None and kept is not None and isinstance(kept.proposal.quantize, Quantize):
            self._bench.book.costs += search.costs()
        self._journal.close()
        budget, verdict = self._bench.orders.max_drop, None if kept is None else kept.verdict
        self._bench.book.points += [self._point(one, one is kept) for one in self.tried if one.verdict or one.worth]
        samples = None if verdict is None else verdict.samples
        if budget is None or samples is None or (needed := too_few(samples, budget)) is None:
            return
        said = f"{samples} samples are too few to promise a drop of at most {budget:g} on other data"
        self._bench.book.doubts.append(f"{said}: that takes {needed}")

    def _point(self, tried: _Tried, kept: bool) -> Point:
        verdict, module = tried.verdict, tried.outcome.module
        paired = None if tried.worth is None else tried.worth.paired
        point = Point(*self._in_integers(module), kept=kept, reason=tried.reason)
        joules = self._bench.energy.estimate(module, self._bench.inputs.shapes).total_joules
        if verdict is not None:
            point = replace(point, drop=round(verdict.drop, 6), bound=_rounded(verdict.bound))
        point = replace(point, joules=joules)
        if paired is None:
            return point
        return replace(point, ratio=round(paired.ratio, 4), low=round(paired.low, 4), high=round(paired.high, 4))

    def _in_integers(self, module: Module) -> tuple[int, int]:
        """How many operators with integer arithmetic read integers, and how many there are."""
        scheme = self._bench.backend.target.quantization
        nodes = [node for node in module.graph if scheme is not None and walk.is_onnx(node, *scheme.compute)]
        return sum(all(map(_is_dequantized, node.inputs[:2])) for node in nodes), len(nodes)


def _is_dequantized(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    return producer is not None and walk.is_onnx(producer, "DequantizeLinear")


def _rounded(points: float | None) -> float | None:
    return None if points is None else round(points, 6)
