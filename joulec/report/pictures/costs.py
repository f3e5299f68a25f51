"""What the pictures of a model's joules share: which nodes are drawn, in which colours, and how a node is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from joulec.report import units
from joulec.report.draw import KINDS

MOSTLY = 0.9
"""The share of names that must start alike for that start to be left out."""

Node = Mapping[str, Any]
"""An entry of `Estimate.to_json()["nodes"]`."""


def paid(estimate: Mapping[str, Any]) -> list[Node]:
    """The nodes that cost something, in graph order."""
    return [node for node in estimate["nodes"] if (node["joules"] or 0.0) > 0]


def op(node: Node) -> str:
    """Its operator, with the domain where that is not ONNX's own."""
    return f"{node['domain']}::{node['op']}" if node.get("domain") else str(node["op"])


def ranked(nodes: Sequence[Node]) -> dict[str, list[Node]]:
    """Nodes by operator, the costliest operator and in it the costliest node first."""
    found: dict[str, list[Node]] = {}
    for node in sorted(nodes, key=lambda node: -node["joules"]):
        found.setdefault(op(node), []).append(node)
    return dict(sorted(found.items(), key=lambda item: (-joules(item[1]), item[0])))


def joules(nodes: Sequence[Node]) -> float:
    """What nodes cost together."""
    return float(sum(node["joules"] for node in nodes))


def colours(nodes: Sequence[Node]) -> dict[str, str]:
    """Operator -> colour: one of its own for the costliest, one for all others."""
    return {name: KINDS[min(index, len(KINDS) - 1)] for index, name in enumerate(ranked(nodes))}


def key(nodes: Sequence[Node]) -> tuple[tuple[str, str], ...]:
    """What the colours stand for."""
    found = colours(nodes)
    named = [(kind, name) for name, kind in found.items() if kind != KINDS[-1]]
    return (*named, (KINDS[-1], "other operators")) if KINDS[-1] in found.values() else tuple(named)


def percent(part: float, whole: float) -> str:
    """`12 %`."""
    return f"{units.digits(100 * part / whole, 2 if part > 0.001 * whole else 1)}\u00a0%" if whole else ""


def told(node: Node, total: float) -> str:
    """One node in one line."""
    low, high = units.joules(node["low"]), units.joules(node["high"])
    said = f"{node['name']} ({op(node)}): {units.joules(node['joules'])}, {percent(node['joules'], total)}"
    return f"{said}; {low} to {high}, {node['tier']}; {node['kernel']}"


def without_common(paths: list[list[str]]) -> list[list[str]]:
    """The paths without the parts that all of them start with; the last part of each stays."""
    while paths and all(len(path) > 1 for path in paths) and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    return paths


def short(nodes: Sequence[Node]) -> list[str]:
    """The nodes' names without the path that nearly all of them share: a tile has room for a word."""
    names = [str(node["name"]).strip("/") for node in nodes]
    while names:
        starts = Counter(name.partition("/")[0] for name in names if "/" in name)
        first, count = max(starts.items(), key=lambda item: item[1], default=("", 0))
        if count < MOSTLY * len(names):
            break
        names = [name.removeprefix(f"{first}/") for name in names]
    return names


def leading(parts: Mapping[str, float], total: float, count: int = 4) -> str:
    """`Conv 71 %, Gemm 12 % and 3 more`: what a picture shows, for those who do not see it."""
    first = [f"{name} {percent(value, total)}" for name, value in list(parts.items())[:count]]
    rest = len(parts) - len(first)
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
