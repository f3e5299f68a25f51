"""The roofline (Williams, Waterman and Patterson, 2009): kernels by operations per byte and per second."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from joulec.report import units
from joulec.report.data import Roofs
from joulec.report.draw import Axis, Dot, Drawn, Line, Picture, decades, scatter, text
from joulec.report.pictures import costs

MAX_DOTS = 400
NAMED = 8
"""Dots that get a number, and a line below the picture."""

TELLING = 0.998
"""The share of the joules that is drawn: what else there is would only stretch the axes."""

LEAST, MOST = 2.5, 13.0
"""Radius of a dot in pixels; its area goes with the node's joules, the costliest one's being the largest."""

NEAR = (4.0, 6.0)
"""Percent of the axes within which two numbers would be written over each other."""


def roofline(estimate: Mapping[str, Any], roofs: Roofs | None) -> Picture | None:
    """Dots under the roofs of the device, larger ones for costlier nodes; the costliest are numbered.

    Args:
        estimate: `Estimate.to_json()`.
        roofs: the device's peaks and bandwidths; None where they are not known.
    """
    found = [node for node in costs.paid(estimate) if node["flops"] and node["bytes"] and node["seconds"]]
    if roofs is None or not roofs.compute or not roofs.memory or len(found) < 2:
        return None
    nodes = _telling(found)
    across, up = _axes(nodes, roofs)
    total, colours = costs.joules(costs.paid(estimate)), costs.colours(costs.paid(estimate))
    tags = _tags(nodes, across, up)
    dots = [
        _dot(node, total, colours[costs.op(node)], tags.get(index, ""), nodes[0]["joules"])
        for index, node in enumerate(nodes)
    ]
    body = scatter(across, up, dots[::-1], list(_lines(roofs, across, up)))
    lead = (
        "Each dot is a kernel, its area its share of the joules. Under the slope memory bounds it, under the flat part "
        "arithmetic does; far below both, starting it takes longer than its work. Times are "
        f"{'fitted to this machine' if estimate['tier'] == 'calibrated' else 'predicted, not measured'}; roofs are the "
        "profile's peaks."
    )
    if len(nodes) < len(found):
        lead += f" {units.plural(len(found) - len(nodes), 'kernel')} that cost next to nothing are left out."
    label = f"Roofline of {units.plural(len(nodes), 'kernel')}; the costliest: " + "; ".join(
        f"{node['name']} {_rates(node)}" for node in nodes[:3]
    )
    return Picture("roofline", "Roofline", lead, Drawn(f"{body}{_named(nodes, total)}"), label, costs.key(found))


def _axes(nodes: Sequence[costs.Node], roofs: Roofs) -> tuple[Axis, Axis]:
    ridges = [peak / bandwidth for _, peak in roofs.compute for _, bandwidth in roofs.memory]
    intensities = [*(_intensity(node) for node in nodes), *ridges]
    rates = [*(_rate(node) for node in nodes), *(peak for _, peak in roofs.compute)]
    xs = decades(min(intensities), 1.5 * max(intensities))
    ys = decades(min(rates), 1.5 * max(rates))
    across = Axis(xs[0], _end(xs, intensities), "operations per byte", tuple((x, _power(x)) for x in xs), log=True)
    up = Axis(ys[0], _end(ys, rates), "operations per second", tuple((y, _amount(y)) for y in ys), log=True)
    return across, up


def _end(ticks: Sequence[float], values: Sequence[float]) -> float:
    """The end of an axis: its last tick, or beyond it what is larger."""
    return max(ticks[-1], 1.5 * max(values))


def _power(value: float) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"1e{math.log10(value):.0f}"


def _amount(value: float) -> str:
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.999:
            return f"{units.digits(value / scale, 2 if value < 10 * scale else 3).removesuffix('.0')} {unit}"
    return f"{value:.0f}"


def _intensity(node: costs.Node) -> float:
    return float(node["flops"] / node["bytes"])


def _rate(node: costs.Node) -> float:
    return float(node["flops"] / node["seconds"])


def _rates(node: costs.Node) -> str:
    return f"{units.digits(_intensity(node), 2)} op/B, {_amount(_rate(node))}op/s"


def _telling(found: Sequence[costs.Node]) -> list[costs.Node]:
    """The costliest kernels first, until they make up all but a trifle of the joules."""
    ordered = sorted(found, key=lambda node: -node["joules"])[:MAX_DOTS]
    enough, spent = TELLING * costs.joules(found), 0.0
    for index, node in enumerate(ordered):
        spent += node["joules"]
        if spent >= enough:
            return ordered[: max(index + 1, NAMED)]
    return ordered


def _dot(node: costs.Node, total: float, kind: str, tag: str, largest: float) -> Dot:
    radius = max(LEAST, round(MOST * math.sqrt(node["joules"] / largest), 1))
    return Dot(_intensity(node), _rate(node), kind, f"{costs.told(node, total)}; {_rates(node)}", radius, tag)


def _tags(nodes: Sequence[costs.Node], across: Axis, up: Axis) -> dict[int, str]:
    """Numbers of the costliest dots; one that would be written over another stands beside it."""
    found: dict[int, str] = {}
    places: dict[int, tuple[float, float]] = {}
    for index, node in enumerate(nodes[:NAMED]):
        x, y = across.at(_intensity(node)), up.at(_rate(node))
        beside = next((i for i, (a, b) in places.items() if abs(a - x) < NEAR[0] and abs(b - y) < NEAR[1]), None)
        if beside is None:
            places[index], found[index] = (x, y), str(index + 1)
        else:
            found[beside] += f" {index + 1}"
    return found


def _lines(roofs: Roofs, across: Axis, up: Axis) -> list[Line]:
    """A slope for each bandwidth up to the highest peak, and a flat roof for each peak from the steepest slope on."""
    highest, fastest = max(peak for _, peak in roofs.compute), max(width for _, width in roofs.memory)
    flat = [
        Line(((peak / fastest, peak), (across.high, peak)), "roof", f"{name}, {_amount(peak)}op/s")
        for name, peak in roofs.compute
    ]
    return [*(_slope(name, width, highest, across, up) for name, width in roofs.memory), *flat]


def _slope(name: str, bandwidth: float, peak: float, across: Axis, up: Axis) -> Line:
    low = max(across.low, up.low / bandwidth)
    ends = (low, low * bandwidth), (peak / bandwidth, peak)
    near = ends[0][0] ** 0.8 * ends[1][0] ** 0.2
    return Line(ends, "roof", f"{name}, {_amount(bandwidth)}B/s", (near, near * bandwidth))


def _named(nodes: Sequence[costs.Node], total: float) -> str:
    said = "".join(
        f"<li>{text(node['name'])} <span class=\"small\">{text(costs.op(node))}: {text(_rates(node))}, "
        f"{text(costs.percent(node['joules'], total))} of the joules</span></li>"
        for node in nodes[:NAMED]
    )
    return f'<ol class="named">{said}</ol>'
