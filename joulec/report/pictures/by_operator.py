"""Joules by operator: as bars before and after, and as a treemap of the nodes behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from joulec.report import units, words
from joulec.report.data import EnergyChange, Report
from joulec.report.draw import Bar, Group, Picture, Row, Tile, rows, share, treemap
from joulec.report.pictures import costs

SMALLEST = 0.0015
"""Share of the whole below which a node gets no tile of its own: nobody would see it."""

MAX_TILES = 400


def operator_bars(report: Report) -> Picture | None:
    """Two bars an operator: the input model, and the artefact."""
    found = report.energy
    if found is None or not found.by_op:
        return None
    saving = words.saving(found)
    lead = f"{words.energy_basis(found)}."
    if saving is not None:
        lead += f" Before against after, on the same coefficients: {saving}."
    made = bars(found)
    label = "Energy by operator, before and after: " + ", ".join(f"{row.label} {row.value}" for row in made[:4])
    keys = (("before", "input model"), ("after", "artefact"))
    return Picture("operators", "Energy by operator, before and after", lead, rows(made), label, keys)


def bars(found: EnergyChange) -> list[Row]:
    """As long as the largest one is 100 %."""
    largest = max((value or 0.0 for _, before, after in found.by_op for value in (before, after)), default=0.0)
    return [_row(op, before, after, largest) for op, before, after in found.by_op]


def _row(op: str, before: float | None, after: float | None, largest: float) -> Row:
    change = "gone" if after is None else "new" if before is None else units.change(before, after)
    said = f"{'—' if before is None else units.joules(before)} → {'—' if after is None else units.joules(after)}"
    both = Bar(0.0, share(before or 0.0, largest), "before"), Bar(0.0, share(after or 0.0, largest), "after")
    return Row(op, both, said, change)


def by_operator(estimate: Mapping[str, Any]) -> Picture | None:
    """Where the joules go: a rectangle an operator, in it one a node, their areas as their joules."""
    nodes = costs.paid(estimate)
    if len(nodes) < 2:
        return None
    total, colours, found = costs.joules(nodes), costs.colours(nodes), costs.ranked(nodes)
    names = {id(node): short for node, short in zip(nodes, costs.short(nodes), strict=True)}
    groups = [_group(name, members, total, colours[name], names) for name, members in found.items()]
    sums = {name: costs.joules(members) for name, members in found.items()}
    lead = "The area of a rectangle is what its node is predicted to cost per inference. Point at one for its numbers."
    if unknown := sum(node["joules"] is None for node in estimate["nodes"]):
        lead += f" {units.plural(unknown, 'node')} without a price cannot be drawn."
    label = f"Joules by operator: {costs.leading(sums, total)} of {units.joules(total)}"
    return Picture("treemap", "Where the joules go", lead, treemap(groups), label, costs.key(nodes))


def _group(name: str, members: Sequence[costs.Node], total: float, kind: str, names: Mapping[int, str]) -> Group:
    spent = costs.joules(members)
    shown = [node for node in members if node["joules"] >= SMALLEST * total][:MAX_TILES]
    tiles = [
        Tile(names[id(node)], node["joules"], units.joules(node["joules"]), costs.told(node, total), kind)
        for node in shown
    ]
    rest = members[len(shown) :]
    if rest:
        said = f"{len(rest)} smaller" if shown else units.plural(len(rest), "node")
        left = costs.joules(rest)
        tiles.append(Tile(said, left, units.joules(left), f"{said}: {units.joules(left)} together", kind))
    return Group(name, f"{units.joules(spent)}, {costs.percent(spent, total)}", tuple(tiles))
