"""Shape inference that also follows shape arithmetic: Shape -> Gather -> Concat -> Reshape and the like.

ONNX's own data propagation stops at operators such as Equal, Where, Max or a Cast through floats. Here, between rounds
of inference, every node whose inputs are small known integers is evaluated and its value handed on, in a throw-away
copy of the model's structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from joulec.ir.values import Array

MAX_ELEMENTS = 64
"""Shape arithmetic works on a handful of numbers; anything larger is data and is left alone."""
MAX_ROUNDS = 12
"""Each round resolves at least one more Reshape or Expand whose target was computed; then we stop."""


def resolve(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` (its structure, without large weights) with all shapes that can be inferred. Changes `model` itself."""
    inferred = onnx.shape_inference.infer_shapes(model, False, False, data_prop=True)
    for _ in range(MAX_ROUNDS):
        if not _needs_more(inferred.graph) or not _evaluate(inferred.graph):
            break
        inferred = onnx.shape_inference.infer_shapes(inferred, False, False, data_prop=True)
    return inferred


def _needs_more(graph: onnx.GraphProto) -> bool:
    """Whether some value of the main graph or a nested graph lacks a dimension."""
    shaped = {info.name for info in (*graph.value_info, *graph.output) if _static_shape(info) is not None}
    for node in graph.node:
        if any(name and name not in shaped for name in node.output):
            return True
        if any(_needs_more(sub) for sub in _bodies(node)):
            return True
    return False


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]


def _static_shape(info: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    tensor = info.type.tensor_type
    if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    dims = tensor.shape.dim
    return tuple(d.dim_value for d in dims) if all(d.HasField("dim_value") for d in dims) else None


class _Scope:
    """What is known inside one graph: small numbers and static shapes, those of the graphs around it included."""

    def __init__(self, graph: onnx.GraphProto, outer: _Scope | None) -> None:
        self.values: dict[str, Array] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.outer = outer
        inputs = {info.name for info in graph.input}
        for info in (*graph.input, *graph.value_info, *graph.output):
            if (shape := _static_shape(info)) is not None:
                self.shapes[info.name] = shape
        for tensor in graph.initializer:
            self.shapes[tensor.name] = tuple(tensor.dims)
            if tensor.name not in inputs:
                self.remember(tensor.name, tensor)

    def remember(self, name: str, tensor: onnx.TensorProto) -> None:
        """Keep a stored tensor's numbers if they are few and numeric."""
        if int(np.prod(tensor.dims, dtype=np.float64)) <= MAX_ELEMENTS and tensor.data_type in _NUMERIC:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                return
            self.values[name] = numpy_helper.to_array(tensor)

    def value(self, name: str) -> Array | None:
        """The numbers of `name`, if known."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape of `name`, if known."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.shapes:
                return scope.shapes[name]
            scope = scope.outer
        return None


_NUMERIC = frozenset({
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
})  # fmt: skip


def _evaluate(graph: onnx.GraphProto, outer: _Scope | None = None) -> bool:
    """Turn every node that can be evaluated into a Constant; says whether any was."""
    changed = outer is not None and _bring_in(graph, outer)
    scope = _Scope(graph, outer)
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            _read_constant(node, scope)
            continue
        for body in _bodies(node):
            changed |= _evaluate(body, scope)
        result = _result(node, scope)
        if result is None:
            continue
        scope.values[node.output[0]] = result
        name = node.output[0]
        node.CopyFrom(onnx.helper.make_node("Constant", [], [name], value=numpy_helper.from_array(result)))
        changed = True
    return changed


def _bring_in(graph: onnx.GraphProto, outer: _Scope) -> bool:
    """Give a nested graph its own copies of outer constants: ONNX's inference does not look at numbers outside it."""
    copies: dict[str, str] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            value = outer.value(name) if name else None
            if value is None:
                continue
            if name not in copies:
                copies[name] = f"{name}@{graph.name}"
                graph.initializer.append(numpy_helper.from_array(value, copies[name]))
            node.input[index] = copies[name]
    return bool(copies)


def _read_constant(node: onnx.NodeProto, scope: _Scope) -> None:
    for attribute in node.attribute:
        if attribute.name == "value":
            scope.remember(node.output[0], attribute.t)
        elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            dtype = np.int64 if "int" in attribute.name else np.float32
            scope.values[node.output[0]] = np.asarray(onnx.helper.get_attribute_value(attribute), dtype)


def _result(node: onnx.NodeProto, scope: _Scope) -> Array | None:
    """The value of `node`, if its operator is in the table and its inputs are known; None otherwise."""
    if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}
    if node.op_type in ("Shape", "Size"):
        shape = scope.shape(node.input[0]) if node.input else None
        return None if shape is None else _shape_of(node.op_type, shape, attributes)
    function = _TABLE.get(node.op_type)
    if function is None or not node.input:
        return None
    args = [scope.value(name) if name else None for name in node.input]
    if any(arg is None and name for arg, name in zip(args, node.input, strict=True)):
        return None
    return _apply(function, args, attributes)


def _apply(function: Callable[..., Any], args: Sequence[Array | None], attributes: dict[str, Any]) -> Array | None:
    try:
        with np.errstate(all="raise"):
            result = np.asarray(function(attributes, *args))
    except (ValueError, IndexError, TypeError, ArithmeticError, KeyError):
        return None  # not shape arithmetic after all; the value stays unknown, as before
    return result if result.size <= MAX_ELEMENTS and result.dtype.kind in "ifb" else None


def _shape_of(op: str, shape: tuple[int, ...], attributes: dict[str, Any]) -> Array:
    if op == "Size":
        return np.asarray(np.prod(shape, dtype=np.int64), np.int64)
    return np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64)


def _axes(attributes: dict[str, Any], given: Array | None) -> tuple[int, ...] | None:
    if given is not None:
        return tuple(int(axis) for axis in given.reshape(-1))
    return tuple(attributes["axes"]) if "axes" in attributes else None


def _slice(attributes: dict[str, Any], data: Array, *more: Array | None) -> Array:
    starts, ends, axes, steps = (*more, None, None, None, None)[:4]
    begin = attributes["starts"] if starts is None else starts.reshape(-1)
    end = attributes["ends"] if ends is None else ends.reshape(-1)
    chosen = _axes(attributes, axes) or tuple(range(len(begin)))
    strides = [1] * len(begin) if steps is None else steps.reshape(-1)
    index: list[Any] = [slice(None)] * data.ndim
    for axis, first, last, step in zip(chosen, begin, end, strides, strict=True):
        stop = None if step < 0 and last < -data.shape[axis] else int(last)
        index[axis] = slice(int(first), stop, int(step))
    return np.asarray(data[tuple(index)])


def _unsqueeze(attributes: dict[str, Any], data: Array, axes: Array | None = None) -> Array:
    return np.expand_dims(data, _axes(attributes, axes) or ())


def _squeeze(attributes: dict[str, Any], data: Array, axes: Array | None = None) -> Array:
    return np.squeeze(data, _axes(attributes, axes))


def _divide(_: dict[str, Any], a: Array, b: Array) -> Array:
    """ONNX integer division cuts towards zero."""
    if a.dtype.kind != "i":
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), a.dtype)


def _reshape(attributes: dict[str, Any], data: Array, shape: Array | None = None) -> Array:
    target = [int(d) for d in (attributes["shape"] if shape is None else shape)]
    return data.reshape([data.shape[i] if d == 0 else d for i, d in enumerate(target)])


def _filled(attributes: dict[str, Any], shape: Array) -> Array:
    value = attributes.get("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return np.full(_bounded(shape), fill.reshape(-1)[0], fill.dtype)


def _bounded(shape: Array) -> tuple[int, ...]:
    dims = tuple(int(d) for d in shape)
    if any(d < 0 for d in dims) or float(np.prod(dims, dtype=np.float64)) > MAX_ELEMENTS:
        raise ValueError("too large to be shape arithmetic")
    return dims


def _range(_: dict[str, Any], start: Array, limit: Array, step: Array) -> Array:
    if abs((float(limit) - float(start)) / float(step)) > MAX_ELEMENTS:
        raise ValueError("too large to be shape arithmetic")
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _expand(_: dict[str, Any], data: Array, shape: Array) -> Array:
    return np.asarray(data * np.ones(_bounded(shape), data.dtype))


def _tile(_: dict[str, Any], data: Array, repeats: Array) -> Array:
    _bounded(np.asarray(data.shape, np.int64) * repeats)
    return np.tile(data, [int(r) for r in repeats])


def _reduce(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(attributes: dict[str, Any], data: Array, axes: Array | None = None) -> Array:
        kept = bool(attributes.get("keepdims", 1))
        return np.asarray(function(data, axis=_axes(attributes, axes), keepdims=kept), data.dtype)

    return apply


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _attributes, *args: function(*args)


_TABLE: dict[str, Callable[..., Any]] = {
    "Add": _plain(np.add), "Sub": _plain(np.subtract), "Mul": _plain(np.multiply), "Div": _divide,
    "Mod": _plain(np.mod), "Min": _plain(lambda *a: np.minimum.reduce(a)),
    "Max": _plain(lambda *a: np.maximum.reduce(a)),
    "Neg": _plain(np.negative), "Abs": _plain(np.abs), "Floor": _plain(np.floor), "Ceil": _plain(np.ceil),
    "Sqrt": _plain(np.sqrt), "Pow": _plain(np.power), "Round": _plain(np.round), "Identity": _plain(np.asarray),
    "Equal": _plain(np.equal), "Less": _plain(np.less), "Greater": _plain(np.greater), "Not": _plain(np.logical_not),
    "LessOrEqual": _plain(np.less_equal), "GreaterOrEqual": _plain(np.greater_equal),
    "And": _plain(np.logical_and), "Or": _plain(np.logical_or), "Where": _plain(np.where),
    "Cast": lambda at, x: x.astype(onnx.helper.tensor_dtype_to_np_dtype(at["to"])),
    "Gather": lambda at, x, i: np.take(x, i, axis=at.get("axis", 0)),
    "Concat": lambda at, *xs: np.concatenate(xs, axis=at["axis"]),
    "Slice": _slice, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Reshape": _reshape, "ConstantOfShape": _filled,
    "Range": _range, "Expand": _expand, "ReduceProd": _reduce(np.prod), "ReduceSum": _reduce(np.sum),
    "Transpose": lambda at, x: np.transpose(x, at.get("perm")), "Tile": _tile,
    "ReduceMax": _reduce(np.max), "ReduceMin": _reduce(np.min),
}  # fmt: skip
