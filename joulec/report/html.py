"""The HTML pages of a report and of an estimate: one file each, offline, without scripts; same data, same bytes.

Measured times stand only in elements with the attribute `data-timing`. Pictures are made in `joulec.report.pictures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from joulec import __version__
from joulec.report import pictures, points, units, words
from joulec.report.data import EnergyChange, Report, Roofs
from joulec.report.draw import Drawn

MAX_NODES = 400
"""Nodes listed; the costliest come first, the rest is summed in one line."""

MAX_TEXT = 4000
"""Longest single text on the page."""


@dataclass(frozen=True)
class NodeRow:
    """One node of the emitted model."""

    name: str
    op: str
    joules: str
    interval: str
    share: float
    tier: str
    kernel: str
    work: str


def render(report: Report) -> str:
    """The whole page.

    Args:
        report: any report; names inside it are untrusted and are escaped.
    """
    return _environment().get_template("report.html.j2").render(_view(report))


def render_estimate(
    model: str, estimate: Mapping[str, Any], layers: Mapping[str, str], roofs: Roofs | None = None
) -> str:
    """The page of a model that was priced and not changed.

    Args:
        model: its name.
        estimate: `Estimate.to_json()`.
        layers: node -> path of its layer, where that is not its own name (`joulec.ir.layers`).
        roofs: of the device.
    """
    view = {
        "version": __version__,
        "model": model,
        "estimate": estimate,
        "headline": words.estimate_headline(estimate),
        "basis": words.TIER_WORDS.get(estimate["tier"], str(estimate["tier"])).capitalize() + ".",
        "facts": words.estimate_facts(estimate),
        "pictures": pictures.of_estimate(estimate, layers, roofs),
        "nodes": node_rows(estimate),
        "node_rest": max(0, len(estimate["nodes"]) - MAX_NODES),
        "caveats": words.caveats(estimate),
    }
    return _environment().get_template("estimate.html.j2").render(view)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("joulec.report", "templates"),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "safe_text": units.safe,
        "size": units.size,
        "seconds": units.seconds,
        "folded": words.folded,
    }
    return environment


def _visible(value: Any) -> Any:
    """Nothing reaches the page unseen, filtered or not, but what joulec drew and what a macro made of such pieces."""
    return value if type(value) in (Drawn, Markup) else units.safe(value, MAX_TEXT)


def _view(report: Report) -> dict[str, Any]:
    """What the template draws: the report and what is computed from it."""
    found = report.energy
    return {
        "version": report.joulec,
        "report": report,
        "headline": words.headline(report),
        "facts": words.facts(report),
        "decisions": [
            (words.verdict(d), units.safe(d.what), words.decision(d), d.ratio is not None) for d in report.decisions
        ],
        "steps": [(step, words.share(step), words.detail(step)) for step in report.steps],
        "points": points.rows(report.points),
        "front": points.front(report),
        "about_energy": pictures.drawn(pictures.ABOUT_ENERGY, report),
        "about_precision": pictures.drawn(pictures.ABOUT_PRECISION, report),
        "about_passes": pictures.drawn(pictures.ABOUT_PASSES, report),
        "nodes": [] if found is None else node_rows(found.after),
        "node_rest": 0 if found is None else max(0, len(found.after["nodes"]) - MAX_NODES),
        "parity": None if report.parity is None else words.parity(report.parity),
        "tiers": [] if found is None else _tiers(found),
        "caveats": [] if found is None else words.caveats(found.after),
        "files": sorted(report.files.items()),
    }


def node_rows(estimate: Mapping[str, Any]) -> list[NodeRow]:
    """The costliest nodes first; those of unknown cost stand above all, because nobody may overlook them."""
    nodes = sorted(estimate["nodes"], key=lambda node: (node["joules"] is not None, -(node["joules"] or 0.0)))
    total = estimate["total_joules"]
    return [_node_row(node, total) for node in nodes[:MAX_NODES]]


def _node_row(node: Mapping[str, Any], total: float) -> NodeRow:
    known = node["joules"] is not None
    interval = f"{units.joules(node['low'])} to {units.joules(node['high'])}" if known else "—"
    op = f"{node['domain']}::{node['op']}" if node.get("domain") else node["op"]
    work = "—" if node["flops"] is None else f"{node['flops']:,} ops, {units.size(node['bytes'] or 0)}"
    return NodeRow(
        units.safe(node["name"]), units.safe(op), units.joules(node["joules"]), interval,
        _percent(node["joules"] or 0.0, total), str(node["tier"]), units.safe(node["kernel"]), work,
    )  # fmt: skip


def _tiers(found: EnergyChange) -> list[str]:
    used = {node["tier"] for estimate in (found.before, found.after) for node in estimate["nodes"]}
    return [text for tier, text in words.TIER_WORDS.items() if tier in used]


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 2) if whole else 0.0
