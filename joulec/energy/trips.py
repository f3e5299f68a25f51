"""How often the bodies of control-flow nodes run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from joulec.energy.proto_types import MAX_DIM
from joulec.energy.view import Sizes, at
from joulec.ir import walk
from joulec.ir.values import input_at

MAX_TRIPS = MAX_DIM
"""Exporters write the largest int64 for "until the condition fails"; that is not a count."""


@dataclass(frozen=True)
class Body:
    """A graph inside a node.

    Attributes:
        name: the attribute that holds it.
        graph: the graph.
        trips: how often it runs per run of the node.
        assumed: what was taken as 1 for want of knowing, or None.
    """

    name: str
    graph: ir.Graph
    trips: int
    assumed: str | None = None


def bodies(node: ir.Node, sizes: Sizes) -> Iterator[Body]:
    """The bodies of `node` with their trip counts.

    If: each branch once (only the one taken where the condition is known before the run). Loop: its M, where that is
    known. Scan: the length of its first scanned input. Anything else that holds a graph: once, and said.
    """
    held = [(a.name, g) for a in node.attributes.values() if not a.is_ref() for g in _graphs(a)]
    for name, graph in held:
        if walk.is_onnx(node, "If"):
            if name == (_taken(node, sizes) or name):
                yield Body(name, graph, 1)
        elif walk.is_onnx(node, "Loop"):
            trips = _loop_trips(node, sizes)
            yield Body(name, graph, trips or 1, "trip count" if trips is None else None)
        elif walk.is_onnx(node, "Scan"):
            yield Body(name, graph, _scan_trips(node, sizes))
        else:
            yield Body(name, graph, 1, "trip count")


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _taken(node: ir.Node, sizes: Sizes) -> str | None:
    """The branch that is run, where the condition is known."""
    condition = sizes.numbers(input_at(node, 0))
    if condition is None or condition.size != 1:
        return None
    return "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"


def _loop_trips(node: ir.Node, sizes: Sizes) -> int | None:
    """M where it is known; None otherwise (a while loop, or a count that depends on data)."""
    most = sizes.numbers(input_at(node, 0))
    if most is None or most.size != 1:
        return None
    count = int(most.reshape(-1)[0])
    return count if 0 < count <= MAX_TRIPS else None


def _scan_trips(node: ir.Node, sizes: Sizes) -> int:
    """The scanned inputs are the last `num_scan_inputs`; their axis is 0 unless `scan_input_axes` says otherwise."""
    count = node.attributes.get("num_scan_inputs")
    if count is None or count.is_ref() or not node.inputs:
        return 1
    axes = node.attributes.get("scan_input_axes")
    axis = int(axes.as_ints()[0]) if axes is not None and not axes.is_ref() and axes.as_ints() else 0
    first = len(node.inputs) - int(count.as_int())
    return max(at(sizes.dims(node.inputs[first]), axis), 1) if 0 <= first < len(node.inputs) else 1
