"""Joules by layer of the source model: a flame whose cells are the parts of the nodes' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from joulec.report import units
from joulec.report.draw import Cell, Picture, flame
from joulec.report.pictures import costs

DEEPEST = 7
"""Rows of cells; what lies below is in the cell above it."""

THINNEST = 0.0015
"""Share of the whole below which a cell is left out."""

MOST = 0.8
"""A part that has more than this of the joules says nothing as one row: its parts stand in its place."""


@dataclass
class _Part:
    """A part of the model, and the parts inside it."""

    name: str
    path: str
    nodes: list[costs.Node] = field(default_factory=list)
    parts: dict[str, _Part] = field(default_factory=dict)


def by_layer(estimate: Mapping[str, Any], layers: Mapping[str, str]) -> Picture | None:
    """From the whole model at the top down to its nodes; None where their names hold no layers.

    Args:
        estimate: `Estimate.to_json()`.
        layers: node -> the path of the source model's node that it stands for, where that is not its own name.
    """
    nodes = costs.paid(estimate)
    paths = costs.without_common([str(layers.get(node["name"], node["name"])).strip("/").split("/") for node in nodes])
    if len(nodes) < 2 or max(map(len, paths), default=0) < 2:
        return None
    total, colours = costs.joules(nodes), costs.colours(nodes)
    root = _tree(nodes, paths)
    cells = list(_cells(root, 0.0, 0, total, colours))
    sums = {part.name: costs.joules(part.nodes) for part in sorted(root.parts.values(), key=_costly)}
    lead = (
        "From the whole model down to its nodes, by the names that the source model gave them, in the order in which "
        "they run. Rewritten nodes stand where the first node that went into them stood. Colours are those above."
    )
    label = f"Joules by layer: {costs.leading(sums, total)} of {units.joules(total)}"
    return Picture("layers", "Joules by layer", lead, flame(cells), label, costs.key(nodes))


def layer_rows(estimate: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """(layer, joules, nodes) of the topmost parts that the model falls into, in the order in which they run.

    Args:
        estimate: `Estimate.to_json()`, its nodes with their `layer`; empty where names hold no layers.
    """
    nodes = costs.paid(estimate)
    paths = costs.without_common([str(node.get("layer", node["name"])).strip("/").split("/") for node in nodes])
    if max(map(len, paths), default=0) < 2:
        return []
    found, total = list(_tree(nodes, paths).parts.values()), costs.joules(nodes)
    while True:
        large = next((one for one in found if one.parts and costs.joules(one.nodes) > MOST * total), None)
        if large is None:
            return [(one.path, costs.joules(one.nodes), len(one.nodes)) for one in found]
        at = found.index(large)
        found[at : at + 1] = large.parts.values()


def _costly(part: _Part) -> float:
    return -costs.joules(part.nodes)


def _tree(nodes: Sequence[costs.Node], paths: Sequence[Sequence[str]]) -> _Part:
    root = _Part("model", "the whole model")
    for node, path in zip(nodes, paths, strict=True):
        part = root
        part.nodes.append(node)
        for depth, name in enumerate(path[:DEEPEST]):
            part = part.parts.setdefault(name, _Part(name, "/".join(path[: depth + 1])))
            part.nodes.append(node)
    return root


def _cells(part: _Part, start: float, depth: int, total: float, colours: Mapping[str, str]) -> Iterator[Cell]:
    """The cell of a part and of all inside it; a part that holds nothing but one other is one cell with it."""
    name = part.name
    while len(part.parts) == 1:
        (part,) = part.parts.values()
        name = part.name if name == "model" else f"{name}/{part.name}"
    spent = costs.joules(part.nodes)
    if spent < THINNEST * total or depth > DEEPEST:
        return
    main = next(iter(costs.ranked(part.nodes)))
    said = f"{part.path}: {units.joules(spent)}, {costs.percent(spent, total)}"
    if len(part.nodes) > 1:
        said += f", {units.plural(len(part.nodes), 'node')}, most of it {main}"
    else:
        said = f"{said} ({costs.told(part.nodes[0], total)})"
    yield Cell(name, start, spent / total, depth, said, "root" if depth == 0 else colours[main])
    for inside in part.parts.values():
        yield from _cells(inside, start, depth + 1, total, colours)
        start += costs.joules(inside.nodes) / total
