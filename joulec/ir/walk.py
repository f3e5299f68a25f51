"""The one walker over graphs, subgraphs and functions, and the one place that knows operator domains."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

ONNX_DOMAINS = frozenset({"", "ai.onnx"})
MICROSOFT_DOMAIN = "com.microsoft"
RUNTIME_DOMAINS = ONNX_DOMAINS | {MICROSOFT_DOMAIN, "ai.onnx.ml", "com.microsoft.nchwc", "com.ms.internal.nhwc"}
"""Domains whose operators ONNX Runtime itself registers."""


def graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph, every function body, and all graphs nested in their nodes, outermost first."""
    roots = [model.graph, *(function.graph for function in model.functions.values())]
    for root in roots:
        yield root
        yield from list(_nested(root))  # a list first: callers change graphs while they walk


def _nested(graph: ir.Graph) -> Iterator[ir.Graph]:
    """The graphs inside the nodes of `graph`; several times faster than onnx_ir's general iterator."""
    for node in graph:
        if not node.attributes:
            continue
        for inner in subgraphs(node):
            yield inner
            yield from _nested(inner)


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of every graph of `model`."""
    for graph in graphs(model):
        yield from graph


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs held directly in the attributes of `node`, in attribute order."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def is_onnx(node: ir.Node, *op_types: str) -> bool:
    """Whether `node` is one of `op_types` of the standard ONNX domain (any ONNX operator if none is given)."""
    return node.domain in ONNX_DOMAINS and (not op_types or node.op_type in op_types)


def label(node: ir.Node) -> str:
    """How a message names a node: its operator and, where it has one, its name."""
    return f"{node.op_type} '{node.name}'" if node.name else node.op_type


def foreign_operators(model: ir.Model) -> list[str]:
    """`domain:operator` of every operator that is neither ONNX Runtime's own nor a function of the model; sorted."""
    functions = {(function.domain, function.name) for function in model.functions.values()}
    return sorted(
        {
            f"{node.domain}:{node.op_type}"
            for node in nodes(model)
            if node.domain not in RUNTIME_DOMAINS and (node.domain, node.op_type) not in functions
        }
    )
