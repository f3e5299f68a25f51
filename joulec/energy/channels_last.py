"""The layout with the channels last, in which ONNX Runtime computes integer convolutions on a CPU, and what entering
and leaving it costs.

The runtime puts a Transpose on either side of each integer convolution, and moves them through operators that do not
care until they meet their inverse. This models the outcome: such operators hand the layout on where all that they read
has it. Images of one pixel or of one channel are the same in either layout.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from joulec.energy.kernel import Kernel, Plan
from joulec.energy.layout import AGNOSTIC, permutation
from joulec.ir.values import static_shape

_CARRIERS = AGNOSTIC | frozenset(
    "QLinearAdd QLinearMul QLinearConcat QLinearSigmoid QLinearLeakyRelu QLinearAveragePool "
    "QLinearGlobalAveragePool Resize Upsample".split()
)
"""Kernels that work in either layout."""

_TO_LAST, _FROM_LAST = (0, 2, 3, 1), (0, 3, 1, 2)


def settle_turns(plan: Plan, graph: ir.Graph) -> None:
    """Note with each kernel which of its results are transposed behind it. O(nodes + edges).

    A value is transposed once, however many read it; the model's inputs are with whoever reads them first.
    """
    if not any(_convolves(plan, node) for node in graph):
        return
    last: set[ir.Value] = set()
    turned: dict[ir.Value, ir.Node] = {}
    writers: dict[ir.Value, ir.Node] = {}
    for node in graph:
        kernel = plan.kernels.get(node)
        if kernel is None or not kernel.runs or _cancels(plan, node, kernel, last):
            continue
        data = [value for value in map(plan.origin, kernel.reads) if value is not None and not _is_flat(plan, value)]
        convolves = _convolves(plan, node)
        keeps = convolves or (bool(data) and all(value in last for value in data) and _carries(plan, node, kernel))
        wrong = [value for value in data[:1] if value not in last] if convolves else []
        if not keeps and permutation(node) is None:  # two Transposes in a row are one
            wrong = [value for value in data if value in last]
        made = [value for value in kernel.writes if keeps and not _is_flat(plan, value)]
        last.update(made)
        writers.update(dict.fromkeys(kernel.writes, node))
        for value in (*wrong, *(value for value in made if _is_output(plan, value))):
            turned.setdefault(value, writers.get(value, node))
    for value, node in turned.items():
        kernel = plan.kernels[node]
        plan.kernels[node] = replace(kernel, turned=(*kernel.turned, value))


def _convolves(plan: Plan, node: ir.Node) -> bool:
    kernel = plan.kernels.get(node)
    return kernel is not None and kernel.runs and "QLinearConv" in (kernel.name, node.op_type)


def _cancels(plan: Plan, node: ir.Node, kernel: Kernel, last: set[ir.Value]) -> bool:
    """Whether `node` is a Transpose of the model's own that does what the runtime would have to undo."""
    perm = permutation(node)
    source = None if perm is None else plan.origin(kernel.reads[0])
    if perm == _FROM_LAST and source not in last:
        last.update(kernel.writes)
    elif perm != _TO_LAST or source not in last:
        return False
    plan.kernels[node] = Kernel("cancelled by the runtime's layout optimizer", runs=False)
    return True


def _carries(plan: Plan, node: ir.Node, kernel: Kernel) -> bool:
    pooled = node.op_type == "MaxPool" and node in plan.integer
    return pooled or node.op_type in _CARRIERS or kernel.name in _CARRIERS


def _is_flat(plan: Plan, value: ir.Value) -> bool:
    """Constants, and what has no channels to move."""
    if value in plan.constants or value.shape is None or len(value.shape) < 3:
        return True
    shape = static_shape(value) or tuple(dim if isinstance(dim, int) else 2 for dim in value.shape)
    return all(dim == 1 for dim in shape[2:]) or shape[1] == 1


def _is_output(plan: Plan, value: ir.Value) -> bool:
    """Whether the caller gets `value`, behind operators of which nothing is left."""
    while not value.is_graph_output():
        behind = [usage.node for usage in value.uses() if usage.node in plan.bypassed]
        if not behind:
            return False
        value = behind[0].outputs[0]
    return True
