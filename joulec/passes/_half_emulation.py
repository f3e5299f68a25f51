"""16-bit arithmetic on a machine that has none: every value that would be rounded is rounded, in float32."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from joulec.ir import walk
from joulec.ir.module import Module
from joulec.ir.shapes import infer_shapes

FLOAT = ir.DataType.FLOAT
HALVES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

EXACT = frozenset(
    {
        "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split", "Concat", "Gather",
        "Expand", "Tile", "Relu", "MaxPool", "GlobalMaxPool", "Neg", "Abs", "Pad", "Where", "DepthToSpace",
        "SpaceToDepth", "GatherElements", "GatherND", "Max", "Min",
    }
)  # fmt: skip
"""Operators that choose or move numbers: what they make of rounded ones needs no rounding."""


def has_half(module: Module) -> bool:
    """Whether any value or stored tensor of `module` is a 16-bit float. Types must have been inferred."""
    return any(value.dtype in HALVES for value in _values(module))


def emulated(module: Module) -> Module:
    """`module` in float32, with every 16-bit value rounded to its format by a pair of casts; itself where none is.

    This is what kernels do that read and write 16 bits and add up in float32. ONNX Runtime's CPU provider does not: it
    computes most operators in float32 and leaves out the rounding between them. Graph inputs and outputs keep their
    types. O(nodes).
    """
    infer_shapes(module)
    if not has_half(module):
        return module
    copy = module.clone()
    infer_shapes(copy)
    for graph in list(walk.graphs(copy.model)):
        _widen_stored(graph)
        for node in list(graph):
            _widen_node(graph, node)
    copy.changed()
    return copy


def _values(module: Module) -> Iterator[ir.Value]:
    for graph in walk.graphs(module.model):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _widen_stored(graph: ir.Graph) -> None:
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in HALVES:
            value.const_value = _wide(tensor)
            value.type = ir.TensorType(FLOAT)


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype("float32"))


def _widen_node(graph: ir.Graph, node: ir.Node) -> None:
    for attribute in list(node.attributes.values()):
        if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
            if tensor.dtype in HALVES:
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _wide(tensor))
    if walk.is_onnx(node, "Cast") and ir.DataType(node.attributes["to"].as_int()) in HALVES:
        node.attributes["to"] = ir.AttrInt64("to", int(FLOAT))
    for value in node.outputs:
        if value.dtype in HALVES:
            _round(graph, node, value, value.dtype)


def _round(graph: ir.Graph, node: ir.Node, value: ir.Value, dtype: ir.DataType) -> None:
    value.type = ir.TensorType(FLOAT)
    if walk.is_onnx(node, "Constant", *EXACT):
        return
    narrow = ir.node("Cast", [value], {"to": int(dtype)})
    wide = ir.node("Cast", [narrow.outputs[0]], {"to": int(FLOAT)})
    name = value.name or "value"
    narrow.outputs[0].name, wide.outputs[0].name = f"{name}_narrow", f"{name}_rounded"
    narrow.outputs[0].dtype, wide.outputs[0].dtype = dtype, FLOAT
    graph.insert_after(node, [narrow, wide])
    users = [(use.node, use.idx) for use in value.uses() if use.node is not narrow]
    for user, index in users:
        user.replace_input_with(index, wide.outputs[0])
    if value.is_graph_output():  # a branch's result, or an output that is 16 bits wide
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = wide.outputs[0]
