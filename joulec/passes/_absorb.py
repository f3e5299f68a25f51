"""Dividing the channels of an activation by factors, where what makes it can take the division in without a trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, input_at, rank
from joulec.passes._layers import Layer, layer_of, put

HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Operators with f(x / s) = f(x) / s for positive s, channel by channel."""

DEPTH = 8
"""Operators that are looked through."""


@dataclass
class Absorber:
    """How an activation can be divided by factors.

    Attributes:
        layer: the layer that makes it, where one does; its output channels are what is divided.
        steps: what has to be done, each given the factors.
    """

    layer: Layer | None = None
    steps: list[Callable[[Rewriter, Array], None]] = field(default_factory=list)

    def apply(self, rewriter: Rewriter, factors: Array) -> None:
        """Divide; `factors` is float64 (channels,), positive."""
        for step in self.steps:
            step(rewriter, factors)


def absorber(value: ir.Value, axis: int, channels: int) -> Absorber | str:
    """How `value` can be divided along `axis` (1 for images, -1 for rows), or why it cannot."""
    found = Absorber()
    for _ in range(DEPTH):
        node = value.producer()
        if node is None:
            return "its input is the model's own"
        if value.is_graph_output() or any(use.node.graph is not node.graph for use in value.uses()):
            return f"'{value.name}' is used elsewhere"
        further = _step(node, axis, channels, found)
        if isinstance(further, str):
            return further
        if further is None:
            return found
        if len(further.uses()) != 1:
            return f"'{further.name}' is used elsewhere"
        value = further
    return "what makes its input is too far away"


def _step(node: ir.Node, axis: int, channels: int, found: Absorber) -> ir.Value | str | None:
    """Take `node` in: None where it took the division, the value to go on with, or why it cannot."""
    if walk.is_onnx(node, *HOMOGENEOUS) and (axis == 1 or node.op_type in ("Relu", "LeakyRelu")):
        return input_at(node, 0) or "an operand is missing"
    if (layer := layer_of(node)) is not None:
        return _layer(layer, axis, channels, found)
    if walk.is_onnx(node, "LayerNormalization"):
        return _normalization(node, axis, channels, found)
    if walk.is_onnx(node, "Add", "Mul"):
        return _arithmetic(node, axis, channels, found)
    return f"{node.op_type} before it takes no factor in"


def _layer(layer: Layer, axis: int, channels: int, found: Absorber) -> str | None:
    node, bias = layer.node, input_at(layer.node, 2) if layer.node.op_type != "MatMul" else None
    if layer.input_axis != axis or layer.matrix().shape[0] != channels:
        return "what makes it has other channels"
    numbers = None if bias is None else constant(bias)
    if bias is not None and (numbers is None or numbers.size not in (1, channels) or numbers.ndim > 1):
        return "the bias before it is no vector of constants"

    def divide(rewriter: Rewriter, factors: Array) -> None:
        matrix = layer.matrix() / factors[:, None]
        put(rewriter, node, 1, layer.laid_out(matrix), f"{layer.weight.name}_balanced")
        if bias is not None and numbers is not None:
            put(rewriter, node, 2, np.asarray(numbers / factors, np.float32), f"{bias.name}_balanced")

    found.layer = layer
    found.steps.append(divide)
    return None


def _normalization(node: ir.Node, axis: int, channels: int, found: Absorber) -> str | None:
    dims = rank(node.inputs[0])
    last = attribute(node, "axis", -1) in (-1, None if dims is None else dims - 1)
    if axis != -1 or not last or sum(bool(value.name and value.uses()) for value in node.outputs) != 1:
        return "the normalization before it runs along other axes"
    operands = [(i, constant(value)) for i in (1, 2) if (value := input_at(node, i)) is not None]
    if any(numbers is None or numbers.shape != (channels,) or numbers.dtype != np.float32 for _, numbers in operands):
        return "the normalization before it has no constant scale"
    for index, numbers in operands:
        found.steps.append(_divide(node, index, np.asarray(numbers)))
    return None


def _arithmetic(node: ir.Node, axis: int, channels: int, found: Absorber) -> ir.Value | str | None:
    """Add: divide its constant and go on with the other operand. Mul: its constant takes all."""
    stored = [index for index in (0, 1) if constant(input_at(node, index)) is not None]
    if len(stored) != 1 or axis != -1:
        return f"{node.op_type} before it takes no factor in"
    numbers, other = np.asarray(constant(node.inputs[stored[0]])), node.inputs[1 - stored[0]]
    if numbers.shape[-1:] != (channels,) or numbers.size != channels or numbers.dtype != np.float32 or other is None:
        return f"the constant of {node.op_type} before it is no vector"
    if (rank(other) or 0) < numbers.ndim:
        return f"the constant of {node.op_type} before it has more dimensions than it"
    found.steps.append(_divide(node, stored[0], numbers))
    return None if node.op_type == "Mul" else other


def _divide(node: ir.Node, index: int, numbers: Array) -> Callable[[Rewriter, Array], None]:
    def divide(rewriter: Rewriter, factors: Array) -> None:
        put(rewriter, node, index, np.asarray(numbers / factors, np.float32), f"{node.inputs[index].name}_balanced")  # type: ignore[union-attr]

    return divide


def power_of_two(factors: Array) -> Array:
    """The nearest powers of two, within 2^16 of 1: dividing and multiplying by them rounds nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponents = np.rint(np.log2(factors))
    return np.asarray(np.exp2(np.clip(np.nan_to_num(exponents, nan=0.0, posinf=0.0, neginf=0.0), -16, 16)))
