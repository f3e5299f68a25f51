"""Dynamic quantization: DynamicQuantizeLinear, MatMulInteger, Cast and the scale run as one DynamicQuantizeMatMul."""

from __future__ import annotations

import onnx_ir as ir

from joulec.energy.kernel import Kernel, Plan
from joulec.ir.values import input_at, rank, sole_consumer
from joulec.ir.walk import MICROSOFT_DOMAIN, is_onnx


def fuse_dynamic_matmul(plan: Plan, node: ir.Node) -> bool:
    """x -> (q, s, z) -> MatMulInteger(q, B, z, Bz) -> Cast -> Mul by s * Bs -> [Add of a constant row].

    Where something else uses q, s or z, or B has no zero-point, the quantization stays a kernel of its own and the rest
    runs as MatMulIntegerToFloat (checked against ONNX Runtime's optimized graphs).
    """
    quantize = plan.producer(input_at(node, 0))
    if quantize is None or not is_onnx(quantize, "DynamicQuantizeLinear") or len(quantize.outputs) != 3:
        return False
    quantized, step, zero = quantize.outputs
    if node.inputs[0] is not quantized or input_at(node, 2) is not zero or input_at(node, 1) not in plan.constants:
        return False
    found = _scaled(plan, node, step)
    if found is None:
        return False
    scale, chain = found
    alone = sole_consumer(quantized) is node and sole_consumer(zero) is node and sole_consumer(step) is scale
    _commit(plan, node, quantize, scale, chain, alone and input_at(node, 3) is not None)
    return True


def _scaled(plan: Plan, node: ir.Node, step: ir.Value) -> tuple[ir.Node, list[ir.Node]] | None:
    """The Mul that makes the scale from `step` and a constant, and the Cast and Mul behind `node` that apply it."""
    cast = plan.follower(node.outputs[0])
    multiply = plan.follower(cast.outputs[0]) if cast is not None and is_onnx(cast, "Cast") else None
    if cast is None or multiply is None or not is_onnx(multiply, "Mul"):
        return None
    for value in multiply.inputs:
        scale = None if value is None else value.producer()
        if value is None or scale is None or not is_onnx(scale, "Mul") or sole_consumer(value) is not multiply:
            continue
        if step in scale.inputs and any(one in plan.constants for one in scale.inputs):
            return scale, [cast, multiply]
    return None


def _commit(
    plan: Plan, node: ir.Node, quantize: ir.Node, scale: ir.Node, chain: list[ir.Node], whole: bool
) -> None:  # fmt: skip
    factor = next(value for value in scale.inputs if value in plan.constants)
    name = "DynamicQuantizeMatMul" if whole else "MatMulIntegerToFloat"
    first = [plan.origin(quantize.inputs[0])] if whole else list(quantize.outputs)
    reads = [first[0], node.inputs[1], factor, input_at(node, 3), *first[1:]]
    add = plan.follower(chain[-1].outputs[0])
    epilogue: tuple[ir.Node, ...] = ()
    if add is not None and is_onnx(add, "Add") and (bias := _row(plan, add)) is not None:
        reads, epilogue, chain = [*reads, bias], (add,), [*chain, add]
    last = chain[-1].outputs[0]
    plan.kernels[node] = Kernel(name, tuple(reads), (last,), epilogue=epilogue, formula=(MICROSOFT_DOMAIN, name))
    plan.absorb([*([quantize] if whole else []), scale, *chain], node)


def _row(plan: Plan, add: ir.Node) -> ir.Value | None:
    return next((value for value in add.inputs if value in plan.constants and rank(value) == 1), None)
