"""fuse-affine: fold per-channel scales and shifts into the linear operator before or behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, rank, sole_consumer
from joulec.passes.base import Context, RulePass


@dataclass(frozen=True)
class FuseAffine(RulePass):
    """Fold BatchNormalization and Mul, Div, Add, Sub by constants into Conv, ConvTranspose, Gemm and MatMul weights."""

    def rules(self, context: Context) -> list[Rule]:
        """Behind the linear operator first; what then still stands before one is tried after that."""
        return [AffineBehind(), ScaleBefore()]


LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift per channel; float64 arrays of shape (channels,) or (1,)."""

    scale: Array
    shift: Array

    @property
    def shifts(self) -> bool:
        """Whether the shift is not zero everywhere."""
        return bool(np.any(self.shift))

    def channels(self, count: int) -> Affine | None:
        """The same for `count` channels, or None if it was made for another number."""
        if self.scale.size not in (1, count) or self.shift.size not in (1, count):
            return None
        return Affine(np.broadcast_to(self.scale, (count,)), np.broadcast_to(self.shift, (count,)))


def affine_of(node: ir.Node, data: ir.Value, axis: int, dims: int | None) -> Affine | None:
    """Read `node` as an affine map of `data` per index of `axis`; None where it is none.

    Args:
        node: one of `AFFINE`.
        data: the operand that flows through.
        axis: the channel axis of `data`, counted from the back (negative).
        dims: the rank that `data` has at least, or None where that is not known.

    Raises:
        Refused: it is one in principle, but not per channel, or in training mode.
    """
    if node.op_type == "BatchNormalization":
        return _batch_normalization(node, data, axis)
    operands = [value for value in node.inputs if value is not data]
    if len(node.inputs) != 2 or len(operands) != 1 or node.attributes:  # before opset 7, `axis` aligned the operands
        return None
    other = constant(operands[0])
    if other is None:
        return None
    first = node.inputs[0] is data
    if node.op_type == "Div" and not (first and np.all(other != 0)):
        return None
    vector = _per_channel(other, axis, dims).astype(np.float64)
    zero, one = np.zeros(1), np.ones(1)
    match node.op_type:
        case "Mul":
            return Affine(vector, zero)
        case "Add":
            return Affine(one, vector)
        case "Sub":
            return Affine(one, -vector) if first else Affine(-one, vector)
        case _:
            return Affine(1.0 / vector, zero)


def _batch_normalization(node: ir.Node, data: ir.Value, axis: int) -> Affine | None:
    if node.inputs[0] is not data:
        return None
    dims = rank(data)
    if dims is None or axis != 1 - dims:
        raise Refused("BatchNormalization normalizes axis 1, which is not the channel axis here")
    if attribute(node, "training_mode", 0) or len(node.outputs) > 1:  # before opset 14 the outputs say so, used or not
        raise Refused("BatchNormalization is in training mode")
    parameters = [constant(value) for value in node.inputs[1:5]]
    if len(parameters) != 4 or any(p is None for p in parameters):
        raise Refused("BatchNormalization's parameters are not constants")
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    if gamma.ndim != 1:
        raise Refused("BatchNormalization normalizes each activation by itself")
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return Affine(scale, beta - mean * scale)


def _per_channel(array: Array, axis: int, dims: int | None) -> Array:
    """A broadcast operand as a vector along `axis` (negative).

    Raises:
        Refused: it varies along another axis, or broadcasting it would grow the other operand.
    """
    if array.size == 1:
        if array.ndim > (dims or 0):
            raise Refused(f"a constant of rank {array.ndim} raises the rank")
        return array.reshape(1)
    if dims is None or array.ndim > dims:
        raise Refused("the rank of its input is not known" if dims is None else "its constant raises the rank")
    if array.ndim < -axis or array.shape[axis] != array.size:
        raise Refused(f"its constant of shape {list(array.shape)} is not per channel")
    return array.reshape(-1)


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
        _require_width(flows, linear.channel_axis, max(affine.scale.size, affine.shift.size))
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
    rewriter.set_input(node, 1, rewriter.constant(stored, f"{linear.weight.name}_scaled", at=node, mask=mask))
    if shifts is not None:
        hint = f"{old.name}_shifted" if old is not None else f"{node.name or node.op_type}_bias"
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
