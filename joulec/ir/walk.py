"""The one walker over graphs, subgraphs and functions, and the one place that knows operator domains."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache

import onnx.defs
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


def graphs_within(graph: ir.Graph) -> Iterator[ir.Graph]:
    """Yield `graph`, and all graphs nested in its nodes."""
    yield graph
    yield from _nested(graph)


def nodes_within(graph: ir.Graph) -> Iterator[ir.Node]:
    """Yield the nodes of `graph`, and those of all graphs nested in them."""
    for one in graphs_within(graph):
        yield from one


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
    """Whether `node` is one of `op_types` of the standard ONNX domain (any ONNX operator if none is given).

    A node with inputs or outputs missing that every version of its operator requires is none, nor one with more than
    any version has: whoever asks goes on to read them. No runtime loads such a model, but a pass must leave it alone
    all the same.
    """
    if node.domain not in ONNX_DOMAINS or (op_types and node.op_type not in op_types):
        return False
    required, most_inputs, outputs, most_outputs = _arity(node.op_type)
    inputs = node.inputs
    if not (required <= len(inputs) <= most_inputs and outputs <= len(node.outputs) <= most_outputs):
        return False
    return required == 0 or None not in inputs[:required]


@cache
def _arity(op_type: str) -> tuple[int, int, int, int]:
    """(Leading inputs that are never left out, inputs at most, outputs at least and at most), over all versions."""
    schemas = [schema for schema in _standard_schemas() if schema.name == op_type]
    if not schemas:
        return 0, sys.maxsize, 0, sys.maxsize
    return (
        min(map(_required, schemas)), max(schema.max_input for schema in schemas),
        min(schema.min_output for schema in schemas), max(schema.max_output for schema in schemas),
    )  # fmt: skip


@cache
def _standard_schemas() -> tuple[onnx.defs.OpSchema, ...]:
    return tuple(schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == "")


def _required(schema: onnx.defs.OpSchema) -> int:
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    kinds = [parameter.option for parameter in schema.inputs]
    return next((index for index, kind in enumerate(kinds) if kind != single), len(kinds))


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
