"""fuse-affine: fold per-channel scales and shifts into the linear operator before or behind them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, rank, sole_consumer
from joulec.passes._affine import AFFINE, Affine, affine_of
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseAffine(RulePass):
    """Fold BatchNormalization and Mul, Div, Add, Sub by constants into Conv, ConvTranspose, Gemm and MatMul weights."""

    def rules(self, context: Context) -> list[Rule]:
        """Behind the linear operator first; what then still stands before one is tried after that."""
        times: dict[ir.Node, int] = {}
        return [AffineBehind(times), ScaleBefore(times)]


MAX_FUSIONS = 64
"""Scales and shifts that one operator takes in; each costs a pass over its weight, and a file may hold any number."""

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: the operator.
        weight: its weight's value.
        out_axis: the axis of the weight that runs over output channels (of one group).
        channel_axis: the channel axis of the operator's output, counted from the back.
        groups: groups of a ConvTranspose, whose weight is (in, out / groups, ...).
    """

    node: ir.Node
    weight: ir.Value
    out_axis: int
    channel_axis: int
    groups: int

    def numbers(self) -> Array:
        """The weight as float64."""
        found = constant(self.weight)
        if found is None:
            raise Refused("its weight is not a constant")
        return found.astype(np.float64)

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
        tensor = constant_tensor(self.weight)
        return () if tensor is None else tuple(int(d) for d in tensor.shape.numpy())

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
    tensor = constant_tensor(weight)
    if weight is None or tensor is None:
        if weight is not None and weight.is_initializer():
            raise Refused(f"weight '{weight.name}' is a graph input that callers may feed")
        return None
    if tensor.dtype not in FLOATS:
        return None
    dims = len(tensor.shape)
    match node.op_type:
        case "Conv":
            return Linear(node, weight, 0, 1 - dims, 1)
        case "ConvTranspose":
            return Linear(node, weight, 1, 1 - dims, attribute(node, "group", 1))
        case "Gemm":
            return Linear(node, weight, 0 if attribute(node, "transB", 0) else 1, -1, 1)
        case _ if dims == 2:
            return Linear(node, weight, 1, -1, 1)
    raise Refused(f"its weight has rank {dims}")


class AffineBehind(Rule):
    """affine(linear(x, w, b)) -> linear(x, w * scale, b * scale + shift)."""

    ops = AFFINE

    def __init__(self, times: dict[ir.Node, int]) -> None:
        self._times = times

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data = next((v for v in node.inputs if v is not None and _is_linear(v.producer())), None)
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


def _is_linear(node: ir.Node | None) -> bool:
    return node is not None and walk.is_onnx(node, *LINEAR)


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
        spread = np.repeat(per_group, numbers.shape[0] // linear.groups, axis=0)
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
    found = constant(value)
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
        flows = next((v for v in source.inputs if v is not None and constant_tensor(v) is None), None)
        if flows is None or (_is_linear(flows.producer()) and sole_consumer(flows) is source):
            return  # AffineBehind takes it
        affine = affine_of(source, flows, linear.channel_axis, rank(flows))
        if affine is None:
            return
        if sole_consumer(data) is not node:
            raise Refused(f"{walk.label(source)} before it is used elsewhere too")
        if _halves_gelu(source, flows):
            raise Refused(f"{walk.label(source)} ends a GELU, which runtimes fuse only as a whole")
        if source.op_type != "BatchNormalization":  # which cannot widen
            _require_width(flows, linear.channel_axis, max(affine.scale.size, affine.shift.size))
        _count(linear, self._times)
        _refit(linear, *_before(linear, affine), rewriter)
        rewriter.set_input(node, 0, flows)
        rewriter.erase(source)


def _halves_gelu(scale: ir.Node, flows: ir.Value) -> bool:
    """Whether `scale` is the last Mul of x * (1 + erf(..)) * 0.5, or of its form with Tanh."""
    product = flows.producer()
    if not walk.is_onnx(scale, "Mul") or product is None or not walk.is_onnx(product, "Mul"):
        return False
    sums = [value.producer() for value in product.inputs if value is not None]
    terms = [value for one in sums if one is not None and walk.is_onnx(one, "Add") for value in one.inputs]
    nodes = [None if value is None else value.producer() for value in terms]
    return any(node is not None and walk.is_onnx(node, "Erf", "Tanh") for node in nodes)


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
    node, numbers = linear.node, linear.numbers()
    groups = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    axis = 1 - linear.out_axis
    inputs = numbers.shape[axis] * groups
    whole = affine.channels(inputs)
    if whole is None:
        raise Refused(f"{affine.scale.size} channels before an operator of {inputs}")
    shape = [1] * numbers.ndim
    shape[axis] = -1
    if groups == 1:
        scale, shift = whole.scale.reshape(shape), whole.shift.reshape(shape)
    else:
        repeats, tail = numbers.shape[0] // groups, [1] * (numbers.ndim - 2)
        spread = [np.repeat(v.reshape(groups, -1), repeats, axis=0) for v in (whole.scale, whole.shift)]
        scale, shift = (v.reshape(*v.shape, *tail) for v in spread)
    if not affine.shifts:
        return numbers * scale, None
    if node.op_type == "MatMul":
        raise Refused("MatMul has no bias to take the shift")
    if node.op_type == "Conv" and (any(attribute(node, "pads", [])) or _auto_pads(node)):
        raise Refused("a shift before a padded Conv changes its border")
    others = tuple(i for i in range(numbers.ndim) if i != linear.out_axis)
    carried = np.sum(numbers * shift, axis=others)
    existing = _bias_numbers(linear, carried.size)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    if beta == 0:
        raise Refused("Gemm has beta = 0")
    return numbers * scale, carried * alpha / beta + (0.0 if existing is None else existing)


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
    mask = rewriter.module.masks.get(linear.weight.name or "")
    stored = _stored(weight if mask is None else np.where(mask, weight, 0.0), linear.weight)
    if np.any(weight) and np.max(np.abs(stored.numpy()), initial=0) < ml_dtypes.finfo(stored.dtype.numpy()).tiny:
        raise Refused("the fused weights would underflow")
    shifts = None if bias is None else _stored(bias, linear.weight)
    rewriter.set_input(node, 1, rewriter.constant(stored, _hint(linear.weight, "_scaled"), at=node, mask=mask))
    if shifts is not None:
        hint = _hint(old, "_shifted") if old is not None else f"{node.name or node.op_type}_bias"
        rewriter.set_input(node, 2, rewriter.constant(shifts, hint, at=node))


def _stored(numbers: Array, like: ir.Value) -> ir.TensorProtocol:
    """float64 numbers in the element type of `like`.

    Raises:
        Refused: a number is not finite there.
    """
    tensor = constant_tensor(like)
    dtype: Any = np.float32 if tensor is None else tensor.dtype.numpy()
    with np.errstate(over="ignore"):
        stored = numbers.astype(dtype)
    if not np.all(np.isfinite(stored.astype(np.float64))):
        raise Refused("the fused weights would not be finite")
    return ir.tensor(stored)
