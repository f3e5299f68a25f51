"""Scales and shifts change places with what stands between them and a linear operator that can take them in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Refused, Rewriter
from joulec.ir.rules import Rule
from joulec.ir.values import Array, attribute, constant, input_at, rank, sole_consumer
from joulec.passes._affine import affine_of, is_linear, vector_constant
from joulec.passes._layout import inverse, perm_of
from joulec.passes._linear import Linear, linear_of, require_width

ARITHMETIC = ("Mul", "Div", "Add", "Sub")
MAX_STEPS = 4
"""How far is looked for a linear operator."""


def operands(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """(x, c) of a Mul, Div, Add or Sub of x and a constant c; else None."""
    if not walk.is_onnx(node, *ARITHMETIC) or len(node.inputs) != 2 or node.attributes:
        return None
    for x, other in (node.inputs, reversed(node.inputs)):
        numbers = vector_constant(other)
        if x is not None and numbers is not None and vector_constant(x) is None:
            return x, numbers
    return None


def _again(node: ir.Node, x: ir.Value, numbers: Array, before: ir.Node, like: ir.Value, rewriter: Rewriter) -> ir.Value:
    """The operator `node` once more, on another operand and in another place."""
    fixed = rewriter.constant(np.ascontiguousarray(numbers), f"{node.name or node.op_type}_moved", at=before)
    first = vector_constant(node.inputs[0]) is None
    pair = [x, fixed] if first else [fixed, x]
    (output,) = rewriter.add(node.op_type, pair, before=before, name=node.name, like=like)
    return output


class AffineUnderTranspose(Rule):
    """Conv(Transpose(x op c)) -> Conv(Transpose(x) op c), which the Conv may take; few channels last are slow."""

    ops = ("Transpose",)

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        data, perm = node.inputs[0], perm_of(node)
        source = None if data is None else data.producer()
        found = None if source is None else operands(source)
        if data is None or source is None or found is None or perm is None or not _leads_to_conv(node.outputs[0]):
            return
        x, numbers = found
        if is_linear(x.producer()):
            return  # AffineBehind's; moving it here and there would not end
        if sole_consumer(data) is not node:
            raise Refused(f"{walk.label(source)} before it is used elsewhere too")
        if x.shape is None or len(x.shape) != len(perm) or numbers.ndim > len(perm):
            raise Refused("its constant may raise the rank")
        whole = numbers.reshape((1,) * (len(perm) - numbers.ndim) + numbers.shape)
        if any(mine not in (1, theirs) for mine, theirs in zip(whole.shape, x.shape, strict=True)):
            raise Refused("its constant may widen what it is combined with")
        (turned,) = rewriter.add("Transpose", [x], {"perm": list(perm)}, before=node, name=node.name)
        turned.type, turned.shape = x.type, ir.Shape([x.shape[axis] for axis in perm])
        output = _again(source, turned, whole.transpose(perm), node, node.outputs[0], rewriter)
        rewriter.replace(node.outputs[0], output)
        rewriter.erase(node)
        rewriter.erase(source)


def _leads_to_conv(value: ir.Value) -> bool:
    for _ in range(MAX_STEPS):
        user = sole_consumer(value)
        if user is None or walk.is_onnx(user, "Conv"):
            return user is not None and user.inputs[0] is value
        if operands(user) is None:
            return False
        value = user.outputs[0]
    return False


class AffineBeforeMovement(Rule):
    """movement(linear(x)) op c -> movement(linear(x) op c), where the linear operator can take the constant in."""

    ops = ARITHMETIC

    def apply(self, node: ir.Node, rewriter: Rewriter) -> None:
        found = operands(node)
        path = [] if found is None else _movements(found[0], node)
        if found is None or not path or (result := path[-1].inputs[0]) is None or not is_linear(result.producer()):
            return
        linear, dims = linear_of(result.producer()), rank(found[0])
        if linear is None or (linear.node.op_type == "MatMul" and node.op_type in ("Add", "Sub") and rank(result) != 2):
            return
        if sole_consumer(result) is not path[-1]:
            raise Refused("the linear operator's output is used elsewhere too")
        if dims is None or found[1].ndim > dims:
            raise Refused("its constant may raise the rank")
        if not rewriter.can_replace(node.outputs[0], found[0]):
            raise Refused(f"'{node.outputs[0].name}' is a graph output, and cannot be renamed")
        numbers = found[1].reshape((1,) * (dims - found[1].ndim) + found[1].shape)
        for step in path:
            numbers = _UNDO[step.op_type](step, numbers)
        _require_channels(numbers, linear)
        moved = _again(node, result, numbers, path[-1], result, rewriter)
        rewriter.set_input(path[-1], 0, moved)
        rewriter.replace(node.outputs[0], found[0])
        rewriter.erase(node)


def _movements(value: ir.Value, reader: ir.Node) -> list[ir.Node]:
    """The operators between `value` and what is computed that only move elements, each with one reader; last first."""
    path: list[ir.Node] = []
    while len(path) < MAX_STEPS:
        step = value.producer()
        if step is None or not walk.is_onnx(step, *_UNDO) or sole_consumer(value) is not reader:
            break
        source = step.inputs[0]
        if source is None:
            break
        path.append(step)
        value, reader = source, step
    return path


def _require_channels(numbers: Array, linear: Linear) -> None:
    axis = linear.channel_axis
    if numbers.size > 1 and (numbers.shape[axis] != numbers.size or numbers.size != linear.out_channels()):
        raise Refused("its constant is not per channel of the linear operator")


def _undo_transpose(step: ir.Node, numbers: Array) -> Array:
    perm = perm_of(step)
    if perm is None or len(perm) != numbers.ndim:
        raise Refused("the order of a Transpose before it is not known")
    return numbers.transpose(inverse(perm))


def _axes(step: ir.Node, dims: int) -> list[int]:
    """The axes of Squeeze, Unsqueeze and Slice, not negative.

    Raises:
        Refused: they are computed or left out.
    """
    place = 3 if step.op_type == "Slice" else 1
    given = attribute(step, "axes")
    numbers = constant(input_at(step, place)) if given is None else np.asarray(given)
    if numbers is None:
        raise Refused(f"the axes of {walk.label(step)} before it are not known")
    return [int(axis) % dims for axis in numbers.ravel()]


def _undo_squeeze(step: ir.Node, numbers: Array) -> Array:
    dims = rank(step.inputs[0])
    if dims is None:
        raise Refused("the rank of its input is not known")
    axes = _axes(step, dims)
    if len(set(axes)) + numbers.ndim != dims:
        raise Refused("the axes of a Squeeze before it do not fit")
    return np.expand_dims(numbers, tuple(sorted(set(axes))))


def _undo_unsqueeze(step: ir.Node, numbers: Array) -> Array:
    axes = tuple(sorted(set(_axes(step, numbers.ndim))))
    if any(numbers.shape[axis] != 1 for axis in axes):
        raise Refused("its constant may widen what it is combined with")
    return numbers.squeeze(axes)


def _undo_slice(step: ir.Node, numbers: Array) -> Array:
    if numbers.size > 1 and any(numbers.shape[axis] != 1 for axis in _axes(step, numbers.ndim)):
        raise Refused("the channels are sliced before it")
    return numbers


def _undo_reshape(step: ir.Node, numbers: Array) -> Array:
    before, after = step.inputs[0], step.outputs[0]
    if before is None or before.shape is None or after.shape is None or not len(before.shape):
        raise Refused("the shape of what is reshaped before it is not known")
    shape = [1] * len(before.shape)
    if numbers.size > 1:
        width = numbers.size
        if numbers.shape[-1] != width or before.shape[-1] != width or after.shape[-1] != width:
            raise Refused("it is reshaped before, and its constant does not run along a last axis that stays")
        shape[-1] = width
    return numbers.reshape(shape)


_UNDO: dict[str, Callable[[ir.Node, Array], Array]] = {
    "Transpose": _undo_transpose,
    "Squeeze": _undo_squeeze,
    "Unsqueeze": _undo_unsqueeze,
    "Slice": _undo_slice,
    "Reshape": _undo_reshape,
}


def scale_and_shift(node: ir.Node, linear: Linear) -> tuple[ir.Node, ir.Node, ir.Value, Array, Array] | None:
    """(shift, scale, x, s, t) of linear(shift(scale(x))) with shift(scale(x)) = s * x + t per channel; else None.

    Raises:
        Refused: they are there, but used elsewhere too, or not per channel.
    """
    data = node.inputs[0]
    shift = None if data is None else data.producer()
    flows = None if shift is None or not walk.is_onnx(shift, "Add", "Sub") else operands(shift)
    scale = None if flows is None else flows[0].producer()
    x = None if scale is None or not walk.is_onnx(scale, "Mul", "Div") else operands(scale)
    if data is None or shift is None or flows is None or scale is None or x is None:
        return None
    if sole_consumer(data) is not node or sole_consumer(flows[0]) is not shift:
        raise Refused("the scale or the shift before it is used elsewhere too")
    outer = affine_of(shift, flows[0], linear.channel_axis, rank(flows[0]))
    inner = affine_of(scale, x[0], linear.channel_axis, rank(x[0]))
    if outer is None or inner is None:
        return None
    require_width(x[0], linear.channel_axis, max(outer.shift.size, inner.scale.size))
    return shift, scale, x[0], outer.scale * inner.scale, outer.shift
