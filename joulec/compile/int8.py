"""INT8: faster than float and within the accuracy budget, or not at all; an order is carried out and said."""

from __future__ import annotations

from dataclasses import dataclass

from joulec.compile.bench import Bench, why_unchanged
from joulec.decisions import Decisions
from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._quantizers import QUANTIZERS
from joulec.passes.base import Pass
from joulec.passes.calibrate import Calibrate
from joulec.passes.materialize_weights import MaterializeWeights, computes_weights
from joulec.passes.pipeline import Outcome
from joulec.passes.quantize import Quantize
from joulec.passes.quantize_dynamic import QuantizeDynamic
from joulec.payoff import Paired

QUANTIZATIONS: tuple[Pass, ...] = (Quantize(), Quantize(only=("Conv", "ConvTranspose")), QuantizeDynamic())
"""Ways to quantize that joulec tries by itself, the most thorough first; the fastest within the budget is kept."""


@dataclass(frozen=True)
class _Tried:
    """One way to quantize, and why it does not pay (None if it does)."""

    outcome: Outcome
    reason: str | None
    paired: Paired | None = None
    drop: float | None = None


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
    if bench.orders.int8 is None and target.name != "cpu" and bench.recorded is None:
        return f"joulec cannot measure {target.name} here, so it does not choose INT8 by itself; --int8 orders it"
    return None


def _repeat(bench: Bench, floating: Module, recorded: Decisions) -> Module:
    if recorded.int8 is None:
        return floating
    (quantize,) = spelling.parse(recorded.int8, QUANTIZERS)
    outcome = bench.run([*preparation(floating, quantize), quantize], floating)
    bench.book.keep(outcome)
    bench.book.int8 = recorded.int8
    return outcome.module


def _insist(bench: Bench, floating: Module) -> Module:
    """What was ordered: INT8 with calibrated ranges; where none can be, with those of each run."""
    outcome = bench.run([*preparation(floating, Quantize()), Quantize()], floating)
    changed = outcome.steps[-1].status == "applied"
    why = "ordered with --int8" if changed else f"ordered with --int8, but {why_unchanged(outcome)}"
    if not changed and bench.backend.target.name == "cpu":
        other = bench.run([*preparation(floating, QuantizeDynamic()), QuantizeDynamic()], floating)
        if other.steps[-1].status == "applied":
            why, outcome, changed = f"{why}; so with ranges taken at each run", other, True
    bench.book.keep(outcome)
    bench.book.int8 = outcome.steps[-1].spelling if changed else None
    bench.book.choose("INT8", changed, why, ordered=True)
    return outcome.module


def _try_all(bench: Bench, floating: Module) -> Module:
    best: _Tried | None = None
    failed: list[_Tried] = []
    counts: set[int] = set()
    for quantize in QUANTIZATIONS:
        outcome = bench.run([*preparation(floating, quantize), quantize], floating)
        count = outcome.module.node_count()
        if outcome.steps[-1].status != "applied" or count in counts:
            failed.append(_Tried(outcome, why_unchanged(outcome)))
            continue
        counts.add(count)
        tried = _judged(bench, floating, outcome)
        if tried.reason is not None or tried.paired is None:
            failed.append(tried)
        elif best is None or best.paired is None or tried.paired.ratio > best.paired.ratio:
            best = tried
    return _settle(bench, floating, best or failed[0])


def _settle(bench: Bench, floating: Module, tried: _Tried) -> Module:
    outcome, paired, drop = tried.outcome, tried.paired, tried.drop
    if tried.reason is not None or paired is None:
        reason = tried.reason or "not timed"
        bench.book.drop(outcome, reason)
        bench.book.choose("INT8", False, f"the model stays float: {reason}", paired, drop)
        return floating
    bench.book.keep(outcome)
    bench.book.int8 = outcome.steps[-1].spelling
    lost = "" if drop is None else f", drop {drop:.4f}"
    bench.book.choose("INT8", True, f"{paired} the speed of float{lost}", paired, drop)
    return outcome.module


def _judged(bench: Bench, floating: Module, outcome: Outcome) -> _Tried:
    """A quantized module within the budget, and timed against float; or the reason why not."""
    module, judge, budget = outcome.module, bench.inputs.judge, bench.orders.max_drop
    try:
        drop = None if judge is None else bench.drop_of(module)
        spent = (drop or 0.0) - _drop_already_ordered(bench, floating)
        if budget is not None and spent > budget:
            return _Tried(outcome, f"it drops {spent:.4f}, the budget is {budget:g}", None, drop)
        if judge is not None and judge.blind:
            reason = "its accuracy cannot be judged: the input model gives nothing but zeros or NaN"
            return _Tried(outcome, reason, None, drop)
        bench.progress("timing INT8 against float", None)
        paired = bench.time(floating, module)
    except JoulecError as error:
        return _Tried(outcome, str(error))
    return _Tried(outcome, None if paired.faster else f"INT8 would run at {paired} the speed of float", paired, drop)


def _drop_already_ordered(bench: Bench, floating: Module) -> float:
    """What the user's own orders cost: held against INT8 only where their budget binds everything."""
    if bench.orders.budget_given or bench.orders.sparsity is None:
        return 0.0
    return bench.drop_of(floating)
