"""Shape arithmetic on small known integers: Shape -> Gather -> Concat -> Reshape and the like, evaluated in numpy.

ONNX's own data propagation stops at operators such as Equal, Where, Max or a Cast through floats, and it stores every
element of any vector that it meets, so that a few bytes of model can ask for any amount of memory. This does neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from joulec.ir.values import Array
from joulec.ir.walk import ONNX_DOMAINS

MAX_ELEMENTS = 64
"""Shape arithmetic works on a handful of numbers; anything larger is data and is left alone."""

_NUMERIC = frozenset({
    onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
    onnx.TensorProto.BOOL,
})  # fmt: skip


def small_array(tensor: onnx.TensorProto) -> Array | None:
    """A stored tensor's numbers if they are few and numeric, else None."""
    few = int(np.prod(tensor.dims, dtype=np.float64)) <= MAX_ELEMENTS
    if not few or tensor.data_type not in _NUMERIC or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return numpy_helper.to_array(tensor)


def constant_of(node: onnx.NodeProto) -> Array | None:
    """What a Constant node makes, if that is a few numbers."""
    for attribute in node.attribute:
        if attribute.name == "value":
            return small_array(attribute.t)
        if attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
            numbers = onnx.helper.get_attribute_value(attribute)
            if np.size(numbers) <= MAX_ELEMENTS:
                return np.asarray(numbers, np.int64 if "int" in attribute.name else np.float32)
    return None


def evaluate(
    node: onnx.NodeProto, value: Callable[[str], Array | None], shape: Callable[[str], tuple[int, ...] | None]
) -> Array | None:
    """The value of `node`, if its operator is in the table and its inputs are known; None otherwise.

    Args:
        node: a node of the standard domain with one output; any other gives None.
        value: the known numbers of an input, by name.
        shape: the static shape of an input, by name.
    """
    if node.domain not in ONNX_DOMAINS or len(node.output) != 1 or not node.input:
        return None
    if node.op_type in ("Shape", "Size"):
        known = shape(node.input[0])
        return None if known is None else _shape_of(node.op_type, known, _attributes(node))
    function = _TABLE.get(node.op_type)
    if function is None:
        return None
    args = [value(name) if name else None for name in node.input]
    if any(arg is None and name for arg, name in zip(args, node.input, strict=True)):
        return None
    return _apply(function, args, _attributes(node))


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name}


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
