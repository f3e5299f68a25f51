"""Spelled-out normalizations and activations that ONNX Runtime recognizes: layer norm, RMS norm and Gelu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from joulec.energy.kernel import Kernel, Plan
from joulec.ir.values import rank, sole_consumer
from joulec.ir.walk import MICROSOFT_DOMAIN, is_onnx


def fuse_layer_norm(plan: Plan, mean: ir.Node) -> bool:
    """ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add of one value -> LayerNormalization."""
    source = plan.origin(mean.inputs[0])
    centred = _step(plan, mean.outputs[0], "Sub")
    if centred is None or plan.origin(centred.inputs[0]) is not source:
        return False
    users = [usage.node for usage in centred.outputs[0].uses()]
    square = next((user for user in users if is_onnx(user, "Pow", "Mul")), None)
    divide = next((user for user in users if is_onnx(user, "Div")), None)
    if square is None or divide is None or len(set(users)) != 2:
        return False
    chain = _follow(plan, square, ("ReduceMean", "Add", "Sqrt", "Div"))
    if chain is None or chain[-1] is not divide:
        return False
    scaled = _follow(plan, divide, ("Mul", "Add"))
    if scaled is None:
        return False
    scale, shift = (_constant_operand(plan, node) for node in scaled)
    if scale is None or shift is None:
        return False
    last = scaled[-1]
    plan.absorb([mean, centred, square, *chain, scaled[0]], last)
    if not _skip(plan, last, source, (scale, shift), {mean, centred}):
        plan.kernels[last] = Kernel(
            "LayerNormalization", (source, scale, shift), (last.outputs[0],), formula=("", "LayerNormalization")
        )
    return True


def fuse_skip(plan: Plan, norm: ir.Node) -> bool:
    """Add -> LayerNormalization of three dimensions runs as SkipLayerNormalization, with a row added before that."""
    axis = norm.attributes.get("axis")
    if len(norm.inputs) < 3 or (axis is not None and (axis.is_ref() or axis.value not in (-1, 2))):
        return False
    made = [value for value in norm.outputs[1:] if value.name]
    return not made and _skip(plan, norm, plan.origin(norm.inputs[0]), norm.inputs[1:3], {norm})


def _skip(
    plan: Plan, last: ir.Node, source: ir.Value | None, constants: Sequence[ir.Value | None], readers: set[ir.Node]
) -> bool:  # fmt: skip
    """Take in the sum that alone `readers` normalize, and the bias of one of its operands."""
    add = plan.producer(source)
    if add is None or source is None or rank(source) != 3 or not _is_plain_sum(plan, add):
        return False
    if source.is_graph_output() or {usage.node for usage in source.uses()} != readers:
        return False
    operands, absorbed = [plan.origin(value) for value in add.inputs], [add]
    for index, value in enumerate(operands):
        if (bias := _biased(plan, value)) is not None:
            operands[index], absorbed = bias.source, [add, bias.add]
            break
    reads = (*operands, *constants)
    name = "SkipLayerNormalization"
    plan.kernels[last] = Kernel(name, reads, (last.outputs[0],), epilogue=(add,), formula=("", "LayerNormalization"))
    plan.absorb(absorbed, last)
    return True


def _is_plain_sum(plan: Plan, add: ir.Node) -> bool:
    """Whether an Add of two values of one shape runs as a kernel of its own so far."""
    kernel = plan.kernels.get(add)
    shapes = [value.shape for value in add.inputs if value is not None]
    same = len(shapes) == 2 and shapes[0] is not None and shapes[0] == shapes[1]
    return is_onnx(add, "Add") and kernel is not None and kernel.name == "Add" and same


class _Bias(NamedTuple):
    """An Add of a constant row, and what it is added to."""

    add: ir.Node
    source: ir.Value


def _biased(plan: Plan, value: ir.Value | None) -> _Bias | None:
    """How `value` was made by adding a constant row, where only this sum reads it."""
    add = plan.producer(value)
    kernel = plan.kernels.get(add) if add is not None else None
    if add is None or value is None or kernel is None or kernel.name != "Add" or len(value.uses()) != 1:
        return None
    rows = [one for one in add.inputs if one in plan.constants and rank(one) == 1]
    others = [plan.origin(one) for one in add.inputs if one not in plan.constants]
    source = others[0] if is_onnx(add, "Add") and len(rows) == 1 and len(others) == 1 else None
    return None if source is None else _Bias(add, source)


def fuse_rms_norm(plan: Plan, square: ir.Node) -> bool:
    """Pow, ReduceMean, Add, Sqrt, Div, Mul of one value -> SimplifiedLayerNormalization (RMS norm)."""
    source = plan.origin(square.inputs[0])
    chain = _follow(plan, square, ("ReduceMean", "Add", "Sqrt", "Div", "Mul"))
    if chain is None or plan.origin(chain[3].inputs[0]) is not source:
        return False
    scale = _constant_operand(plan, chain[-1])
    if scale is None:
        return False
    last, name = chain[-1], "SimplifiedLayerNormalization"
    plan.kernels[last] = Kernel(name, (source, scale), (last.outputs[0],), formula=(MICROSOFT_DOMAIN, name))
    plan.absorb([square, *chain[:-1]], last)
    return True


def fuse_gelu(plan: Plan, erf: ir.Node) -> bool:
    """Div or Mul by a constant, Erf, Add, Mul by x, Mul by a constant -> Gelu."""
    inner = plan.producer(erf.inputs[0])
    chain = _follow(plan, erf, ("Add", "Mul", "Mul"))
    if inner is None or chain is None or not is_onnx(inner, "Div", "Mul"):
        return False
    single = sole_consumer(inner.outputs[0]) is not None
    if not single or _constant_operand(plan, inner) is None or _constant_operand(plan, chain[0]) is None:
        return False
    source = plan.origin(inner.inputs[0])
    if source not in [plan.origin(v) for v in chain[1].inputs] or _constant_operand(plan, chain[2]) is None:
        return False
    last = chain[-1]
    plan.kernels[last] = Kernel("Gelu", (source,), (last.outputs[0],), formula=(MICROSOFT_DOMAIN, "Gelu"))
    plan.absorb([inner, erf, *chain[:-1]], last)
    return True


def _step(plan: Plan, value: ir.Value, op: str) -> ir.Node | None:
    node = plan.follower(value)
    return node if node is not None and is_onnx(node, op) else None


def _follow(plan: Plan, node: ir.Node, ops: tuple[str, ...]) -> list[ir.Node] | None:
    """The nodes behind `node`, each the only user of the one before, if they are `ops`."""
    found: list[ir.Node] = []
    for op in ops:
        following = _step(plan, node.outputs[0], op)
        if following is None:
            return None
        found.append(following)
        node = following
    return found


def _constant_operand(plan: Plan, node: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if value in plan.constants), None)
