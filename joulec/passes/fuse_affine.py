"""fuse-affine: fold per-channel scales and shifts into the linear operator before or behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.compact import Compact, compact_constant
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, input_at, rank, sole_consumer
from joulec.passes._affine import AFFINE, LINEAR, Affine, affine_of, halves_gelu, is_linear, vector_constant
from joulec.passes._affine_chain import IntoBatchNormalization, MergeConstants, ScaleBeforeShift
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseAffine(RulePass):
    """Fold BatchNormalization and Mul, Div, Add, Sub by constants into linear operators' weights, or into one another.

    Linear operators are Conv, ConvTranspose, Gemm and MatMul. Where none is near, a chain of scales and shifts becomes
    one BatchNormalization, or one Mul and one Add.
    """

    def rules(self, context: Context) -> list[Rule]:
        """Behind the linear operator first; what then still stands before one is tried after that."""
        times: dict[ir.Node, int] = {}
        return [AffineBehind(times), IntoBatchNormalization(), MergeConstants(), ScaleBeforeShift(), ScaleBefore(times)]


MAX_FUSIONS = 64
"""Scales and shifts that one operator takes in; each costs a pass over its weight, and a file may hold any number."""

MAX_COMPACT_BYTES = 1 << 16
"""What a fused weight may add to the file where the old one was computed, in float64; larger ones stay unfused."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: the operator.
        weight: its weight's value.
        held: the weight's numbers; where a node computes them, they are kept as compact as it does.
        out_axis: the axis of the weight that runs over output channels (of one group).
        channel_axis: the channel axis of the operator's output, counted from the back.
        groups: groups of a ConvTranspose, whose weight is (in, out / groups, ...).
    """

    node: ir.Node
    weight: ir.Value
    held: Compact
    out_axis: int
    channel_axis: int
    groups: int

    def numbers(self) -> Array:
        """The weight as float64, broadcasting to `numbers_shape`."""
        return self.held.numbers.astype(np.float64)

    def least_rank(self) -> int:
        """The rank that the output has at least, also where inference found none."""
        if self.node.op_type == "MatMul":
            return rank(self.node.outputs[0]) or 1
        return len(self.numbers_shape())

    def out_channels(self) -> int:
        """Channels of the output."""
        return int(self.numbers_shape()[self.out_axis]) * self.groups

    def numbers_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.held.shape

    def bias(self) -> ir.Value | None:
        """The bias input, if any."""
        return None if self.node.op_type == "MatMul" else input_at(self.node, 2)


def linear_of(node: ir.Node | None) -> Linear | None:
    """Read `node` as a linear operator with a constant float weight, or None.

    Raises:
        Refused: it is one, but its weight can be fed by the caller, has another rank, or is shared.
    """
    if node is None or not walk.is_onnx(node, *LINEAR) or len(node.inputs) < 2:
        return None
    weight = node.inputs[1]
    held = compact_constant(weight)
    if weight is None or held is None:
        if weight is not None and weight.is_initializer():
            raise Refused(f"weight '{weight.name}' is a graph input that callers may feed")
        return None
    if held.dtype not in FLOATS:
        return None
    dims = len(held.shape)
    match node.op_type:
        case "Conv":
            return Linear(node, weight, held, 0, 1 - dims, 1)
        case "ConvTranspose":
            return Linear(node, weight, held, 1, 1 - dims, attribute(node, "group", 1))
        case "Gemm":
            return Linear(node, weight, held, 0 if attribute(node, "transB", 0) else 1, -1, 1)
        case _ if dims == 2:
            return Linear(node, weight, held, 1, -1, 1)
    raise Refused(f"its weight has rank {dims}")


class AffineBehind(Rule):
    """affine(linear(x, w, b)) -> linear(x, w * scale, b * scale + shift)."""

    ops = AFFINE

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = next((v for v in node.inputs if v is not None and is_linear(v.producer())), None)
        linear = linear_of(data.producer()) if data is not None else None
        if data is None or linear is None:
            return
        affine = affine_of(node, data, linear.channel_axis, linear.least_rank())
        if affine is None:
            return
        if sole_consumer(data) is not node:
            raise Refused("the linear operator's output is used elsewhere too")
        if not rewriter.can_replace(node.outputs[0], data):
            raise Refused(f"'{node.outputs[0].name}' is a graph output and '{data.name}' cannot take its place")
        if linear.node.op_type == "MatMul" and affine.shifts:
            raise Refused("MatMul has no bias; fuse-gemm takes this shift where ranks allow")
        whole = affine.channels(linear.out_channels())
        if whole is None:
            raise Refused(f"it has {affine.scale.size} channels, the linear operator {linear.out_channels()}")
        _count(linear, self._times)
        _refit(linear, *_behind(linear, whole), rewriter)
        rewriter.replace(node.outputs[0], data)
        rewriter.erase(node)


def _behind(linear: Linear, affine: Affine) -> tuple[Array, Array | None]:
    """New weight and bias (None if there is none and none is needed), in float64."""
    numbers = linear.numbers()
    alpha, beta = (attribute(linear.node, name, 1.0) for name in ("alpha", "beta"))
    bias = _bias_numbers(linear, affine.scale.size)
    if linear.groups == 1:
        shape = [1] * numbers.ndim
        shape[linear.out_axis] = -1
        weight = numbers * affine.scale.reshape(shape)
    else:  # ConvTranspose: (in, out / groups, ...), input channels run over groups
        per_group = affine.scale.reshape(linear.groups, -1)
        spread = np.repeat(per_group, linear.numbers_shape()[0] // linear.groups, axis=0)
        weight = numbers * spread.reshape(*spread.shape, *[1] * (numbers.ndim - 2))
    del alpha  # scales x * w, so scaling w is enough
    if bias is None and not affine.shifts:
        return weight, None
    scaled = affine.shift if bias is None else bias * affine.scale + affine.shift / (beta or 1.0)
    if beta == 0:
        raise Refused("Gemm has beta = 0")
    return weight, scaled if bias is not None else affine.shift / beta


def _bias_numbers(linear: Linear, channels: int) -> Array | None:
    value = linear.bias()
    if value is None:
        return None
    found = vector_constant(value)
    if found is None:
        raise Refused("its bias is not a constant")
    if found.ndim > 1 and found.shape[-1] != found.size:
        raise Refused(f"its bias has rank {found.ndim}")
    return np.broadcast_to(found.astype(np.float64).reshape(-1), (channels,))


class ScaleBefore(Rule):
    """linear(affine(x), w, b) -> linear(x, w * scale, b + w . shift); a shift only where nothing is padded."""

    ops = LINEAR

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = node.inputs[0]
        source = None if data is None else data.producer()
        if data is None or source is None or not walk.is_onnx(source, *AFFINE) or node.op_type == "ConvTranspose":
            return
        linear = linear_of(node)
        if linear is None or (node.op_type == "Gemm" and attribute(node, "transA", 0)):
            return
        flows = next((v for v in source.inputs if v is not None and vector_constant(v) is None), None)
        if flows is None or (is_linear(flows.producer()) and sole_consumer(flows) is source):
            return  # AffineBehind takes it
        affine = affine_of(source, flows, linear.channel_axis, rank(flows))
        if affine is None:
            return
        if sole_consumer(data) is not node:
            raise Refused(f"{walk.label(source)} before it is used elsewhere too")
        if halves_gelu(source, flows):
            raise Refused(f"{walk.label(source)} ends a GELU, which runtimes fuse only as a whole")
        if source.op_type != "BatchNormalization":  # which cannot widen
            _require_width(flows, linear.channel_axis, max(affine.scale.size, affine.shift.size))
        _count(linear, self._times)
        _refit(linear, *_before(linear, affine), rewriter)
        rewriter.set_input(node, 0, flows)
        rewriter.erase(source)


def _require_width(flows: ir.Value, axis: int, channels: int) -> None:
    """A constant of many channels broadcasts an input of one; without the constant it would stay at one.

    Raises:
        Refused: that is so, or cannot be ruled out.
    """
    if channels == 1:
        return
    width = None if flows.shape is None else flows.shape[axis]
    if not isinstance(width, int):
        raise Refused(f"its constant of {channels} channels may widen an input of unknown channels")
    if width != channels:
        raise Refused(f"its constant of {channels} channels widens an input of {width}")


def _before(linear: Linear, affine: Affine) -> tuple[Array, Array | None]:
    node, numbers, dims = linear.node, linear.numbers(), linear.numbers_shape()
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    axis = 1 - linear.out_axis
    inputs = dims[axis] * groups
    whole = affine.channels(inputs)
    if whole is None:
        raise Refused(f"{affine.scale.size} channels before an operator of {inputs}")
    shape = [1] * numbers.ndim
    shape[axis] = -1
    if groups == 1:
        scale, shift = whole.scale.reshape(shape), whole.shift.reshape(shape)
    else:
        repeats, tail = dims[0] // groups, [1] * (numbers.ndim - 2)
        spread = [np.repeat(v.reshape(groups, -1), repeats, axis=0) for v in (whole.scale, whole.shift)]
        scale, shift = (v.reshape(*v.shape, *tail) for v in spread)
    if not affine.shifts:
        return numbers * scale, None
    if node.op_type == "MatMul":
        raise Refused("MatMul has no bias to take the shift")
    if node.op_type == "Conv" and (any(attribute(node, "pads", [])) or _auto_pads(node)):
        raise Refused("a shift before a padded Conv changes its border")
    others = tuple(i for i in range(numbers.ndim) if i != linear.out_axis)
    carried = _sum_of(numbers * shift, dims, others, dims[linear.out_axis])
    existing = _bias_numbers(linear, carried.size)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if beta == 0:
        raise Refused("Gemm has beta = 0")
    return numbers * scale, carried * alpha / beta + (0.0 if existing is None else existing)


def _sum_of(terms: Array, dims: tuple[int, ...], axes: tuple[int, ...], channels: int) -> Array:
    """The sum over `axes` of `terms` broadcast to `dims`, without making them that large; float64 (channels,)."""
    repeats = np.prod([dims[axis] // terms.shape[axis] for axis in axes], dtype=np.float64)
    return np.broadcast_to(np.sum(terms, axis=axes) * repeats, (channels,))


def _auto_pads(node: ir.Node) -> bool:
    return attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _count(linear: Linear, times: dict[ir.Node, int]) -> None:
    times[linear.node] = times.get(linear.node, 0) + 1
    if times[linear.node] > MAX_FUSIONS:
        raise Refused(f"its weight was rescaled {MAX_FUSIONS} times already")


def _hint(value: ir.Value, suffix: str) -> str:
    """A name that says what was done, once: names do not grow with every fusion."""
    return re.sub(rf"{suffix}(_\d+)?$", "", value.name or "") + suffix


def _refit(linear: Linear, weight: Array, bias: Array | None, rewriter: Rewriter) -> None:
    """Give the operator its new weight and bias; a mask stays, since scaling keeps zeros zero.

    Raises:
        Refused: the numbers do not fit the weight's type. Nothing was changed then.
    """
    node, old = linear.node, linear.bias()
    if not linear.held.stored and weight.nbytes > MAX_COMPACT_BYTES:
        raise Refused(f"its weight is computed; the fused one would add {weight.nbytes} bytes to the file")
    mask = rewriter.module.masks.get(linear.weight.name or "")
    stored = _stored(weight if mask is None else np.where(mask, weight, 0.0), linear)
    if np.any(weight) and np.max(np.abs(stored.numpy()), initial=0) < ml_dtypes.finfo(stored.dtype.numpy()).tiny:
        raise Refused("the fused weights would underflow")
    shifts = None if bias is None else _stored(bias, linear)
    fused = rewriter.constant(stored, _hint(linear.weight, "_scaled"), at=node, mask=mask)
    rewriter.set_input(node, 1, _in_full(fused, weight, linear, rewriter))
    if shifts is not None:
        hint = _hint(old, "_shifted") if old is not None else f"{node.name or node.op_type}_bias"
        rewriter.set_input(node, 2, rewriter.constant(shifts, hint, at=node))


def _in_full(fused: ir.Value, weight: Array, linear: Linear, rewriter: Rewriter) -> ir.Value:
    """The fused weight in full shape: by an Expand, which runtimes compute at load, where it was computed before."""
    if weight.shape == linear.numbers_shape():
        return fused
    shape = rewriter.constant(np.array(linear.numbers_shape(), np.int64), f"{fused.name}_shape", at=linear.node)
    (full,) = rewriter.add("Expand", [fused, shape], before=linear.node, name=f"{fused.name}_full")
    full.type, full.shape = ir.TensorType(linear.held.dtype), ir.Shape(linear.numbers_shape())
    return full


def _stored(numbers: Array, linear: Linear) -> ir.TensorProtocol:
    """float64 numbers in the element type of the weight.

    Raises:
        Refused: a number is not finite there.
    """
    dtype: Any = linear.held.dtype.numpy()
    with np.errstate(over="ignore"):
        stored = numbers.astype(dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))):
        raise Refused("the fused weights would not be finite")
    return ir.tensor(stored)
