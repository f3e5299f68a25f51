"""Spelled-out normalizations and activations that ONNX Runtime recognizes: layer norm, RMS norm and Gelu."""

from __future__ import annotations

import onnx_ir as ir

from joulec.energy.kernel import Kernel, Plan
from joulec.ir.values import sole_consumer
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
    plan.kernels[last] = Kernel(
        "LayerNormalization", (source, scale, shift), (last.outputs[0],), formula=("", "LayerNormalization")
    )
    plan.absorb([mean, centred, square, *chain, scaled[0]], last)
    return True


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
