"""16-bit floats, for targets that have kernels for them: within the accuracy budget as emulated, or not at all."""

from __future__ import annotations

import math

from joulec.compile.bench import Bench, why_unchanged
from joulec.compile.worth import Worth
from joulec.ir.module import Module
from joulec.passes import spelling
from joulec.passes.convert_float16 import ConvertFloat16
from joulec.passes.pipeline import Outcome

FLOAT16 = "float16"
ERRORS = (0.01, 0.001)
"""Errors of the outputs that are tried, the larger one first: where it costs too much of the metric, the smaller."""


def halved(bench: Bench, module: Module) -> Module:
    """`module` in float16 where that was ordered, recorded or keeps the budget; else as it is.

    On CUDA it must not cost energy either, as predicted: each cast is a kernel of its own there, and a small model can
    pay more for the two at its borders than it saves. TensorRT takes casts into its kernels.
    """
    if not bench.backend.target.halves or (bench.orders.passes is not None and not bench.orders.float16):
        return module
    if (refusal := _why_not(bench)) is not None:
        bench.book.choose(FLOAT16, False, refusal, ordered=bench.orders.float16 is not None)
        return module
    if bench.recorded is not None:
        return _repeated(bench, module, bench.recorded.float16)
    return _tried(bench, module)


def _why_not(bench: Bench) -> str | None:
    if bench.orders.float16 is False:
        return "forbidden by --no-float16"
    if bench.inputs.obstacle is not None:
        return "the input model does not run here, so its magnitudes are not known"
    if bench.inputs.feeds is None and not bench.orders.float16:
        return "no calibration data: --data would unlock float16"
    return None


def _repeated(bench: Bench, module: Module, spelled: str | None) -> Module:
    if spelled is None:
        return module
    outcome = bench.run(spelling.parse(spelled, {ConvertFloat16.pass_name(): ConvertFloat16}), module)
    bench.book.keep(outcome)
    return outcome.module


def _tried(bench: Bench, module: Module) -> Module:
    ordered = bool(bench.orders.float16)
    before, budget = bench.drop_of(module), bench.orders.max_drop
    allowed = math.inf if budget is None else max(budget, before)  # what INT8 spent by order is spent
    for error in ERRORS:
        bench.progress("emulating float16", None)
        outcome = bench.run([ConvertFloat16(max_error=error)], module)
        if outcome.steps[-1].status != "applied":
            bench.book.choose(FLOAT16, False, f"the model stays float32: {why_unchanged(outcome)}", ordered=ordered)
            return module
        if not ordered and bench.backend.target.name == "cuda":
            worth = bench.weigh(module, outcome.module)
            if worth.worse:
                return _left(bench, module, outcome, f"float16 {worth.would('float32')}", worth)
        drop = bench.drop_of(outcome.module)
        if drop <= allowed or (ordered and error == ERRORS[-1]):
            return _kept(bench, outcome, drop, error)
    reason = f"emulated, it costs {drop:.2g} points, the budget is {allowed:g}"
    return _left(bench, module, outcome, reason, None, drop)


def _left(
    bench: Bench, module: Module, outcome: Outcome, reason: str, worth: Worth | None, drop: float | None = None
) -> Module:
    bench.book.drop(outcome, reason)
    bench.book.choose(FLOAT16, False, f"the model stays float32: {reason}", worth, drop)
    return module


def _kept(bench: Bench, outcome: Outcome, drop: float, error: float) -> Module:
    bench.book.keep(outcome)
    bench.book.float16 = spelling.spell_pass(ConvertFloat16(max_error=error))
    ordered = bool(bench.orders.float16)
    said = "ordered with --float16" if ordered else "within the budget, emulated on the CPU with every value rounded"
    bench.book.choose(FLOAT16, True, f"{said}; {outcome.steps[-1].result.notes[-1]}", drop=drop, ordered=ordered)
    return outcome.module
