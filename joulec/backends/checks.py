"""Rungs of the ladder of evidence that need no device: the file itself, its opsets, what ONNX Runtime makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx

from joulec.backends.base import MODEL_FILE, Rung, SessionSettings
from joulec.errors import JoulecError
from joulec.ir.module import Module
from joulec.ir.runner import open_session
from joulec.ir.shapes import first_line
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


def quantized_kernels(directory: Path, settings: SessionSettings) -> Rung:
    """How many integer kernels ONNX Runtime's own optimized graph holds, against the Q/DQ model's operators."""
    emitted = Counter(node.op_type for node in onnx.load(directory / MODEL_FILE, load_external_data=False).graph.node)
    if not emitted["QuantizeLinear"]:
        return Rung("integer kernels", "skipped", "no INT8 in this artefact")
    try:
        optimized = optimized_ops(directory / MODEL_FILE, settings)
    except JoulecError as error:
        return Rung("integer kernels", "failed", str(error))
    integer = {op: n for op, n in sorted(optimized.items()) if op.startswith("QLinear") or op in _INTEGER}
    left = optimized["QuantizeLinear"] + optimized["DequantizeLinear"]
    counts = ", ".join(f"{n} {op}" for op, n in integer.items()) or "none"
    status = "passed" if integer else "failed"
    return Rung("integer kernels", status, f"{counts}; {left} Q/DQ left at the borders")


_INTEGER = frozenset({"QGemm", "MatMulInteger", "ConvInteger", "QLinearConv", "MatMulIntegerToFloat"})


def optimized_ops(model: Path, settings: SessionSettings) -> Counter[str]:
    """Operators of the graph that ONNX Runtime runs on CPU after its EXTENDED (portable) optimizations."""
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="joulec-") as folder:
        path = Path(folder, "optimized.onnx")
        options: Any = ort.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        for key, value in settings.config.items():
            options.add_session_config_entry(key, value)
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def opens(directory: Path, settings: SessionSettings, custom_ops: tuple[Path, ...]) -> Rung:
    """ONNX Runtime's CPU provider opens the emitted file."""
    try:
        open_session(str(directory / MODEL_FILE), settings.options(custom_ops))
    except JoulecError as error:
        return Rung("opens on CPU", "failed", str(error))
    return Rung("opens on CPU", "passed", "ONNX Runtime CPU execution provider")
