"""Rungs of the ladder that other people's compilers answer: ONNX Runtime's CUDA partitioning, and TensorRT-RTX."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from joulec.backends import outside
from joulec.backends.base import MODEL_FILE, Artefact, Rung
from joulec.backends.profiles import PROFILE_OPTIONS
from joulec.ir.module import Module
from joulec.passes._qdq_graph import computes, is_dequantize

RTX_FLOAT = frozenset({"ConvTranspose"})
"""Operators that TensorRT computes in integers by its documents and TensorRT-RTX 1.7.1 in none of the forms tried."""

NAMED = 3
"""Nodes that a detail lists; more are counted."""


def cuda_placement(emitted: Artefact, options: Mapping[str, str]) -> Rung:
    """ONNX Runtime's own partitioning for CUDA, under stand-ins for its libraries: no CPU node and no copy passes."""
    given = [f"{name}={value}" for name, value in sorted(options.items())]
    outcome = outside.run("placement", [str(emitted.directory / MODEL_FILE), *given])
    name = "CUDA placement"
    if outcome.found is None:
        return _unanswered(name, outcome)
    on_cpu, copies = list(outcome.found["cpu"]), int(outcome.found["memcpy"])
    total = sum(outcome.found["providers"].values())
    said = f"{total - len(on_cpu)} of {total} nodes on CUDA, {copies} copies (onnxruntime-gpu, no GPU)"
    if not on_cpu and not copies:
        return Rung(name, "passed", said)
    return Rung(name, "failed", f"{said}; on the CPU: {_listed(on_cpu) or 'none'}", binding=False)


def engine(emitted: Artefact, module: Module, options: Mapping[str, str]) -> Rung:
    """TensorRT-RTX parses and builds the model, and every operator between Q/DQ reads integers in the engine."""
    outcome = outside.run("engine", [str(emitted.directory / MODEL_FILE), *_spans(options)])
    name = "TensorRT-RTX engine"
    if outcome.found is None:
        return _unanswered(name, outcome)
    found = outcome.found
    if not found["built"]:
        reasons = found["refused"] or found["errors"] or ["no engine, and no reason"]
        said = f"{'parsed, not built' if found['parsed'] else 'not parsed'}: {_listed(reasons)}"
        alike = _refuses_input(emitted)
        return Rung(name, "failed", f"{said}{'; it refuses the input model too' if alike else ''}", binding=not alike)
    wanted = list(quantized_operators(module))
    lost = [node for node in wanted if not _in_integers(node.name or "", found["layers"])]
    said = f"parsed and built (TensorRT-RTX {found['version']}, nothing was run)"
    if not wanted:
        return Rung(name, "passed", f"{said}; no INT8 in this artefact")
    aside = [node for node in lost if node.op_type in RTX_FLOAT]
    lost = [node for node in lost if node.op_type not in RTX_FLOAT]
    count = len(wanted) - len(aside)
    said += f"; INT8 in {count - len(lost)} of {count} quantized operators"
    if aside:
        said += f", {len(aside)} {aside[0].op_type} in float, of which only TensorRT itself has integer kernels"
    if not lost:
        return Rung(name, "passed", said)
    return Rung(name, "failed", f"{said}, not in {_listed([n.name or n.op_type for n in lost])}", binding=False)


def _refuses_input(emitted: Artefact) -> bool:
    """Whether the compiler does not build the input model either: that is not held against the artefact, of which ONNX
    Runtime leaves to CUDA what TensorRT refuses.
    """
    if emitted.reference is None:
        return False
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / MODEL_FILE
        emitted.reference.save(file)
        outcome = outside.run("engine", [str(file)])
    return outcome.found is not None and not outcome.found["built"]


def quantized_operators(module: Module) -> Iterator[ir.Node]:
    """Convolutions and matrix products both of whose operands are dequantized integers."""
    for node in module.graph:
        makers = [value.producer() for value in node.inputs[:2] if value is not None]
        if computes(node) and len(makers) == 2 and all(one is not None and is_dequantize(one) for one in makers):
            yield node


def _in_integers(name: str, layers: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the layer that holds the node reads two tensors of integers, the activation and the weight."""
    return any(name in layer["nodes"] and layer["reads"].count("Int8") >= 2 for layer in layers)


def _spans(options: Mapping[str, str]) -> list[str]:
    """ONNX Runtime's profile options, `x:1x3,y:1x8`, as INPUT=MIN/OPT/MAX."""
    each = [dict(part.rsplit(":", 1) for part in options.get(name, "").split(",") if part) for name in PROFILE_OPTIONS]
    return [f"{name}={'/'.join(one[name] for one in each)}" for name in each[0]]


def _unanswered(name: str, outcome: outside.Outcome) -> Rung:
    if outcome.skipped is not None:
        return Rung(name, "skipped", outcome.skipped)
    return Rung(name, "failed", outcome.failed or "", binding=False)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
