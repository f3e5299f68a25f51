"""Activations in the form whose kernels are fastest here: spelled out, and where the budget allows it, cheaper ones."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Sequence

from joulec.compile.bench import Bench
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes._activations import ACTIVATION_PASSES
from joulec.passes.base import Fidelity, Pass
from joulec.passes.cheapen_activations import KINDS, CheapenActivations
from joulec.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from joulec.passes.expand_activations import ExpandActivations
from joulec.passes.pipeline import Outcome
from joulec.passes.raise_patterns import RaisePatterns
from joulec.passes.upgrade_opset import UpgradeOpset

ACTIVATIONS = "activations"
"""What decisions about them are called."""

GELU = (UpgradeOpset(to=20), RaisePatterns())
"""Gelu is an operator from opset 20; ONNX Runtime's CPU provider fuses a spelled-out one with tanh nowhere."""

ALONE = 12
"""Activations of one kind that are judged one by one where all together cost too much."""


def cheaper(bench: Bench, module: Module) -> Module:
    """`module` with every change of its activations that is measured to be faster and within the budget."""
    if bench.recorded is not None:
        return _repeated(bench, module, bench.recorded.activations)
    if not bench.times_target:
        return module
    module = _exact(bench, _exact(bench, module, GELU), (ExpandActivations(), EliminateCommonSubexpressions()))
    for kind in KINDS if bench.inputs.judge is not None else ():
        module = _lossy(bench, module, kind)
    return module


def _repeated(bench: Bench, module: Module, kept: Sequence[str]) -> Module:
    for spelled in kept:
        outcome = bench.run(spelling.parse(spelled, ACTIVATION_PASSES), module)
        bench.book.keep(outcome)
        module = outcome.module
    return module


def _exact(bench: Bench, module: Module, passes: Sequence[Pass]) -> Module:
    """With passes that spell activations anew, where they do and that is faster."""
    outcome = bench.run(passes, module)
    if not _changes(outcome):
        return module
    return outcome.module if _pays(bench, module, outcome, passes, None) else module


def _changes(outcome: Outcome) -> bool:
    """Whether any pass did what it is here for; another opset, or merged constants, are no end in themselves."""
    helpers = {UpgradeOpset.pass_name(), EliminateCommonSubexpressions.pass_name()}
    return any(one.status == "applied" and one.spelling.split("{")[0] not in helpers for one in outcome.steps)


def _lossy(bench: Bench, module: Module, kind: str) -> Module:
    """With the activations of one kind replaced: all of them, or as many as the budget allows, or none."""
    passes: tuple[Pass, ...] = (*(GELU if kind == "gelu" else ()), CheapenActivations(kinds=(kind,)))
    outcome = bench.run(passes, module)
    if outcome.steps[-1].status != "applied":
        return module
    before, drop, judge = bench.drop_of(module), bench.drop_of(outcome.module), bench.inputs.judge
    if judge is not None and judge.blind:
        return module
    if drop > _allowed(bench, before):
        if not (names := _harmless(bench, module, outcome, passes, before)):
            bench.book.drop(outcome, _too_much(bench, drop))
            bench.book.choose(ACTIVATIONS, False, f"{kind}: {_too_much(bench, drop)}", None, drop)
            return module
        passes = (*passes[:-1], CheapenActivations(kinds=(kind,), nodes=names))
        outcome = bench.run(passes, module)
        drop = bench.drop_of(outcome.module)
    return outcome.module if _pays(bench, module, outcome, passes, drop) else module


def _allowed(bench: Bench, before: float) -> float:
    budget = bench.orders.max_drop
    return math.inf if budget is None else max(budget, before)  # what was ordered and spent is spent


def _too_much(bench: Bench, drop: float) -> str:
    return f"it drops {drop:.4f}, the budget is {bench.orders.max_drop:g}"


def _harmless(
    bench: Bench, module: Module, outcome: Outcome, passes: Sequence[Pass], before: float
) -> tuple[str, ...]:  # fmt: skip
    """Names of the activations that together keep the budget: the least harmful ones, as many as go.

    Each of the first `ALONE` is judged by itself, and the longest row of them that keeps the budget is found by
    bisection, as if the drop of a longer one were never smaller.
    """
    names = list(dict.fromkeys(_names(outcome)))[:ALONE]
    alone = {name: bench.drop_of(_only(bench, module, passes, (name,))) for name in names}
    ranked = sorted(names, key=lambda name: alone[name])
    low, high = 0, len(ranked)
    while low < high:
        middle = (low + high + 1) // 2
        drop = bench.drop_of(_only(bench, module, passes, ranked[:middle]))
        low, high = (middle, high) if drop <= _allowed(bench, before) else (low, middle - 1)
    return tuple(sorted(ranked[:low]))


def _names(outcome: Outcome) -> Iterator[str]:
    """Patterns of the nodes that the last pass replaced; a semicolon parts patterns, so that none can hold one."""
    for rewrite in outcome.steps[-1].result.rewrites:
        if ";" not in rewrite.node:
            yield glob.escape(rewrite.node)


def _only(bench: Bench, module: Module, passes: Sequence[Pass], names: Sequence[str]) -> Module:
    (*before, last) = passes
    if not isinstance(last, CheapenActivations):
        raise TypeError(f"{last} takes no names")
    return bench.run([*before, CheapenActivations(kinds=last.kinds, nodes=tuple(names))], module).module


def _pays(bench: Bench, module: Module, outcome: Outcome, passes: Sequence[Pass], drop: float | None) -> bool:
    """Keep what is measured to be faster, and write down why it is kept or not."""
    spelled = spelling.spell(passes)
    bench.progress("timing other activations", None)
    worth = bench.weigh(module, outcome.module)
    exact = all(one.fidelity is Fidelity.EXACT for one in passes)
    rounding = bench.rounding(outcome.module) if exact else None
    kept, lost = worth.better and rounding is None, "" if drop is None else f", drop {drop:.4f}"
    said = f"{spelled}: {worth.said('the model without')}{lost}"
    bench.book.choose(ACTIVATIONS, kept, said, worth, drop)
    if kept:
        bench.book.keep(outcome)
        bench.book.activations.append(spelled)
    else:
        bench.book.drop(outcome, said)
    return kept
