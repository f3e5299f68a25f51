"""Two ways to run each node, and a price wherever neighbours differ: the cheapest choice, by a minimum cut.

Precision (float16 or float32) and placement (device or host) are the same problem: each node costs something either
way, and a value that is made on one side and read on the other is converted once, however many read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx

RESOLUTION = 1 << 40
"""Costs become integers, so that the same costs give the same cut everywhere: this many steps for all of them."""

MOST = 8192
"""Nodes and values that one cut takes (seconds); of a larger part every node that may goes to side B."""

_Graph: TypeAlias = Any
"""A networkx.DiGraph, which has no types."""


@dataclass(frozen=True)
class Crossing:
    """One value: who makes it, who reads it, and what it costs to bring it across.

    Attributes:
        maker: the node that makes it; None for a value that stands on side A for good.
        readers: the nodes that read it.
        to_a, to_b: cost of converting it once towards that side.
    """

    maker: int | None
    readers: tuple[int, ...]
    to_a: float
    to_b: float


def cheapest(on_a: Sequence[float], on_b: Sequence[float], crossings: Sequence[Crossing]) -> list[bool]:
    """For each node whether it stands on side B, so that the sum of all costs is least.

    Args:
        on_a, on_b: cost of each node on either side, from 0 up; infinite where it cannot stand there (never both).
        crossings: the values between them.

    Returns:
        One boolean a node. Among equally cheap choices the one with most nodes on side B; least up to `MOST`.
    """
    finite = [c for c in (*on_a, *on_b, *(x for one in crossings for x in (one.to_a, one.to_b))) if c < math.inf]
    unit = (sum(finite) or 1.0) / RESOLUTION
    graph = _network(on_a, on_b, crossings, unit)
    side_b = {node for part in _parts(graph) for node in _side_b(part)}
    return [node in side_b for node in range(len(on_a))]


def _network(on_a: Sequence[float], on_b: Sequence[float], crossings: Sequence[Crossing], unit: float) -> _Graph:
    """Source "a" and sink "b": cutting a -> node puts the node on side B and pays for that, node -> b the reverse.

    Nodes that must stand on side A are the source itself, so that the network falls apart between them.
    """
    graph = nx.DiGraph()
    place: list[object] = [A if cost == math.inf else node for node, cost in enumerate(on_b)]
    graph.add_nodes_from([A, B, *(node for node in place if node is not A)])
    for node in place:
        if isinstance(node, int):
            _link(graph, A, node, on_b[node], unit)
            _link(graph, node, B, on_a[node] + unit, unit)  # one step dearer: ties fall to side B
    for number, one in enumerate(crossings):
        maker = A if one.maker is None else place[one.maker]
        readers = [place[reader] for reader in one.readers]
        _fan(graph, maker, [r for r in readers if r is not A], one.to_b, unit, (number, B))
        if maker is not A:
            _fan_back(graph, maker, readers, one.to_a, unit, (number, A))
    return graph


A, B = "a", "b"


def _parts(graph: _Graph) -> Iterator[_Graph]:
    """What hangs together without the two sides; each part is cut for itself."""
    order = {node: index for index, node in enumerate(graph)}
    inner = graph.copy()
    inner.remove_nodes_from((A, B))
    for part in nx.weakly_connected_components(inner):
        found = nx.DiGraph()
        found.add_nodes_from((A, B))
        for node in sorted(part, key=order.__getitem__):
            found.add_edges_from(graph.out_edges(node, data=True))
            if (data := graph.get_edge_data(A, node)) is not None:
                found.add_edge(A, node, **data)
        yield found


def _side_b(part: _Graph) -> Iterator[object]:
    if part.out_degree(A) == 0 or len(part) > MOST:  # nothing holds it on side A, or too much to cut it in time
        yield from (node for node in part if node is not A)
        return
    _, (_, side) = nx.minimum_cut(part, A, B, flow_func=nx.algorithms.flow.boykov_kolmogorov)
    yield from side


def _fan(graph: _Graph, maker: object, readers: Sequence[object], cost: float, unit: float, hub: object) -> None:
    """Maker on A and any reader on B costs once: the hub is on B as soon as one reader is."""
    if cost <= 0 or not readers:
        return
    _link(graph, maker, hub, cost, unit)
    for reader in readers:
        graph.add_edge(hub, reader)  # without a capacity: cannot be cut


def _fan_back(graph: _Graph, maker: object, readers: Sequence[object], cost: float, unit: float, hub: object) -> None:
    """Maker on B and any reader on A costs once: the hub is on A as soon as one reader is."""
    if cost <= 0:
        return
    if any(reader is A for reader in readers):
        _link(graph, A, maker, cost, unit)
        return
    _link(graph, hub, maker, cost, unit)
    for reader in readers:
        graph.add_edge(reader, hub)


def _link(graph: _Graph, start: object, end: object, cost: float, unit: float) -> None:
    """Add to what it costs to cut `start` from `end`."""
    if cost == math.inf:
        graph.add_edge(start, end)
        graph[start][end].pop("capacity", None)
        return
    steps = round(cost / unit)
    if graph.has_edge(start, end):
        if "capacity" in graph[start][end]:
            graph[start][end]["capacity"] += steps
    elif steps > 0:
        graph.add_edge(start, end, capacity=steps)
