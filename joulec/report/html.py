"""The HTML page of a report: one file, offline, without scripts; the same report gives the same bytes.

Measured times stand only in elements with the attribute `data-timing`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jinja2

from joulec.report import points, units, words
from joulec.report.data import EnergyChange, Report, StepReport

MAX_NODES = 400
"""Nodes listed; the costliest come first, the rest is summed in one line."""

MAX_TEXT = 4000
"""Longest single text on the page."""

MAX_TENSORS = 100
"""Pruned tensors listed."""


@dataclass(frozen=True)
class OpBar:
    """Two bars of one operator; widths in percent of the largest."""

    op: str
    before: str
    after: str
    before_width: float
    after_width: float
    change: str


@dataclass(frozen=True)
class Fall:
    """One step of the waterfall: from `start`, `width` wide, in percent of the largest total; `kind` is its colour."""

    name: str
    start: float
    width: float
    kind: str
    text: str


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
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("joulec.report", "templates"),
        autoescape=True,
        finalize=lambda value: units.safe(value, MAX_TEXT),  # nothing reaches the page unseen, filtered or not
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
    return environment.get_template("report.html.j2").render(_view(report))


def _view(report: Report) -> dict[str, Any]:
    """What the template draws: the report and what is computed from it."""
    found = report.energy
    return {
        "report": report,
        "headline": words.headline(report),
        "facts": words.facts(report),
        "decisions": [
            (words.verdict(d), units.safe(d.what), words.decision(d), d.ratio is not None) for d in report.decisions
        ],
        "steps": [(step, words.share(step), words.detail(step)) for step in report.steps],
        "saving": None if found is None else words.saving(found),
        "points": points.rows(report.points),
        "chart": points.chart(report),
        "canvas": points,
        "bars": [] if found is None else op_bars(found),
        "falls": waterfall(report),
        "nodes": [] if found is None else node_rows(found.after),
        "node_rest": 0 if found is None else max(0, len(found.after["nodes"]) - MAX_NODES),
        "parity": None if report.parity is None else words.parity(report.parity),
        "basis": None if found is None else words.energy_basis(found),
        "tiers": [] if found is None else _tiers(found),
        "caveats": [] if found is None else words.caveats(found.after),
        "sparsity": [
            (units.safe(s.tensor), s.kept, s.total, _percent(s.kept, s.total)) for s in report.sparsity[:MAX_TENSORS]
        ],
        "tensor_rest": max(0, len(report.sparsity) - MAX_TENSORS),
        "files": sorted(report.files.items()),
    }


def op_bars(found: EnergyChange) -> list[OpBar]:
    """Energy by operator, as long as the largest one is 100 %."""
    largest = max((value or 0.0 for _, before, after in found.by_op for value in (before, after)), default=0.0)
    return [_op_bar(op, before, after, largest) for op, before, after in found.by_op]


def _op_bar(op: str, before: float | None, after: float | None, largest: float) -> OpBar:
    change = "gone" if after is None else "new" if before is None else units.change(before, after)
    return OpBar(
        units.safe(op), "—" if before is None else units.joules(before), "—" if after is None else units.joules(after),
        _percent(before or 0.0, largest), _percent(after or 0.0, largest), change,
    )  # fmt: skip


def waterfall(report: Report) -> list[Fall]:
    """From the input's energy, pass by pass, to the artefact's; passes that changed nothing are left out."""
    moved = [step for step in report.steps if step.status == "applied" and _moved(step)]
    if report.energy is None or not moved:
        return []
    first, last = report.energy.before["total_joules"], report.energy.after["total_joules"]
    scale = max([first, last, *(max(_pair(step)) for step in moved)])
    bars = [Fall("input model", 0.0, _percent(first, scale), "total", units.joules(first))]
    bars += [_fall(step, scale) for step in moved]
    return [*bars, Fall("artefact", 0.0, _percent(last, scale), "total", units.joules(last))]


def _fall(step: StepReport, scale: float) -> Fall:
    before, after = _pair(step)
    kind = "saved" if after < before else "added"
    start, width = _percent(min(before, after), scale), _percent(abs(after - before), scale)
    return Fall(units.safe(step.spelling), start, width, kind, words.share(step))


def _pair(step: StepReport) -> tuple[float, float]:
    return step.joules_before or 0.0, step.joules_after or 0.0


def _moved(step: StepReport) -> bool:
    before, after = _pair(step)
    return step.joules_before is not None and before != after


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
