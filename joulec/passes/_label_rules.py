"""How labels of channels pass each operator: arithmetic, products, normalizations. Movement is in `_label_moves`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.values import Array, attribute, constant, constant_tensor, input_at
from joulec.passes._labels import Axes, Edit, Labels, Sum

SAME = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid "
    "Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu".split()
)
"""Operators that treat every number by itself."""

BROADCAST = frozenset(
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or "
    "Pow PRelu Sub Sum Where Xor".split()
)

POOLS = frozenset("AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split())

REDUCTIONS = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)


class Visit:
    """One node being looked at: its inputs' labels, and which of their axes the rule has accounted for."""

    def __init__(self, node: ir.Node, labels: Labels, module: Module) -> None:
        self.node, self.labels, self.module = node, labels, module
        self.taken: set[tuple[int, int]] = set()

    def axes(self, slot: int) -> Axes:
        """Labels of an input, whose rank must be known."""
        value = input_at(self.node, slot)
        found = None if value is None else self.labels.of(value)
        if found is None:
            raise LookupError("rank not known")
        return found

    def take(self, slot: int, axis: int) -> Array | None:
        """Labels of one axis of an input, which the rule answers for."""
        axes = self.axes(slot)
        self.taken.add((slot, axis % len(axes)))
        return axes[axis]

    def all(self, slot: int) -> Axes:
        """Labels of every axis of an input."""
        return [self.take(slot, axis) for axis in range(len(self.axes(slot)))]

    def unite(self, one: Array | None, other: Array | None) -> Array | None:
        return self.labels.unite(one, other, f"{walk.label(self.node)} ties them to something that cannot change")

    def give(self, axes: Axes, output: int = 0) -> None:
        """Label an output."""
        if output < len(self.node.outputs):
            self.labels.set(self.node.outputs[output], axes)

    def size(self, slot: int, axis: int) -> int | None:
        """A dimension of an input, if it is known."""
        value = self.node.inputs[slot]
        tensor = constant_tensor(value)
        dims = None if value is None else tensor.shape if tensor is not None else value.shape
        dim = None if dims is None else dims[axis]
        return dim if isinstance(dim, int) else None

    def leave(self) -> None:
        """Freeze every labelled axis that the rule did not answer for."""
        for slot, value in enumerate(self.node.inputs):
            axes = None if value is None else self.labels.of(value)
            rest = [a for axis, a in enumerate(axes or []) if (slot, axis) not in self.taken]
            self.labels.freeze(rest, f"{walk.label(self.node)} reads them in a way that cannot be cut")

    def give_up(self) -> None:
        """Freeze everything that the node reads."""
        self.taken.clear()
        self.leave()
        for output in self.node.outputs:
            self.labels.axes.pop(id(output), None)


Rule = Callable[[Visit], None]


def same(visit: Visit) -> None:
    """Numbers by themselves; further inputs must be scalars."""
    axes = visit.all(0)
    for output in range(len(visit.node.outputs)):
        visit.give(axes, output)


def broadcast(visit: Visit) -> None:
    """Axes align from the right; those of size 1 stretch."""
    node = visit.node
    if "axis" in node.attributes or "broadcast" in node.attributes:
        raise LookupError("broadcasting of opset 6")
    every = [visit.all(slot) for slot in range(len(node.inputs)) if node.inputs[slot] is not None]
    rank = max(map(len, every))
    result: Axes = []
    for back in range(rank, 0, -1):
        present = [(slot, axes[-back]) for slot, axes in enumerate(every) if len(axes) >= back]
        wide = [(slot, one) for slot, one in present if visit.size(slot, -back) != 1]
        found = wide[0][1] if wide else None
        for _, one in wide[1:]:
            found = visit.unite(found, one) if found is not None or one is not None else None
        result.append(found)
    visit.give(result)


def conv(visit: Visit) -> None:
    """Weight (outputs, inputs of a group, ...)."""
    node, groups = visit.node, attribute(visit.node, "group", 1)
    x, outputs, inputs = visit.take(0, 1), visit.take(1, 0), visit.take(1, 1)
    channels = visit.size(0, 1)
    if groups == 1:
        visit.unite(x, inputs)
        _sum(visit, 0, 1, 1, 1, 0)
    elif channels == groups and visit.size(1, 1) == 1:
        times = (visit.size(1, 0) or 0) // groups
        visit.unite(None if x is None else x.repeat(times), outputs)
        if x is not None:
            visit.labels.edits.append(Edit(node, x, lambda r, kept: r.set_attribute(node, "group", int(kept(x).sum()))))
    else:
        _read(visit, 0, 1, 1, 1)
        _tie(visit, x, inputs, groups)
        _tie(visit, outputs, None if outputs is None else outputs[: outputs.size // groups], groups)
    _bias(visit, 2, outputs)
    if channels != groups or groups == 1:
        visit.labels.make(outputs, node)
    visit.give([visit.take(0, 0), outputs, *[None] * (len(visit.axes(0)) - 2)])


def _tie(visit: Visit, channels: Array | None, pattern: Array | None, groups: int) -> None:
    """Groups must stay of one size: the same positions go in each."""
    if channels is None and pattern is None:
        return
    each = None if channels is None or channels.size % groups else channels.reshape(groups, -1)
    for index in range(groups):
        visit.unite(None if each is None else each[index], pattern)


def conv_transpose(visit: Visit) -> None:
    """Weight (inputs, outputs of a group, ...)."""
    node, groups = visit.node, attribute(visit.node, "group", 1)
    x, inputs, outputs = visit.take(0, 1), visit.take(1, 0), visit.take(1, 1)
    if groups != 1:
        raise LookupError("grouped")
    visit.unite(x, inputs)
    _sum(visit, 0, 1, 1, 0, 1)
    _bias(visit, 2, outputs)
    visit.labels.make(outputs, node)
    visit.give([visit.take(0, 0), outputs, *[None] * (len(visit.axes(0)) - 2)])


def _bias(visit: Visit, slot: int, outputs: Array | None) -> None:
    if input_at(visit.node, slot) is None:
        return
    axes = visit.axes(slot)
    if visit.size(slot, len(axes) - 1) != 1:
        visit.unite(visit.take(slot, -1), outputs)


def _sum(visit: Visit, slot: int, axis: int, other: int, other_axis: int, outputs: int) -> None:
    """Record a sum of products of an activation with a stored weight."""
    value, weight = visit.node.inputs[slot], visit.node.inputs[other]
    if value is None or weight is None or visit.labels.is_weight(value):
        return
    if not _read(visit, slot, axis, other, other_axis):
        return
    rank = len(visit.axes(slot))
    visit.labels.sums.append(Sum(visit.node, value, axis % rank, weight, other_axis, outputs))


def _read(visit: Visit, slot: int, axis: int, other: int, other_axis: int) -> bool:
    """Note that a weight multiplies these channels before they are summed; whether it is a stored one."""
    weight = visit.node.inputs[other]
    if weight is None or constant_tensor(weight) is None:
        visit.labels.escape(visit.axes(slot)[axis])
        return False
    visit.labels.reads.append((weight, other_axis))
    return True


def gemm(visit: Visit) -> None:
    """a (m, k), b (k, n) and what is added to (m, n)."""
    node = visit.node
    inner, rows = (0, 1) if attribute(node, "transA", 0) else (1, 0)
    across, columns = (1, 0) if attribute(node, "transB", 0) else (0, 1)
    visit.unite(visit.take(0, inner), visit.take(1, across))
    _sum(visit, 0, inner, 1, across, columns)
    outputs = visit.take(1, columns)
    _bias(visit, 2, outputs)
    if input_at(node, 2) is not None and len(visit.axes(2)) == 2 and visit.size(2, 0) != 1:
        visit.unite(visit.take(2, 0), visit.take(0, rows))
    if visit.labels.is_weight(node.inputs[1]):
        visit.labels.make(outputs, node)
    visit.give([visit.take(0, rows), outputs])


def matmul(visit: Visit) -> None:
    """Batched product; leading axes broadcast."""
    a, b = visit.all(0), visit.all(1)
    if len(a) < 2 or len(b) < 2:
        raise LookupError("vectors")
    if a[-1] is not None or b[-2] is not None:
        visit.unite(a[-1], b[-2])
    if not any(visit.labels.is_weight(value) for value in visit.node.inputs):
        visit.labels.escape(a[-1])
    for slot, other, axis, across, outputs, made in ((0, 1, -1, -2, -1, b[-1]), (1, 0, -2, -1, -2, a[-2])):
        if visit.labels.is_weight(visit.node.inputs[other]):
            rank = len(visit.axes(other))
            _sum(visit, slot, axis, other, across % rank, outputs % rank)
            visit.labels.make(made, visit.node)
    lead: Axes = []
    for back in range(max(len(a), len(b)), 2, -1):
        both = [(slot, axes[-back]) for slot, axes in ((0, a), (1, b)) if len(axes) >= back]
        wide = [one for slot, one in both if visit.size(slot, -back) != 1]
        found = wide[0] if wide else None
        if len(wide) == 2 and (wide[0] is not None or wide[1] is not None):
            found = visit.unite(*wide)
        lead.append(found)
    visit.give([*lead, a[-2], b[-1]])


def per_channel(visit: Visit) -> None:
    """BatchNormalization and InstanceNormalization: parameters of one number a channel."""
    axes = visit.all(0)
    for slot in range(1, len(visit.node.inputs)):
        if visit.node.inputs[slot] is not None:
            visit.unite(visit.take(slot, 0), axes[1])
    visit.give(axes)


def pool(visit: Visit) -> None:
    """Channels by themselves."""
    if len([output for output in visit.node.outputs if output.uses() or output.is_graph_output()]) > 1:
        raise LookupError("indices")
    axes = [visit.take(0, 0), visit.take(0, 1)]
    visit.give([*axes, *[None] * (len(visit.axes(0)) - 2)])


def along_axis(visit: Visit) -> None:
    """Softmax and its like mix one axis (all behind it before opset 13) and leave the others."""
    rank, modern = len(visit.axes(0)), visit.module.opset >= 13
    axis = attribute(visit.node, "axis", -1 if modern else 1) % rank
    mixed = {axis} if modern else set(range(axis, rank))
    visit.give([None if at in mixed else visit.take(0, at) for at in range(rank)])


def layer_normalization(visit: Visit) -> None:
    """Mixes everything from its axis on."""
    rank = len(visit.axes(0))
    axis = attribute(visit.node, "axis", -1) % rank
    visit.give([visit.take(0, at) if at < axis else None for at in range(rank)])


def reduction(visit: Visit) -> None:
    """The reduced axes are mixed, the others stay."""
    node, rank = visit.node, len(visit.axes(0))
    given = attribute(node, "axes")
    if given is None and input_at(node, 1) is not None:
        given = constant(node.inputs[1])
        if given is None:
            raise LookupError("axes not known")
    if given is None and attribute(node, "noop_with_empty_axes", 0):
        raise LookupError("no axes")
    axes = {int(axis) % rank for axis in (range(rank) if given is None else np.asarray(given).reshape(-1))}
    kept = bool(attribute(node, "keepdims", 1))
    visit.give([None if at in axes else visit.take(0, at) for at in range(rank) if kept or at not in axes])


def recurrent(visit: Visit) -> None:
    """Only what they read can be cut: input (time, batch, channels), weight (directions, gates, channels)."""
    _read(visit, 0, 2, 1, 2)
    visit.unite(visit.take(0, 2), visit.take(1, 2))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(SAME, same), **dict.fromkeys(BROADCAST, broadcast), **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduction), **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along_axis),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), per_channel),
    "Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul,
    "LayerNormalization": layer_normalization,
}  # fmt: skip
