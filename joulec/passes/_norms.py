"""Reading spelled-out normalizations: layer, instance and root mean square, as all exporters spell them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from joulec.ir.rewrite import Refused
from joulec.ir.values import attribute, constant, input_at, rank
from joulec.passes._spelled import from_scalar, operands, producer, with_scalar


@dataclass(frozen=True)
class Moments:
    """The padded variance of x: mean((x - mean(x))^2) + epsilon, or of x itself where no mean is taken away.

    Attributes:
        x: what is normalized.
        axes: sorted, not negative.
        epsilon: what is added.
        centred: x - mean(x), None where there is no mean.
        mean: mean(x), or None.
        inner: the nodes it is made of, from the first to the sum with epsilon.
    """

    x: ir.Value
    axes: tuple[int, ...]
    epsilon: float
    centred: ir.Value | None
    mean: ir.Value | None
    inner: tuple[ir.Node, ...]


@dataclass(frozen=True)
class Norm:
    """x normalized by its moments, times a scale, plus a shift.

    Attributes:
        moments: what it is normalized by.
        scale, shift: None where there is none; they may be computed.
        last: the last node.
        inner: the nodes between the moments and the last one.
    """

    moments: Moments
    scale: ir.Value | None
    shift: ir.Value | None
    last: ir.Node
    inner: tuple[ir.Node, ...]


# -- reading ----------------------------------------------------------------------------------------------------------


def _moments(value: ir.Value | None) -> Moments | None:
    """Read mean(...) + epsilon."""
    add = producer(value, "Add")
    padded = with_scalar(add, "Add")
    variance = None if padded is None else producer(padded[0], "ReduceMean")
    square = None if variance is None else producer(variance.inputs[0], "Pow", "Mul")
    if add is None or padded is None or variance is None or square is None or not _squares(square):
        return None
    centred = square.inputs[0]
    subtract = producer(centred, "Sub")
    mean = None if subtract is None else producer(subtract.inputs[1], "ReduceMean")
    if centred is None:
        return None
    if subtract is None or mean is None or mean.inputs[0] is not subtract.inputs[0] or subtract.inputs[0] is None:
        axes = _axes(variance, rank(centred))
        return None if axes is None else Moments(centred, axes, padded[1], None, None, (square, variance, add))
    x = subtract.inputs[0]
    first, second = _axes(mean, rank(x)), _axes(variance, rank(x))
    if first is None or first != second:
        raise Refused("the two means are not known to be over the same axes")
    inner = (mean, subtract, square, variance, add)
    return Moments(x, first, padded[1], centred, mean.outputs[0], inner)


def _squares(node: ir.Node) -> bool:
    if node.op_type == "Mul":
        return node.inputs[0] is node.inputs[1]
    found = constant(node.inputs[1])
    return found is not None and found.size == 1 and float(found.reshape(-1)[0]) == 2.0


def _axes(node: ir.Node, dims: int | None) -> tuple[int, ...] | None:
    """The axes of a ReduceMean that keeps its dimensions, sorted; None where it does not or they are not known."""
    if dims is None or attribute(node, "keepdims", 1) != 1 or len(node.inputs) > 2:
        return None
    given = attribute(node, "axes", None) if input_at(node, 1) is None else constant(input_at(node, 1))
    if given is None or np.asarray(given).size == 0:
        return None
    return tuple(sorted({int(axis) % dims for axis in np.asarray(given).reshape(-1)}))


def _root(value: ir.Value | None) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """(v, nodes) of sqrt(v)."""
    node = producer(value, "Sqrt")
    if node is not None and node.inputs[0] is not None:
        return node.inputs[0], (node,)
    power = with_scalar(producer(value, "Pow"), "Pow")
    made = producer(value, "Pow")
    return (power[0], (made,)) if power is not None and made is not None and power[1] == 0.5 else None


def _inverse_root(value: ir.Value | None) -> tuple[ir.Value, ir.Value | None, tuple[ir.Node, ...]] | None:
    """(v, scale, nodes) of scale / sqrt(v), where the scale may be missing."""
    node = producer(value, "Reciprocal", "Div", "Pow", "Mul")
    if node is None:
        return None
    if node.op_type == "Reciprocal":
        found = _root(node.inputs[0])
        return None if found is None else (found[0], None, (node, *found[1]))
    if node.op_type == "Pow":
        power = with_scalar(node, "Pow")
        return (power[0], None, (node,)) if power is not None and power[1] == -0.5 else None
    if node.op_type == "Div":
        found = _root(node.inputs[1])
        one = from_scalar(node, "Div")
        if found is None:
            return None
        return found[0], None if one is not None and one[0] == 1.0 else node.inputs[0], (node, *found[1])
    for one_side, scale in operands(node, "Mul"):
        inner = _inverse_root(one_side) if producer(one_side, "Reciprocal", "Div", "Pow") is not None else None
        if inner is not None and inner[1] is None:
            return inner[0], scale, (node, *inner[2])
    return None


def read_norm(node: ir.Node) -> Norm | None:
    """Read `node` as the end of a normalization: a quotient, a product with an inverse root, or a sum of products."""
    if node.op_type == "Div":
        found = _root(node.inputs[1])
        moments = None if found is None else _moments(found[0])
        if found is None or moments is None or not _is_numerator(node.inputs[0], moments):
            return None
        return Norm(moments, None, None, node, found[1])
    if node.op_type == "Mul":
        for value, inverse in operands(node, "Mul"):
            turned = _inverse_root(inverse)
            moments = None if turned is None else _moments(turned[0])
            if turned is not None and moments is not None and _is_numerator(value, moments):
                return Norm(moments, turned[1], None, node, turned[2])
        return None
    return _read_sum(node)


def _is_numerator(value: ir.Value | None, moments: Moments) -> bool:
    return value is not None and value is (moments.x if moments.centred is None else moments.centred)


def _read_sum(node: ir.Node) -> Norm | None:
    """x * k + (shift - mean * k), where k = scale / sqrt(variance): how TensorFlow spells it."""
    for product, rest in operands(node, "Add"):
        for x, inverse in operands(producer(product, "Mul"), "Mul"):
            turned = _inverse_root(inverse)
            moments = None if turned is None else _moments(turned[0])
            if turned is None or moments is None or moments.mean is None or moments.x is not x:
                continue
            shift = _shift(rest, moments.mean, inverse)
            if shift is None:
                continue
            inner = (*turned[2], *_made(product), *shift[1])
            return Norm(moments, turned[1], shift[0], node, inner)
    return None


def _made(value: ir.Value) -> tuple[ir.Node, ...]:
    node = value.producer()
    return () if node is None else (node,)


def _shift(
    value: ir.Value, mean: ir.Value, inverse: ir.Value
) -> tuple[ir.Value | None, tuple[ir.Node, ...]] | None:
    """(shift, nodes) of shift - mean * inverse, or of its negative spellings; a shift of None is 0."""
    if (found := _negative(value, mean, inverse)) is not None:
        return None, found
    subtract = producer(value, "Sub")
    if subtract is not None and _is_product(subtract.inputs[1], mean, inverse):
        return subtract.inputs[0], (subtract, *_made(subtract.inputs[1]))  # type: ignore[arg-type]  # just read
    add = producer(value, "Add")
    for one, shift in operands(add, "Add"):
        found = _negative(one, mean, inverse)
        if found is not None and add is not None:
            return shift, (add, *found)
    return None


def _negative(value: ir.Value, mean: ir.Value, inverse: ir.Value) -> tuple[ir.Node, ...] | None:
    """The nodes of -mean * inverse, in any spelling."""
    node = producer(value, "Neg")
    if node is not None and node.inputs[0] is not None and _is_product(node.inputs[0], mean, inverse):
        return (node, *_made(node.inputs[0]))
    for one, other in operands(producer(value, "Mul"), "Mul"):
        for first, second in ((mean, inverse), (inverse, mean)):
            negated = producer(one, "Neg")
            if negated is not None and negated.inputs[0] is first and other is second:
                return (*_made(value), negated)
    return None


def _is_product(value: ir.Value | None, one: ir.Value, other: ir.Value) -> bool:
    return any(pair == (one, other) for pair in operands(producer(value, "Mul"), "Mul"))
