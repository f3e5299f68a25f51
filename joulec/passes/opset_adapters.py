"""What changed between the versions of the standard operator set, 7 to 24: one table, operator x version -> adapter.

An adapter gets a node that is valid in the version before and leaves it valid, with the same result, in that version.
What is in neither table nor type-only is a gap; a test walks the schemas of onnx and finds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.values import Array, constant, input_at, rank, static_shape

OLDEST, NEWEST = 7, 24
"""Opsets that adapters exist for."""


@dataclass(frozen=True)
class Step:
    """One adaptation: the rewriter to use, and the opset that the whole upgrade leads to."""

    rewriter: Rewriter
    to: int


Adapter = Callable[[ir.Node, Step], None]


def _value(node: ir.Node, name: str, default: Any = None) -> Any:
    found = node.attributes.get(name)
    if found is None:
        return default
    if found.is_ref():
        raise Refused(f"attribute '{name}' is the enclosing function's, its value is not known")
    return found.value


def _constant(node: ir.Node, array: Array, hint: str, step: Step) -> ir.Value:
    return step.rewriter.constant(array, f"{node.name or node.op_type}_{hint}", at=node)


def _dtype(node: ir.Node) -> np.dtype[Any]:
    value = node.inputs[0]
    if value is None or value.dtype is None:
        raise Refused("the element type of its input is not known")
    return value.dtype.numpy()


# -- attributes that became inputs --------------------------------------------------------------------------------


def _ints_to_input(name: str, index: int, *, drop_empty: bool = True) -> Adapter:
    """Integers in attribute `name` move to input `index`; absent stays absent."""

    def adapt(node: ir.Node, step: Step) -> None:
        values = _value(node, name)
        if values is None:
            return
        step.rewriter.set_attribute(node, name, None)
        if len(values) or not drop_empty:
            step.rewriter.set_input(node, index, _constant(node, np.asarray(values, np.int64), name, step))

    return adapt


def _slice_10(node: ir.Node, step: Step) -> None:
    starts, ends, axes = (_value(node, name) for name in ("starts", "ends", "axes"))
    for index, (name, values) in enumerate((("starts", starts), ("ends", ends), ("axes", axes)), 1):
        if values is not None:
            step.rewriter.set_input(node, index, _constant(node, np.asarray(values, np.int64), name, step))
            step.rewriter.set_attribute(node, name, None)


def _topk_10(node: ir.Node, step: Step) -> None:
    k = _value(node, "k")
    step.rewriter.set_input(node, 1, _constant(node, np.array([k], np.int64), "k", step))
    step.rewriter.set_attribute(node, "k", None)


def _clip_11(node: ir.Node, step: Step) -> None:
    for index, name in ((1, "min"), (2, "max")):
        limit = _value(node, name)
        if limit is None:
            continue
        kind = _dtype(node)
        with np.errstate(over="ignore"):
            bound = np.asarray(limit, kind)
        if np.isfinite(bound) or not math.isfinite(limit):  # a limit beyond the type's range limits nothing
            step.rewriter.set_input(node, index, _constant(node, bound, name, step))
        step.rewriter.set_attribute(node, name, None)


def _pad_11(node: ir.Node, step: Step) -> None:
    pads, value = _value(node, "pads"), _value(node, "value", 0.0)
    if pads is None:
        raise Refused("it lacks the attribute 'pads'")
    kind = _dtype(node) if value != 0.0 else None
    step.rewriter.set_input(node, 1, _constant(node, np.asarray(pads, np.int64), "pads", step))
    step.rewriter.set_attribute(node, "pads", None)
    if kind is not None:
        step.rewriter.set_input(node, 2, _constant(node, np.asarray(value, kind), "value", step))
    step.rewriter.set_attribute(node, "value", None)


def _split_18(node: ir.Node, step: Step) -> None:
    if input_at(node, 1) is None:
        step.rewriter.set_attribute(node, "num_outputs", len(node.outputs))


def _dft_20(node: ir.Node, step: Step) -> None:
    axis = _value(node, "axis", 1)
    step.rewriter.set_attribute(node, "axis", None)
    step.rewriter.set_input(node, 2, _constant(node, np.array(axis, np.int64), "axis", step))


# -- resizing -----------------------------------------------------------------------------------------------------


def _upsample_9(node: ir.Node, step: Step) -> None:
    scales = np.asarray(_value(node, "scales"), np.float32)
    step.rewriter.set_attribute(node, "scales", None)
    step.rewriter.set_input(node, 1, _constant(node, scales, "scales", step))


def _upsample_10(node: ir.Node, step: Step) -> None:
    if _value(node, "mode", "nearest") == "linear" and rank(node.inputs[0]) not in (2, 4):
        raise Refused("linear Upsample of this rank has no counterpart")
    step.rewriter.set_op(node, "Resize")


def _resize_11(node: ir.Node, step: Step) -> None:
    """Resize-10 maps coordinates by `x / scale`; nearest takes the floor when growing, the ceiling when shrinking."""
    mode, scales = _value(node, "mode", "nearest"), input_at(node, 1)
    rounding = _nearest_mode(constant(scales)) if mode == "nearest" else None
    empty = _constant(node, np.zeros(0, np.float32), "roi", step)
    step.rewriter.set_input(node, 1, empty)
    step.rewriter.set_input(node, 2, scales)
    step.rewriter.set_attribute(node, "coordinate_transformation_mode", "asymmetric")
    if rounding is not None:
        step.rewriter.set_attribute(node, "nearest_mode", rounding)


def _nearest_mode(scales: Array | None) -> str:
    if scales is None:
        raise Refused("its scales are computed, so how it rounds is not known")
    if np.all(scales >= 1):
        return "floor"
    if np.all(scales <= 1):
        return "ceil"
    raise Refused("it grows one dimension and shrinks another, which round differently")


def _resize_13(node: ir.Node, step: Step) -> None:
    if _value(node, "coordinate_transformation_mode") == "tf_half_pixel_for_nn":
        raise Refused("coordinate mode tf_half_pixel_for_nn ended with opset 12")


# -- normalization and activation ---------------------------------------------------------------------------------


def _batch_norm_9(node: ir.Node, step: Step) -> None:
    if _value(node, "spatial", 1) != 1:
        raise Refused("BatchNormalization with spatial=0 has no counterpart")
    if "spatial" in node.attributes:
        step.rewriter.set_attribute(node, "spatial", None)


def _batch_norm_14(node: ir.Node, step: Step) -> None:
    """Before 14 a node with more outputs than one was in training mode, whether or not anything used them."""
    if len(node.outputs) > 1:
        raise Refused("it is in training mode, whose statistics changed")


def _used(output: ir.Value) -> bool:
    return bool(output.uses()) or output.is_graph_output()


def _dropout_10(node: ir.Node, step: Step) -> None:
    if len(node.outputs) > 1 and _used(node.outputs[1]):
        raise Refused("its mask is used, and changed its type")


def _dropout_12(node: ir.Node, step: Step) -> None:
    """At inference the mask said False before, as ONNX Runtime reads it, and says True since: nothing was dropped."""
    if len(node.outputs) > 1 and _used(node.outputs[1]):
        raise Refused("its mask is used, and changed its meaning")
    if "ratio" in node.attributes:  # nothing is dropped at inference, whatever the ratio
        step.rewriter.set_attribute(node, "ratio", None)


def _softmax_13(node: ir.Node, step: Step) -> None:
    """Before 13, all dimensions from `axis` on were one; since, `axis` is a single dimension."""
    data, axis = node.inputs[0], _value(node, "axis", 1)
    if (single := _single_axis(data, axis)) is not None:
        step.rewriter.set_attribute(node, "axis", single)
        return
    if data is None:
        raise Refused("it has no input")
    rewriter, output = step.rewriter, node.outputs[0]
    (flat,) = rewriter.add("Flatten", [data], {"axis": axis}, before=node)
    shape, zero = _shape_of(node, data, step)
    (result,) = rewriter.add(node.op_type, [flat], {"axis": -1}, before=node)
    attributes = {"allowzero": 1} if zero else {}
    if output.is_graph_output():  # keeps the output's name: the node itself becomes the last one
        rewriter.set_attribute(node, "axis", None)
        rewriter.set_op(node, "Reshape")
        rewriter.set_input(node, 0, result)
        rewriter.set_input(node, 1, shape)
        rewriter.set_attribute(node, "allowzero", 1 if zero else None)
        return
    (back,) = rewriter.add("Reshape", [result, shape], attributes, before=node, like=output)
    rewriter.replace(output, back)
    rewriter.erase(node)


def _single_axis(data: ir.Value | None, axis: int) -> int | None:
    """The one dimension that `axis` and all after it amount to, or None."""
    if axis == -1:
        return -1
    if data is None or data.shape is None:
        return None
    dims = len(data.shape)
    start = axis + dims if axis < 0 else axis
    if start == dims - 1:
        return -1
    wide = [index for index in range(start, dims) if data.shape[index] != 1]
    return wide[0] if len(wide) == 1 else None


def _shape_of(node: ir.Node, data: ir.Value, step: Step) -> tuple[ir.Value, bool]:
    """The shape of `data` as a value, and whether it may hold zeros that are meant as zeros."""
    static = static_shape(data)
    if static is not None and all(static):
        return _constant(node, np.array(static, np.int64), "shape", step), False
    (shape,) = step.rewriter.add("Shape", [data], before=node)
    return shape, step.to >= 14


def _group_norm_21(node: ir.Node, step: Step) -> None:
    """Scale and bias were per group; since 21 they are per channel."""
    data, groups = node.inputs[0], _value(node, "num_groups")
    channels = data.shape[1] if data is not None and data.shape is not None and len(data.shape) > 1 else None
    tables = [constant(node.inputs[1]), constant(node.inputs[2])]
    if not isinstance(channels, int) or any(table is None for table in tables) or channels % groups:
        raise Refused("its channels, scale or bias are not constant")
    for index, table in enumerate(tables, 1):
        if table is not None:
            wide = np.repeat(table, channels // groups)
            step.rewriter.set_input(node, index, _constant(node, wide, "scale" if index == 1 else "bias", step))


# -- names and defaults -------------------------------------------------------------------------------------------


def _scatter_11(node: ir.Node, step: Step) -> None:
    step.rewriter.set_op(node, "ScatterElements")


def _roi_align_16(node: ir.Node, step: Step) -> None:
    step.rewriter.set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")


def _grid_sample_20(node: ir.Node, step: Step) -> None:
    mode = _value(node, "mode", "bilinear")
    step.rewriter.set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def _scan_9(node: ir.Node, step: Step) -> None:
    raise Refused("Scan of opset 8 carries a batch dimension that later versions lack")


def _avg_pool_19(node: ir.Node, step: Step) -> None:
    if _value(node, "ceil_mode", 0) and _value(node, "count_include_pad", 0):
        raise Refused("averaging over padding with ceil_mode changed its divisor")


def _quantize_13(node: ir.Node, step: Step) -> None:
    scale = input_at(node, 1)
    if scale is not None and rank(scale) not in (None, 0) and static_shape(scale) != (1,):
        raise Refused("its scale is not a scalar")


_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)

ADAPTERS: dict[tuple[str, int], Adapter] = {
    ("BatchNormalization", 9): _batch_norm_9,
    ("Upsample", 9): _upsample_9,
    ("Scan", 9): _scan_9,
    ("Dropout", 10): _dropout_10,
    ("Slice", 10): _slice_10,
    ("TopK", 10): _topk_10,
    ("Upsample", 10): _upsample_10,
    ("Clip", 11): _clip_11,
    ("Pad", 11): _pad_11,
    ("Resize", 11): _resize_11,
    ("Scatter", 11): _scatter_11,
    ("Dropout", 12): _dropout_12,
    ("DequantizeLinear", 13): _quantize_13,
    ("QuantizeLinear", 13): _quantize_13,
    ("Hardmax", 13): _softmax_13,
    ("LogSoftmax", 13): _softmax_13,
    ("Softmax", 13): _softmax_13,
    ("ReduceSum", 13): _ints_to_input("axes", 1),
    ("Resize", 13): _resize_13,
    ("Split", 13): _ints_to_input("split", 1),
    ("Squeeze", 13): _ints_to_input("axes", 1),
    ("Unsqueeze", 13): _ints_to_input("axes", 1, drop_empty=False),
    ("BatchNormalization", 14): _batch_norm_14,
    ("RoiAlign", 16): _roi_align_16,
    **{(name, 18): _ints_to_input("axes", 1) for name in _REDUCTIONS},
    ("Split", 18): _split_18,
    ("AveragePool", 19): _avg_pool_19,
    ("DFT", 20): _dft_20,
    ("GridSample", 20): _grid_sample_20,
    ("GroupNormalization", 21): _group_norm_21,
}
"""(operator, version that changed it) -> how a node of the version before becomes one of it."""

_OPTIONAL_ATTRIBUTE = "what is new is an optional attribute whose default is the old behaviour"
_WIDER = "accepts more than before, and does the same with what was accepted"

COMPATIBLE: dict[tuple[str, int], str] = {
    **dict.fromkeys(
        [("ArgMax", 12), ("ArgMin", 12), ("AveragePool", 10), ("Cast", 19), ("Cast", 24)], _OPTIONAL_ATTRIBUTE
    ),
    **dict.fromkeys([("CastLike", 19), ("CastLike", 24), ("DepthToSpace", 11), ("GRU", 14)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("LSTM", 14), ("RNN", 14), ("GatherND", 12), ("LpPool", 18)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("MaxPool", 8), ("MaxPool", 10), ("Reshape", 14), ("Resize", 18)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("DequantizeLinear", 21), ("DequantizeLinear", 23)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("QuantizeLinear", 19), ("QuantizeLinear", 21), ("QuantizeLinear", 23)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("ScatterElements", 16), ("ScatterND", 16), ("Shape", 15), ("TopK", 11)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("Constant", 11), ("Constant", 12)], _OPTIONAL_ATTRIBUTE),
    **dict.fromkeys([("Attention", 24), ("Gemm", 11), ("OptionalHasElement", 18), ("Pad", 18)], _WIDER),
}
"""(operator, version) whose schema changed in form, but that need nothing done, and why."""
