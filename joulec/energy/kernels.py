"""Which kernel really runs each node, once ONNX Runtime has loaded the model.

The rules model what the runtime's own optimizer does on its default level, checked against its optimized graphs:
folding, elimination, vanishing transposes, what is fused behind a convolution or a matrix product, and Q/DQ patterns
that become integer kernels. They look at a node's neighbourhood only, and change nothing. O(nodes).
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from joulec.energy import blocked, channels_last, fusions, fusions_dynamic, fusions_matmul, fusions_norm, qdq
from joulec.energy.constants import Constants
from joulec.energy.kernel import Kernel, Plan
from joulec.energy.layout import vanishing_transposes
from joulec.ir import walk
from joulec.ir.module import Module

__all__ = ["Kernel", "effective_kernels"]


def effective_kernels(module: Module, target: str = "cpu") -> dict[ir.Node, Kernel]:
    """The kernel of every node of `module`, in all graphs.

    Args:
        module: with inferred shapes (ranks and constants decide some fusions).
        target: `cpu`, `cuda` or `tensorrt`; decides which Q/DQ patterns are integer kernels.
    """
    return plan_kernels(module, target).kernels


def plan_kernels(module: Module, target: str = "cpu") -> Plan:
    """Like `effective_kernels`, with the constants that it found."""
    plan = Plan(Constants(module.model))
    for graph in walk.graphs(module.model):
        _plan_graph(plan, graph, target)
    return plan


def _plan_graph(plan: Plan, graph: ir.Graph, target: str) -> None:
    _eliminate(plan, graph)
    if target == "tensorrt":
        _take_in_casts(plan, graph)
    if target != "cuda":
        qdq.settle_pairs(plan, graph)
    for node in graph:
        if not node.outputs or not node.inputs:
            plan.kernels.setdefault(node, fusions.plain(plan, node))
        elif node not in plan.kernels and not qdq.integer_kernel(plan, node, target):
            _float_kernel(plan, node)
        blocked.follow(plan, node)
    for node in graph:
        if qdq.is_dequantize(node) and plan.kernels[node].runs:
            qdq.settle_dequantize(plan, node)
    if target == "cpu":
        blocked.settle_reorders(plan, graph)
        channels_last.settle_turns(plan, graph)


def _eliminate(plan: Plan, graph: ir.Graph) -> None:
    for node in vanishing_transposes(graph, plan.constants):
        if node not in plan.constants.folded:
            plan.bypass(node, "cancelled by the runtime's layout optimizer")
    for node in graph:
        if node in plan.constants.folded:
            plan.kernels[node] = Kernel("folded at load", runs=False)
        elif _does_nothing(node):
            plan.bypass(node, "eliminated by the runtime")


def _take_in_casts(plan: Plan, graph: ir.Graph) -> None:
    """TensorRT converts between float formats inside the kernels on either side."""
    for node in graph:
        values = (*node.inputs[:1], *node.outputs) if walk.is_onnx(node, "Cast") and node not in plan.kernels else ()
        if values and all(value is not None and value.dtype in FLOATS for value in values):
            plan.bypass(node, "taken into its neighbours by TensorRT")


FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def _does_nothing(node: ir.Node) -> bool:
    """Identity, Dropout without a mask, and Cast to the same dtype; one that makes a graph output copies."""
    if node.op_type not in ("Identity", "Dropout", "Cast"):
        return False
    if not node.inputs or not node.outputs or node.inputs[0] is None or node.outputs[0].is_graph_output():
        return False
    if walk.is_onnx(node, "Identity"):
        return True
    if walk.is_onnx(node, "Dropout"):
        return not any(value.uses() or value.is_graph_output() for value in node.outputs[1:]) and not _trains(node)
    given, made = node.inputs[0].dtype, node.outputs[0].dtype
    return walk.is_onnx(node, "Cast") and made is not None and made == given


def _trains(node: ir.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2] is not None


_FUSERS: dict[str, Callable[[Plan, ir.Node], None]] = {
    "Conv": fusions.fuse_conv, "Gemm": fusions.fuse_gemm, "MatMul": fusions_matmul.fuse_matmul,
}  # fmt: skip

_PATTERNS: dict[str, Callable[[Plan, ir.Node], bool]] = {
    "Sigmoid": fusions.fuse_swish, "ReduceMean": fusions_norm.fuse_layer_norm, "Erf": fusions_norm.fuse_gelu,
    "LayerNormalization": fusions_norm.fuse_skip, "Pow": fusions_norm.fuse_rms_norm,
    "MatMulInteger": fusions_dynamic.fuse_dynamic_matmul,
}  # fmt: skip


def _float_kernel(plan: Plan, node: ir.Node) -> None:
    if walk.is_onnx(node, "MatMul") and fusions_matmul.bias_add(plan, node) is None and qdq.weight_only(plan, node):
        return
    pattern = _PATTERNS.get(node.op_type) if walk.is_onnx(node) else None
    if pattern is not None and pattern(plan, node):
        return
    fuser = _FUSERS.get(node.op_type) if walk.is_onnx(node) else None
    if fuser is not None and len(node.inputs) >= 2:
        fuser(plan, node)
    else:
        plan.kernels[node] = fusions.plain(plan, node)
