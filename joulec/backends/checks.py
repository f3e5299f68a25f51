"""Rungs of the ladder of evidence that need no device: the file itself, its opsets, what ONNX Runtime makes of it."""

from __future__ import annotations

from pathlib import Path

import onnx

from joulec.backends.base import MODEL_FILE, Backend, Rung
from joulec.backends.placement import forecast
from joulec.energy import load_profile
from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.runner import Runner
from joulec.ir.session import SessionOptions
from joulec.ir.shapes import first_line
from joulec.passes._half_emulation import emulated
from joulec.passes.target import Target


def checker(directory: Path, known_problem: str | None) -> Rung:
    """onnx.checker with full_check (strict shape inference) on the emitted file.

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
        return Rung("onnx checker", "failed", problem)
    return Rung("onnx checker", "passed", "full check, strict shape inference")


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
