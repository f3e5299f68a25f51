"""Skeletons: all of a model's structure in protobuf, few of its bytes; what checkers and shape inference read.

Written directly, because it is made again and again: onnx_ir's serializer is complete and checks everything, and took
most of the time of a pipeline over a large graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from joulec.ir import walk
from joulec.ir.values import is_overridable, tensor_shape

SKELETON_BYTES = 1024
"""Constants up to this size stay in a skeleton: shapes and axes live there, and inference needs them."""


def skeleton(model: ir.Model) -> onnx.ModelProto:
    """Serialize `model` with large initializers turned into inputs of the main graph, without touching it.

    Documentation and metadata are left out, and what is declared of values inside the graph, except where operators of
    unknown domains make them. O(nodes + bytes of small constants).
    """
    proto = onnx.ModelProto(
        ir_version=model.ir_version, producer_name=model.producer_name or "", domain=model.domain or ""
    )
    for domain, version in model.opset_imports.items():
        proto.opset_import.add(domain=domain, version=version)
    _Writer(proto, _hoistable(model)).main(model.graph)
    for function in model.functions.values():
        serde.serialize_function_into(proto.functions.add(), function)
    return proto


def _hoistable(model: ir.Model) -> frozenset[str]:
    """Names of large initializers of inner graphs that mean one value in the whole model."""
    inner = [graph for graph in walk.graphs(model) if graph is not model.graph]
    large = [name for graph in inner for name, value in graph.initializers.items() if _is_large(value)]
    if not large:
        return frozenset()
    defined: Counter[str] = Counter()
    for graph in walk.graphs(model):
        defined.update({value.name or "" for value in graph.inputs} | set(graph.initializers))
        defined.update(value.name or "" for node in graph for value in node.outputs)
    return frozenset(name for name in large if defined[name] == 1)


def _is_large(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.nbytes > SKELETON_BYTES


class _Writer:
    """Writes graphs; large initializers of inner graphs are hoisted into the main one where their names allow it."""

    def __init__(self, proto: onnx.ModelProto, hoistable: frozenset[str]) -> None:
        self._main = proto.graph
        self._hoistable = hoistable

    def main(self, graph: ir.Graph) -> None:
        self._graph(graph, self._main, inner=False)

    def _graph(self, graph: ir.Graph, into: onnx.GraphProto, inner: bool) -> None:
        into.name = graph.name or "graph"
        initializers = graph.initializers
        for value in graph.inputs:
            serde.serialize_value_into(into.input.add(), _bare(value))
        for value in initializers.values():
            self._initializer(value, into, inner)
        for value in graph.outputs:
            serde.serialize_value_into(into.output.add(), _bare(value))
        add = into.node.add
        for node in graph:
            self._node(node, add())
            if node.domain not in walk.ONNX_DOMAINS:
                _declare(node.outputs, into)

    def _initializer(self, value: ir.Value, into: onnx.GraphProto, inner: bool) -> None:
        tensor, name = value.const_value, value.name or ""
        if tensor is None:
            return
        large = _is_large(value)
        if large and not inner:
            if not is_overridable(value):
                serde.serialize_value_into(into.input.add(), _standing_in(value, tensor))
            return
        if large and name in self._hoistable:
            serde.serialize_value_into(self._main.input.add(), _standing_in(value, tensor))
            return
        serde.serialize_tensor_into(into.initializer.add(), tensor)
        into.initializer[-1].name = name

    def _node(self, node: ir.Node, into: onnx.NodeProto) -> None:
        into.op_type = node.op_type
        if node.domain:
            into.domain = node.domain
        if node.name:
            into.name = node.name
        if node.overload:
            into.overload = node.overload
        into.input.extend(["" if value is None else value.name or "" for value in node.inputs])
        names = [value.name or "" for value in node.outputs]
        while names and not names[-1]:
            names.pop()
        into.output.extend(names)
        for attribute in node.attributes.values():
            self._attribute(attribute, into.attribute.add())

    def _attribute(self, attribute: ir.Attr, into: onnx.AttributeProto) -> None:
        if attribute.is_ref():
            serde.serialize_reference_attribute_into(into, attribute)
            return
        plain = _PLAIN.get(attribute.type)
        if plain is not None:
            into.name, into.type = attribute.name, _KINDS[attribute.type]
            plain(into, attribute.value)
        elif attribute.type == ir.AttributeType.GRAPH:
            into.name, into.type = attribute.name, onnx.AttributeProto.GRAPH
            self._graph(attribute.value, into.g, inner=True)
        else:
            serde.serialize_attribute_into(into, attribute)


def _int(into: onnx.AttributeProto, value: Any) -> None:
    into.i = value


def _ints(into: onnx.AttributeProto, value: Any) -> None:
    into.ints.extend(value)


def _float(into: onnx.AttributeProto, value: Any) -> None:
    into.f = value


_PLAIN: dict[ir.AttributeType, Callable[[onnx.AttributeProto, Any], None]] = {
    ir.AttributeType.INT: _int, ir.AttributeType.INTS: _ints, ir.AttributeType.FLOAT: _float,
}  # fmt: skip


_KINDS: dict[ir.AttributeType, onnx.AttributeProto.AttributeType] = {
    ir.AttributeType.INT: onnx.AttributeProto.INT, ir.AttributeType.INTS: onnx.AttributeProto.INTS,
    ir.AttributeType.FLOAT: onnx.AttributeProto.FLOAT,
}  # fmt: skip


def _bare(value: ir.Value) -> ir.Value:
    """The value without documentation and metadata."""
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def _standing_in(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name=value.name, type=ir.TensorType(tensor.dtype), shape=tensor_shape(tensor))


def _declare(values: Iterable[ir.Value], into: onnx.GraphProto) -> None:
    for value in values:
        if value.name and value.type is not None and not value.is_graph_output():
            serde.serialize_value_into(into.value_info.add(), _bare(value))
