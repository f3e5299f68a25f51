"""Reading a node as y = scale * x + shift per channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.compact import compact_constant
from joulec.ir.rewrite import Refused
from joulec.ir.values import Array, attribute, rank

AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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


MAX_VECTOR = 1 << 16
"""Elements of a computed constant that is read as a vector of channels; no operator has more channels than this."""


def vector_constant(value: ir.Value | None) -> Array | None:
    """The numbers of a constant, also of a small one that a node computes; else None."""
    held = compact_constant(value)
    if held is None or (not held.stored and held.size > MAX_VECTOR):
        return None
    return held.dense()


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
        return _batch_normalization(node, data, axis, dims)
    operands = [value for value in node.inputs if value is not data]
    if len(node.inputs) != 2 or len(operands) != 1 or node.attributes:  # before opset 7, `axis` aligned the operands
        return None
    other = vector_constant(operands[0])
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


def _batch_normalization(node: ir.Node, data: ir.Value, axis: int, least: int | None) -> Affine | None:
    if node.inputs[0] is not data:
        return None
    dims = least if rank(data) is None else rank(data)  # behind a Conv of unknown input the rank is the weight's
    if dims is None or axis != 1 - dims:
        raise Refused("BatchNormalization normalizes axis 1, which is not the channel axis here")
    if attribute(node, "training_mode", 0) or len(node.outputs) > 1:  # before opset 14 the outputs say so, used or not
        raise Refused("BatchNormalization is in training mode")
    parameters = [vector_constant(value) for value in node.inputs[1:5]]
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


def is_linear(node: ir.Node | None) -> bool:
    """Whether `node` is a linear operator; its weight may be anything."""
    return node is not None and walk.is_onnx(node, *LINEAR)


def halves_gelu(scale: ir.Node, flows: ir.Value) -> bool:
    """Whether `scale` is the last Mul of x * (1 + erf(..)) * 0.5, or of its form with Tanh."""
    product = flows.producer()
    if not walk.is_onnx(scale, "Mul") or product is None or not walk.is_onnx(product, "Mul"):
        return False
    sums = [value.producer() for value in product.inputs if value is not None]
    terms = [value for one in sums if one is not None and walk.is_onnx(one, "Add") for value in one.inputs]
    nodes = [None if value is None else value.producer() for value in terms]
    return any(node is not None and walk.is_onnx(node, "Erf", "Tanh") for node in nodes)


def is_normalized(value: ir.Value) -> bool:
    """Whether `value` is (x - mean) / sqrt(variance): runtimes look for the scale and the shift behind it, idle or not.

    Without them a layer normalization runs as seven operators instead of one.
    """
    node = value.producer()
    if node is None or not walk.is_onnx(node, "Div") or node.inputs[0] is None or node.inputs[1] is None:
        return False
    above, below = node.inputs[0].producer(), node.inputs[1].producer()
    return above is not None and below is not None and walk.is_onnx(above, "Sub") and walk.is_onnx(below, "Sqrt")


def in_layer_norm(flows: ir.Value) -> bool:
    """Whether a scale or shift of `flows` is that of a spelled-out layer normalization."""
    scale = flows.producer()
    if scale is None or not walk.is_onnx(scale, "Mul"):
        return is_normalized(flows)
    return is_normalized(flows) or any(value is not None and is_normalized(value) for value in scale.inputs)
