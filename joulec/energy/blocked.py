"""The blocked layout (NCHWc) in which ONNX Runtime computes float convolutions on a CPU, and what entering and leaving
it costs.

Blocked convolutions hand each other their results, through poolings, sums, activations and concatenations too. Where
something else reads one, or one reads something else, the runtime adds a kernel that changes the layout.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from joulec.energy.families import is_blocked
from joulec.energy.kernel import Plan
from joulec.energy.terms_dense import BLOCK
from joulec.energy.view import Sizes, View
from joulec.ir.values import input_at, static_shape
from joulec.ir.walk import is_onnx

_SAME_SHAPE = ("Add", "Sum", "Mul")
_UNARY = ("Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "BatchNormalization")
_WHOLE_BLOCKS = ("Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
"""Blocked where the channels fill their blocks."""
_RESIZES = ("Resize", "Upsample")


def computes_blocked(plan: Plan, node: ir.Node) -> bool:
    """Whether `node` is a convolution that runs over blocks of channels."""
    if not is_onnx(node, "Conv") or node in plan.integer or len(node.inputs) < 2:
        return False
    fixed = frozenset({1}) if plan.origin(node.inputs[1]) in plan.constants else frozenset()
    return is_blocked(View(node, Sizes(), fixed=fixed))


def follow(plan: Plan, node: ir.Node) -> None:
    """Poolings, sums, activations and concatenations of blocked values are blocked."""
    if not plan.blocked or not is_onnx(node, *_SAME_SHAPE, *_UNARY, *_WHOLE_BLOCKS, *_RESIZES):
        return
    given = [plan.origin(v) for v in node.inputs if v is not None]
    data = [v for v in given if v is not None and v not in plan.constants]
    if data and all(v in plan.blocked for v in data) and _keeps(node, data):
        plan.blocked.update(node.outputs)


def _keeps(node: ir.Node, data: list[ir.Value]) -> bool:
    shapes = [static_shape(value) for value in data]
    if is_onnx(node, *_SAME_SHAPE):
        return all(shape is None or shape == shapes[0] for shape in shapes)
    if is_onnx(node, "Concat") and not _joins_channels(node):
        return False
    if is_onnx(node, *_WHOLE_BLOCKS):
        return all(shape is None or (len(shape) > 1 and shape[1] % BLOCK == 0) for shape in shapes)
    return not is_onnx(node, *_RESIZES) or _enlarges(node)


def _joins_channels(concat: ir.Node) -> bool:
    axis = concat.attributes.get("axis")
    return axis is not None and not axis.is_ref() and axis.value == 1


def _enlarges(resize: ir.Node) -> bool:
    """Whether height and width grow by whole numbers, by repetition or linearly."""
    mode, given, made = resize.attributes.get("mode"), static_shape(resize.inputs[0]), static_shape(resize.outputs[0])
    known = mode is None or (not mode.is_ref() and mode.value in ("nearest", "linear"))
    if not known or given is None or made is None or len(given) != 4 or given[:2] != made[:2]:
        return False
    return all(size and whole % size == 0 for size, whole in zip(given[2:], made[2:], strict=True))


def settle_reorders(plan: Plan, graph: ir.Graph) -> None:
    """Note with each kernel which values change layout for it; a value is changed once, however many read it."""
    entered: set[ir.Value] = set()
    for node in graph:
        kernel = plan.kernels.get(node)
        if kernel is None or not kernel.runs:
            continue
        given = _entering(plan, node)
        moved = [given] if given is not None and given not in entered else []
        entered.update(moved)
        made = [value for value in kernel.writes if value in plan.blocked]
        moved += [value for value in made if _leaves(plan, value)]
        if moved or made:
            plan.kernels[node] = replace(kernel, reordered=tuple(moved), blocked=bool(made))


def _entering(plan: Plan, node: ir.Node) -> ir.Value | None:
    """The plain value that a blocked convolution reads; few channels are read as they are."""
    if not computes_blocked(plan, node):
        return None
    weight, given = static_shape(node.inputs[1]), plan.origin(input_at(node, 0))
    group = node.attributes.get("group")
    grouped = group is not None and not group.is_ref() and group.value > 1
    few = weight is not None and not grouped and weight[1] < BLOCK
    return None if few or given is None or given in plan.blocked else given


def _leaves(plan: Plan, value: ir.Value) -> bool:
    """Whether something outside the blocked layout reads `value`."""
    pending = [value]
    while pending:
        current = pending.pop()
        if current.is_graph_output():
            return True
        for usage in current.uses():
            reader = usage.node
            if reader in plan.bypassed:
                pending.append(reader.outputs[0])
            elif not _reads_blocked(plan, reader):
                return True
    return False


def _reads_blocked(plan: Plan, reader: ir.Node) -> bool:
    kernel = plan.kernels.get(reader)
    if kernel is not None and not kernel.runs:
        return True  # in the kernel of a convolution
    if any(made in plan.blocked for made in (*reader.outputs, *(kernel.writes if kernel is not None else ()))):
        return not is_onnx(reader, "Conv") or _takes_blocks(reader)
    return False


def _takes_blocks(conv: ir.Node) -> bool:
    weight, group = static_shape(input_at(conv, 1)), conv.attributes.get("group")
    return weight is None or weight[1] >= BLOCK or (group is not None and not group.is_ref() and group.value > 1)
