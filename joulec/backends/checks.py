"""Rungs of the ladder of evidence that need no device: the file itself, its opsets, what ONNX Runtime makes of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from joulec.backends.base import MODEL_FILE, Artefact, Backend, Rung
from joulec.backends.placement import forecast
from joulec.energy import load_profile
from joulec.errors import JoulecError
from joulec.ir.feeds import Feed
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import first_line
from joulec.passes._half_emulation import emulated
from joulec.passes._outputs import distance, outputs_of
from joulec.passes._qdq_lint import ERROR, NOTE, WARNING, lint
from joulec.passes.target import Target


def checker(directory: Path, known_problem: str | None) -> Rung:
    """onnx.checker with full_check (strict shape inference) on the emitted file.

    What the input declares of its outputs is kept, also where it is wrong; runtimes warn about it and go on.

    Args:
        directory: the artefact.
        known_problem: what the checker already said about the input model, which is not held against the artefact.
    """
    try:
        onnx.checker.check_model(str(directory / MODEL_FILE), full_check=True)
    except Exception as error:  # noqa: BLE001 - the checker raises several unrelated types
        problem = first_line(error)
        if known_problem is not None:
            return Rung("onnx checker", "skipped", f"the input model fails it too: {known_problem}")
        if _holds_without_declared_outputs(directory / MODEL_FILE):
            return Rung("onnx checker", "skipped", f"the input model declares outputs of another shape: {problem}")
        return Rung("onnx checker", "failed", problem)
    return Rung("onnx checker", "passed", "full check, strict shape inference")


def _holds_without_declared_outputs(path: Path) -> bool:
    """Whether strict shape inference has nothing else against the file than the shapes of its outputs."""
    proto = onnx.load(path, load_external_data=False)
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except Exception:  # noqa: BLE001 - onnx raises several unrelated types; all mean that it does not hold
        return False
    return True


def pinned(module: Module, directory: Path, target: Target) -> Rung:
    """The opset and IR version of the emitted file are the target's, or the module's where it needs newer ones."""
    proto = onnx.load(directory / MODEL_FILE, load_external_data=False)
    opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
    said = f"opset {opset}, IR {proto.ir_version}"
    if opset == target.opset and proto.ir_version == target.ir_version:
        return Rung("opset and IR", "passed", said)
    return Rung("opset and IR", "passed", f"{said}; {target.name}'s own are {target.opset} and {target.ir_version}")


def quantized_kernels(emitted: Module, runner: Runner, options: SessionOptions, *, ours: bool) -> Rung:
    """How many integer kernels ONNX Runtime's own optimized graph holds, if the emitted model holds Q/DQ.

    Args:
        emitted: the model as read back.
        runner: asks ONNX Runtime.
        options: how the artefact is opened.
        ours: joulec quantized it; an input that was quantized before may have no integer kernel at all.
    """
    if not any(node.op_type == "QuantizeLinear" for node in emitted.graph):
        return Rung("integer kernels", "skipped", "no INT8 in this artefact")
    try:
        kernels = runner.kernels(emitted, options)
    except JoulecError as error:
        return Rung("integer kernels", "failed", str(error))
    integer = {op: n for op, n in sorted(kernels.items()) if op.startswith("QLinear") or op in _INTEGER}
    left = kernels["QuantizeLinear"] + kernels["DequantizeLinear"]
    counts = ", ".join(f"{n} {op}" for op, n in integer.items()) or "none"
    status = "passed" if integer else "failed" if ours else "skipped"
    return Rung("integer kernels", status, f"{counts}; {left} Q/DQ left at the borders")


def linted(emitted: Module, backend: Backend) -> Rung:
    """The rules of the target: an error of an artefact's own is one that legalization left."""
    found = [one for one in lint(emitted.clone(), backend.kernels) if one.rule != "no-kernel"]
    counts = Counter(one.severity for one in found)
    said = ", ".join(f"{counts[kind]} {kind}s" for kind in (ERROR, WARNING, NOTE) if counts[kind]) or "nothing found"
    if not counts[ERROR]:
        return Rung("lint", "passed", said)
    first = next(one for one in found if one.severity == ERROR)
    return Rung("lint", "failed", f"{said}: {first.rule} at {first.node}: {first.message}", binding=False)


FLOAT_ERROR, HALF_ERROR, INTEGER_ERROR = 1e-3, 2e-2, 0.1
"""How far the worst output may be off, as norms: rounding of reassociated sums, of 16-bit values, of 8-bit ones."""


FIRST = 4
"""Feeds that are compared first. Where they disagree all feeds decide: of four classifications one on the border
between two classes weighs more than the model."""


def numerics(written: Module, emitted: Artefact, options: SessionOptions) -> Rung:
    """The artefact's outputs against the input model's, on the CPU, with 16-bit floats rounded.

    Quantized models are run with ONNX Runtime's optimizations disabled too: then Q and DQ compute what they say, and
    no fused kernel stands in for them.
    """
    if emitted.reference is None or not emitted.feeds:
        return Rung("CPU numerics", "skipped", emitted.obstacle or "no feeds that fit the artefact")
    computed = emulated(written)
    quantized = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in written.graph)
    same = math.inf if emitted.spent else FLOAT_ERROR  # what was pruned or cheapened is for the budget to judge
    limit = INTEGER_ERROR if quantized else same if computed is written else HALF_ERROR
    if emitted.module.masks:
        limit = math.inf
    runs = {"": options, **({"unoptimized ": replace(options, optimization="none")} if quantized else {})}
    feeds, before = emitted.feeds[:FIRST], ""
    try:
        found = _distances(emitted, computed, feeds, runs)
        if max(found.values()) > limit and len(emitted.feeds) > FIRST:
            feeds, before = emitted.feeds, f"; on the first {FIRST}: {_spelled(found)}"
            found = _distances(emitted, computed, feeds, runs)
    except JoulecError as error:
        return Rung("CPU numerics", "skipped", str(error))
    bound = "for the accuracy budget to judge" if limit == math.inf else f"at most {limit:g}"
    detail = f"worst output off by {_spelled(found)} ({bound}; {len(feeds)} feeds, {emitted.source}{before})"
    return Rung("CPU numerics", "passed" if max(found.values()) <= limit else "failed", detail, binding=False)


def _distances(
    emitted: Artefact, computed: Module, feeds: Sequence[Feed], runs: Mapping[str, SessionOptions]
) -> dict[str, float]:
    """How far the worst output is off, by the way in which the artefact is run."""
    if emitted.reference is None:
        return {}
    before = outputs_of(emitted.runner, emitted.reference, feeds, runs[""])
    return {
        kind: distance(before, outputs_of(emitted.runner, computed, feeds, options)) for kind, options in runs.items()
    }


def _spelled(found: Mapping[str, float]) -> str:
    return ", ".join(f"{kind}{value:.1e}" for kind, value in found.items())


def kernel_table_lookup(emitted: Module, backend: Backend) -> Rung:
    """Every node of the emitted model is looked up in the kernel table; what falls back is priced."""
    placement = forecast(emitted, backend.kernels)
    said = f"{placement.said()} ({backend.kernels.source})"
    if not placement.fallbacks:
        return Rung("kernel table", "passed", said)
    joules = placement.copy_joules(load_profile(backend.target.device))
    return Rung("kernel table", "failed", f"{said}; copies cost about {joules:.2g} J a run, estimated", binding=False)


_INTEGER = frozenset({"QGemm", "MatMulInteger", "ConvInteger", "MatMulIntegerToFloat"})


def opens(emitted: Module, runner: Runner, options: SessionOptions, obstacle: str | None) -> Rung:
    """ONNX Runtime's CPU provider opens the emitted file; no failure where the input does not run either."""
    computed = emulated(emitted)  # the CPU provider lacks many 16-bit kernels
    said = "" if computed is emitted else ", 16-bit floats emulated"
    try:
        runner.unload(runner.load(computed, options=options))
    except JoulecError as error:
        if obstacle is not None:
            return Rung("opens on CPU", "skipped", f"the input model does not run either: {obstacle}")
        return Rung("opens on CPU", "failed", str(error))
    return Rung("opens on CPU", "passed", f"ONNX Runtime CPU execution provider{said}")
