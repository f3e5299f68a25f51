"""Judging a simplified model against its original: the same signature, outputs, random operators, under whatever runs it.

ONNX Runtime judges where it has kernels, onnx's reference implementation where it has none. Inputs and outputs of types
that ONNX Runtime's Python interface cannot hold (bfloat16, float8, int4, ...) are cast at the border.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from random_typed import RANDOM

BRIDGED = {
    getattr(TensorProto, name): TensorProto.FLOAT
    for name in (
        "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT4E2M1", "INT4", "UINT4", "INT2",
        "UINT2",
    )
    if hasattr(TensorProto, name)
}  # fmt: skip
TOLERANCE = {"float16": 4e-3, "bfloat16": 4e-2, "float64": 1e-9}
"""Relative to the largest output; float32 has 1e-5."""

NO_KERNEL = ("NOT_IMPLEMENTED", "is not currently registered or supported", "under development", "two nodes with")
"""What ONNX Runtime says of models that are right and that it cannot run all the same."""

Outputs = dict[str, Any]


def run(model: onnx.ModelProto, feed: Mapping[str, Any], optimization: str = "none") -> tuple[str, Outputs | None]:
    """Who ran the model (`runtime`, `reference` or the reason why nobody did) and its outputs."""
    try:
        return "runtime", _runtime(model, feed, optimization)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime has many errors
        said = str(error)
    if not any(one in said for one in NO_KERNEL):
        return said, None
    found = reference(model, feed)
    return ("reference", found) if found is not None else (said, None)


def reference(model: onnx.ModelProto, feed: Mapping[str, Any]) -> Outputs | None:
    """The outputs by onnx's reference implementation, or None where it fails."""
    names = [output.name for output in model.graph.output]
    if any(node.op_type == "Loop" for graph in _graphs(model.graph) for node in graph.node):
        return None  # it joins what rounds return, where the standard stacks it
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return dict(zip(names, ReferenceEvaluator(model).run(None, dict(feed)), strict=True))
    except Exception:  # noqa: BLE001 - what it cannot run, it cannot judge
        return None


def _runtime(model: onnx.ModelProto, feed: Mapping[str, Any], optimization: str) -> Outputs:
    settings = ort.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 4, 1
    if optimization == "none":
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(bridged(model).SerializeToString(), settings, providers=["CPUExecutionProvider"])
    given = {name: _bridge_value(value) for name, value in feed.items()}
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, given), strict=True))
    return {output.name: found[output.name] for output in model.graph.output}


def _bridge_value(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.name in _BRIDGED_NAMES:
        return value.astype(np.float32)
    return value


_BRIDGED_NAMES = {helper.tensor_dtype_to_np_dtype(kind).name for kind in BRIDGED}


def bridged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with Casts where an input or output has a type that Python cannot pass to ONNX Runtime."""
    inputs = [v for v in model.graph.input if v.type.tensor_type.elem_type in BRIDGED]
    outputs = [v for v in model.graph.output if v.type.tensor_type.elem_type in BRIDGED]
    if not inputs and not outputs:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    renamed = {v.name: f"{v.name}__narrow" for v in (*inputs, *outputs)}
    for graph_or_body in _graphs(graph):
        for node in graph_or_body.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for tensor in graph_or_body.initializer:
            tensor.name = renamed.get(tensor.name, tensor.name)
        if graph_or_body is not graph:
            for value in graph_or_body.output:
                value.name = renamed.get(value.name, value.name)
    fixed = {tensor.name for tensor in graph.initializer}
    before, after = [], []
    for value in graph.input:
        if value.name in renamed and renamed[value.name] not in fixed:
            kind, value.type.tensor_type.elem_type = value.type.tensor_type.elem_type, TensorProto.FLOAT
            before.append(helper.make_node("Cast", [value.name], [renamed[value.name]], to=kind))
    for value in graph.output:
        if value.name in renamed:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
            if all(value.name != other.name for other in graph.input):
                after.append(helper.make_node("Cast", [renamed[value.name]], [value.name], to=TensorProto.FLOAT))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                yield from _graphs(inner)


# -- comparing ------------------------------------------------------------------------------------------------------


def difference(actual: Any, expected: Any, exact: bool) -> str | None:
    """How two outputs differ, or None; strict about types and shapes, in exact mode about every bit but NaN's."""
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return "another sequence"
        return next((d for a, e in zip(actual, expected, strict=True) if (d := difference(a, e, exact))), None)
    if expected is None or actual is None:
        return None if actual is expected else "one of them is empty"
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return f"{actual.dtype}{list(actual.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind in "OUSbiu":
        return None if np.array_equal(actual, expected) else f"{actual.tolist()} instead of {expected.tolist()}"
    return _numeric(actual, expected, exact)


def _numeric(actual: np.ndarray, expected: np.ndarray, exact: bool) -> str | None:
    wide = np.complex128 if expected.dtype.kind == "c" else np.float64
    one, other = actual.astype(wide), expected.astype(wide)
    said = f"{actual.tolist()} instead of {expected.tolist()}"
    finite = np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True) or not np.array_equal(finite, np.isfinite(one)):
        return said
    if exact and wide is np.float64 and expected.dtype.itemsize > 2:  # runtimes compute halves in float32, or in part
        numbers = ~np.isnan(other)
        same = np.array_equal(one, other, equal_nan=True)
        return None if same and np.array_equal(np.signbit(one[numbers]), np.signbit(other[numbers])) else said
    scale = max(1.0, float(np.abs(other[finite]).max(initial=0)))
    worst = float(np.abs(one[finite] - other[finite]).max(initial=0))
    return None if worst <= TOLERANCE.get(expected.dtype.name, 1e-5) * scale else said


def signature(model: onnx.ModelProto) -> list[tuple[str, bytes]]:
    """Names, types, dimensions and order of the inputs that have to be fed, and of the outputs.

    An output that is an input has the input's declaration: in between there is nothing that could hold two.
    """
    fixed = {tensor.name for tensor in model.graph.initializer} if model.ir_version < 4 else set()
    inputs = {v.name: v for v in model.graph.input if v.name not in fixed}
    values = [*inputs.values(), *(inputs.get(v.name, v) for v in model.graph.output)]
    return [(v.name, v.type.SerializeToString(deterministic=True)) for v in values]


def random_operators(model: onnx.ModelProto) -> int:
    """How many draws some output depends on: random operators, in bodies and functions too; of branches, the larger."""
    functions = {(f.domain, f.name): f for f in model.functions}
    return _draws_of(model.graph.node, {v.name for v in model.graph.output}, functions, _false(model))[0]


def _draws_of(
    nodes: Any, wanted: set[str], functions: Mapping[Any, onnx.FunctionProto], false: set[str]
) -> tuple[int, set[str]]:
    """The draws among `nodes` that `wanted` depends on, and all that it depends on."""
    live, count = set(wanted), 0
    for node in reversed(nodes):
        if live.isdisjoint(node.output) or node.op_type in ("Shape", "Size"):  # these ask nothing of what was drawn
            continue
        called = functions.get((node.domain, node.op_type))
        most, needed = (0, None) if called is None else _draws_of(called.node, set(called.output), functions, false)
        live.update(node.input if called is None or needed is None else _passed(node, called, needed))
        for body in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
            pairs = (
                zip(body.output, node.output, strict=False) if node.op_type == "If" else ((v, "") for v in body.output)
            )
            inner, needed = _draws_of(
                body.node, {v.name for v, out in pairs if not out or out in live}, functions, false
            )
            live.update(needed)
            most = max(most, inner)
        count += most + _draws(node, false)
    return count, live


def _passed(call: onnx.NodeProto, called: onnx.FunctionProto, needed: set[str]) -> list[str]:
    """The arguments that the function's outputs depend on."""
    return [given for given, name in zip(call.input, called.input, strict=False) if name in needed]


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for graph in _graphs(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else ():
            for inner in graph.node:
                yield from inner.input
            yield from (output.name for output in graph.output)


def _draws(node: onnx.NodeProto, false: set[str]) -> bool:
    """Whether a node returns something else every time; Dropout only in training."""
    if node.op_type != "Dropout":
        return node.op_type in RANDOM
    return any(node.input[2:]) and node.input[2] not in false


def random_values(model: onnx.ModelProto) -> set[str]:
    """The values of the main graph that depend on a random operator."""
    functions = {f.name for f in model.functions if any(n.op_type in RANDOM for g in _all(f.node) for n in g)}
    for function in model.functions:  # a function may call one before it
        if any(n.op_type in functions for g in _all(function.node) for n in g):
            functions.add(function.name)
    found: set[str] = set()
    for node in model.graph.node:
        inner = [one for nodes in _all([node]) for one in nodes]
        if not found.isdisjoint(_reads(node)) or any(one.op_type in RANDOM | functions for one in inner):
            found.update(node.output)
    return found


def _all(nodes: Any) -> Iterator[list[onnx.NodeProto]]:
    yield list(nodes)
    for node in nodes:
        for attribute in node.attribute:
            for graph in _graphs(attribute.g) if attribute.type == onnx.AttributeProto.GRAPH else ():
                yield list(graph.node)


def _false(model: onnx.ModelProto) -> set[str]:
    """The names of constants that are false."""
    graphs = list(_graphs(model.graph))
    held = {t.name: t for graph in graphs for t in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node] + [node for f in model.functions for node in f.node]
    held |= {n.output[0]: n.attribute[0].t for n in nodes if n.op_type == "Constant"}
    flags = {name: t for name, t in held.items() if t.data_type == TensorProto.BOOL and not t.dims}
    return {name for name, t in flags.items() if not onnx.numpy_helper.to_array(t).any()}
