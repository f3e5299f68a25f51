"""What ONNX Runtime fuses around a MatMul in float: a bias, a scale, a transpose of one operand."""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

from joulec.energy.fusions import GEMM_ACTIVATIONS, Chain, commit, fuse_activation, other_operand
from joulec.energy.kernel import Kernel, Plan
from joulec.ir.values import constant_tensor, input_at, rank, static_shape
from joulec.ir.walk import is_onnx


class Bias(NamedTuple):
    """The Add behind a product, and the constant that it adds."""

    node: ir.Node
    value: ir.Value


def fuse_matmul(plan: Plan, head: ir.Node) -> None:
    """MatMul -> Add of a constant row -> [activation], which runs as one Gemm; else a MatMul with scales around it.

    A product of more dimensions runs as a Gemm between two Reshapes, if its shape is fixed.
    """
    chain = Chain(head, head.outputs[0])
    bias = bias_add(plan, head) or _row_add(plan, head)
    if bias is None:
        _scaled_product(plan, chain)
        return
    chain.take(bias.node, reads=bias.value)
    flat = rank(input_at(head, 0)) == 2
    if flat:
        fuse_activation(plan, chain, GEMM_ACTIVATIONS)
    commit(plan, chain, "FusedGemm" if len(chain.absorbed) > 1 else "Gemm", plan.reads(head), 0 if flat else 2)


def bias_add(plan: Plan, head: ir.Node) -> Bias | None:
    """The Add of a constant of rank 1 or 2 right behind a MatMul of two matrices."""
    if rank(input_at(head, 0)) != 2 or rank(input_at(head, 1)) != 2:
        return None
    return _added(plan, head, most=2)


def _row_add(plan: Plan, head: ir.Node) -> Bias | None:
    """The Add of a constant row behind a MatMul of more dimensions, all fixed, by one matrix."""
    left = static_shape(input_at(head, 0))
    if left is None or len(left) < 3 or rank(input_at(head, 1)) != 2 or head.inputs[1] not in plan.constants:
        return None
    return _added(plan, head, most=1)


def _added(plan: Plan, head: ir.Node, most: int) -> Bias | None:
    add = plan.follower(head.outputs[0])
    if add is None or not is_onnx(add, "Add"):
        return None
    other = other_operand(plan, add, head.outputs[0])
    if other is None or other not in plan.constants or not 1 <= (rank(other) or 0) <= most:
        return None
    return Bias(add, other)


def _scaled_product(plan: Plan, chain: Chain) -> None:
    """Constant factors before and behind, and transposes of the last two dimensions, run inside the product."""
    head, reads = chain.head, list(plan.reads(chain.head))
    for index, value in enumerate(head.inputs[:2]):
        source = _taken_in(plan, value)
        if source is not None:
            reads[index] = source
    scale = plan.follower(chain.value)
    if scale is not None and _is_scale(plan, scale, chain.value):
        chain.take(scale)
    fused = bool(chain.absorbed) or reads != list(plan.reads(head))
    commit(plan, chain, "FusedMatMul" if fused else "MatMul", tuple(reads))


def _taken_in(plan: Plan, value: ir.Value | None) -> ir.Value | None:
    """What a product reads instead of `value`, whose factor or transpose it applies itself."""
    node = plan.producer(value)
    kernel = plan.kernels.get(node) if node is not None else None
    if node is None or kernel is None or kernel.name not in ("Mul", "Div", "Transpose") or not kernel.runs:
        return None
    readers = [usage.node for usage in node.outputs[0].uses()]
    if node.outputs[0].is_graph_output() or not all(is_onnx(reader, "MatMul") for reader in readers):
        return None
    if is_onnx(node, "Transpose"):
        if not _swaps_last(node):
            return None
    elif len(readers) != 1 or not _is_scale(plan, node, plan.origin(node.inputs[0])):
        return None
    plan.kernels[node] = Kernel(f"fused into MatMul '{readers[0].name}'", runs=False)
    return plan.origin(node.inputs[0])


def _swaps_last(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    axes = list(perm.as_ints()) if perm is not None and not perm.is_ref() else []
    last = len(axes)
    return last > 1 and axes == [*range(last - 2), last - 1, last - 2]


def _is_scale(plan: Plan, node: ir.Node, value: ir.Value | None) -> bool:
    """Whether `node` multiplies or divides `value` by one constant number."""
    if value is None or not is_onnx(node, "Mul", "Div") or (is_onnx(node, "Div") and node.inputs[0] is not value):
        return False
    tensor = constant_tensor(other_operand(plan, node, value))
    return tensor is not None and tensor.size == 1
