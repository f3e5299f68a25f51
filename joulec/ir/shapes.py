"""Shape inference: what ONNX can infer, merged into the module without touching its signature."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module, skeleton
from joulec.ir.values import constant_tensor


def infer_shapes(module: Module) -> str | None:
    """Annotate values with inferred dtypes and shapes, keeping the declared graph inputs and outputs as they are.

    Returns:
        None, or the reason why inference gave nothing (a malformed node, an operator it chokes on).
    """
    try:
        bare = skeleton(module.model)
        _forget_declared(bare.graph)
        inferred = ir.from_proto(
            onnx.shape_inference.infer_shapes(bare, False, False, data_prop=_may_propagate(module))
        )
    except Exception as error:  # noqa: BLE001 - the C++ side raises several unrelated types; all mean "no shapes"
        return f"shape inference failed: {first_line(error)}"
    for ours, theirs in zip(walk.graphs(module.model), walk.graphs(inferred), strict=True):
        _merge(ours, theirs)
    return None


PROPAGATED = 1 << 16
"""Elements up to which onnx may propagate data: it stores every element that a node makes, whatever their number."""


def _may_propagate(module: Module) -> bool:
    """Whether no node can ask data propagation for more memory than a shape needs (a file can do so in a few bytes)."""
    makers = (n for n in walk.nodes(module.model) if walk.is_onnx(n, "ConstantOfShape", "Range", "Expand", "Tile"))
    return all(
        _small(value) for node in makers for value in (node.inputs if node.op_type == "Range" else node.inputs[-1:])
    )


def _small(sizes: ir.Value | None) -> bool:
    tensor = constant_tensor(sizes)
    if tensor is None or tensor.size > 64:
        return False
    return math.prod(max(1, abs(float(size))) for size in tensor.numpy().ravel()) <= PROPAGATED


def _forget_declared(graph: onnx.GraphProto) -> None:
    """Drop what the file declares of intermediate values: inference must not build on what may be wrong."""
    produced = {name for node in graph.node for name in node.output if node.domain in walk.ONNX_DOMAINS}
    kept = [info for info in graph.value_info if info.name not in produced]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, for messages that must stay on one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _merge(ours: ir.Graph, theirs: ir.Graph) -> None:
    known = {value.name: value for node in theirs for value in node.outputs}
    for node in ours:
        for value in node.outputs:
            found = known.get(value.name)
            if found is None or value.is_graph_output():
                continue
            if found.type is not None:
                value.type = found.type
            if found.shape is not None and _says_more(found.shape, value.shape):
                value.shape = found.shape.copy()


def _says_more(new: ir.Shape, old: ir.Shape | None) -> bool:
    """Whether `new` knows at least as many dimensions as `old` (inference can lose what a file declared)."""
    if old is None or len(old) != len(new):
        return True
    pairs = list(zip(new, old, strict=True))
    if any(isinstance(one, int) and isinstance(other, int) and one != other for one, other in pairs):
        return True  # what a file declares of its intermediate values may be stale
    return sum(isinstance(one, int) for one, _ in pairs) >= sum(isinstance(other, int) for _, other in pairs)
