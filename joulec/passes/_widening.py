"""Which operators work as well on values [n, c, t] with a height: [n, c, 1, t]; and what changes in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.rewrite import Rewriter
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at, rank
from joulec.passes._layout import ELEMENTWISE, REDUCTIONS, UNARY, reduced_axes, set_reduced_axes

AXIS = 2
"""Where the new dimension goes: before the last one."""

POOLS = ("MaxPool", "AveragePool")
BY_CHANNEL = ("BatchNormalization", "InstanceNormalization", "GlobalAveragePool", "GlobalMaxPool")
"""Operators that take images of any number of dimensions, and say nothing about them."""

SPATIAL = {"kernel_shape": [1], "strides": [1], "dilations": [1]}
"""What the attributes of a window are in the new dimension."""


def data_inputs(node: ir.Node) -> list[int] | None:
    """The indices of the inputs of `node` that get the dimension with its outputs; None where that cannot be."""
    if not walk.is_onnx(node) or not all(rank(output) == 3 for output in node.outputs):
        return None
    if any(given.is_ref() for given in node.attributes.values()):
        return None
    indices = _candidates(node)
    if not indices or not all(rank(node.inputs[index]) == 3 for index in indices):
        return None
    return indices


def _candidates(node: ir.Node) -> list[int] | None:
    op = node.op_type
    if op == "Conv":
        return [0] if constant_tensor(node.inputs[1]) is not None else None
    if op in POOLS or op in BY_CHANNEL:
        return [0] if len(node.outputs) == 1 else None
    if op in UNARY or op == "Split":
        return [0]
    if op == "Concat":
        return None if any(map(_fixed, node.inputs)) else list(range(len(node.inputs)))
    if op in ELEMENTWISE:
        return [index for index, value in enumerate(node.inputs) if not _fixed(value)]
    if op in REDUCTIONS and attribute(node, "keepdims", 1):
        return [0] if reduced_axes(node, 3) is not None else None
    return None


def _fixed(value: ir.Value | None) -> bool:
    return constant_tensor(value) is not None


def _axis(axis: int) -> int:
    """Where dimension `axis` of three stands among four."""
    return axis % 3 if axis % 3 < AXIS else 3


def widen(node: ir.Node, rewriter: Rewriter) -> None:
    """Adapt a node of the region to values of four dimensions."""
    op = node.op_type
    if op == "Conv":
        rewriter.set_input(node, 1, _widened(node.inputs[1], node, rewriter))
    if op == "Conv" or op in POOLS:
        _widen_window(node, rewriter)
    elif op in ("Concat", "Split"):
        rewriter.set_attribute(node, "axis", _axis(attribute(node, "axis", 0)))
    elif op in REDUCTIONS:
        set_reduced_axes(node, tuple(map(_axis, reduced_axes(node, 3) or ())), rewriter)
    elif op in ELEMENTWISE:
        for index, value in enumerate(node.inputs):
            if _fixed(value):
                rewriter.set_input(node, index, _widened(value, node, rewriter))


def _widen_window(node: ir.Node, rewriter: Rewriter) -> None:
    for name, first in SPATIAL.items():
        if (given := attribute(node, name)) is not None:
            rewriter.set_attribute(node, name, [*first, *given])
    if (pads := attribute(node, "pads")) is not None:
        rewriter.set_attribute(node, "pads", [0, pads[0], 0, pads[1]])


def _widened(value: ir.Value | None, node: ir.Node, rewriter: Rewriter) -> ir.Value | None:
    """A constant operand with the dimension, where it has that many that it matters."""
    tensor = constant_tensor(value)
    if value is None or tensor is None or len(tensor.shape) < 2:
        return value
    place = len(tensor.shape) - 1

    def moved(elements: Array) -> Array:
        return np.expand_dims(elements, place)

    stored = ir.tensor(moved(tensor.numpy()), dtype=tensor.dtype)
    return rewriter.constant(stored, f"{value.name}_wide", at=node, follows=value, moved=moved)


def insert_dimension(value: ir.Value) -> None:
    """Tell the new dimension in the shape of `value`."""
    if value.shape is not None:
        dims = list(value.shape)
        value.shape = ir.Shape([*dims[:AXIS], 1, *dims[AXIS:]])


# -- the border ---------------------------------------------------------------------------------------------------


def widens(node: ir.Node) -> bool:
    """Whether a relayout in front of a region can make the dimension itself."""
    if walk.is_onnx(node, "Unsqueeze"):
        return _named_axes(node) is not None
    target = _target(node)
    return target is not None and len(target) == 3 and target[AXIS] != 0


def widen_source(node: ir.Node, rewriter: Rewriter) -> None:
    """Let it do so."""
    if node.op_type == "Unsqueeze":
        _set_axes(node, sorted({AXIS, *map(_axis, _named_axes(node) or ())}), rewriter)
        return
    target = _target(node) or []
    _set_target(node, [*target[:AXIS], 1, *target[AXIS:]], rewriter)


def takes_in(node: ir.Node, index: int) -> bool:
    """Whether a reader behind a region can take the dimension away itself."""
    if index != 0 or any(given.is_ref() for given in node.attributes.values()):
        return False
    if walk.is_onnx(node, "Squeeze"):
        return _all_ones(node) or _named_axes(node) is not None
    if walk.is_onnx(node, *REDUCTIONS) and not attribute(node, "keepdims", 1):
        return reduced_axes(node, 3) is not None
    target = _target(node)
    return walk.is_onnx(node, "Flatten") or (target is not None and 0 not in target[AXIS:])


def take_in(node: ir.Node, rewriter: Rewriter) -> None:
    """Let it do so; a Reshape to a target that copies nothing behind the dimension does already."""
    if node.op_type == "Squeeze" and not _all_ones(node):
        _set_axes(node, sorted({AXIS, *map(_axis, _named_axes(node) or ())}), rewriter)
    elif node.op_type in REDUCTIONS:
        axes = sorted({AXIS, *map(_axis, reduced_axes(node, 3) or ())})
        set_reduced_axes(node, tuple(axes), rewriter)
    elif node.op_type == "Flatten":
        axis = attribute(node, "axis", 1)
        axis += 3 if axis < 0 else 0
        rewriter.set_attribute(node, "axis", axis + 1 if axis > AXIS else axis)


def relaid(
    op_type: str, value: ir.Value, anchor: ir.Node, rewriter: Rewriter, *, behind: bool = False
) -> ir.Value:  # fmt: skip
    """A new Unsqueeze or Squeeze of `value`, before `anchor` or behind it."""
    attributes: dict[str, object] = {}
    inputs = [value]
    if rewriter.module.opset < 13:
        attributes["axes"] = [AXIS]
    else:
        inputs.append(rewriter.constant(np.array([AXIS], np.int64), f"{value.name}_height", at=anchor))
    before, after = (None, anchor) if behind else (anchor, None)
    (made,) = rewriter.add(op_type, inputs, attributes, before=before, after=after)
    made.dtype = value.dtype  # type: ignore[assignment]
    if value.shape is not None:
        dims = list(value.shape)
        kept = [*dims[:AXIS], *dims[AXIS + 1 :]] if op_type == "Squeeze" else [*dims[:AXIS], 1, *dims[AXIS:]]
        made.shape = ir.Shape(kept)
    return made


def _all_ones(node: ir.Node) -> bool:
    """Whether a Squeeze names no axes and takes all dimensions of 1 away."""
    return attribute(node, "axes") is None and input_at(node, 1) is None


def _named_axes(node: ir.Node) -> list[int] | None:
    """The axes of a Squeeze or an Unsqueeze to or from rank 3."""
    given = attribute(node, "axes")
    numbers = np.asarray(given) if given is not None else constant(input_at(node, 1))
    return None if numbers is None else [int(axis) % 3 for axis in numbers.ravel()]


def _set_axes(node: ir.Node, axes: Sequence[int], rewriter: Rewriter) -> None:
    if "axes" in node.attributes:
        rewriter.set_attribute(node, "axes", list(axes))
    else:
        hint = f"{node.name or 'relayout'}_axes"
        rewriter.set_input(node, 1, rewriter.constant(np.array(axes, np.int64), hint, at=node))


def _target(node: ir.Node) -> list[int] | None:
    """The constant target of a Reshape whose zeros copy dimensions."""
    if not walk.is_onnx(node, "Reshape") or attribute(node, "allowzero", 0):
        return None
    target = constant(input_at(node, 1))
    return None if target is None else [int(size) for size in target.ravel()]


def _set_target(node: ir.Node, target: Sequence[int], rewriter: Rewriter) -> None:
    hint = f"{node.name or 'reshape'}_shape"
    rewriter.set_input(node, 1, rewriter.constant(np.array(target, np.int64), hint, at=node))
