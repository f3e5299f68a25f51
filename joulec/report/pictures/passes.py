"""What the passes did: the waterfall of joules from the input model to the artefact, and the weights left."""

from __future__ import annotations

from joulec.report import units, words
from joulec.report.data import Report, StepReport
from joulec.report.draw import Bar, Drawn, Picture, Row, rows, share

MAX_TENSORS = 100
"""Pruned tensors listed."""


def waterfall(report: Report) -> Picture | None:
    """From the input's energy, pass by pass, to the artefact's."""
    made = falls(report)
    if not made or report.energy is None:
        return None
    lead = (
        "Predicted energy per inference, from the input model to the artefact. Passes that moved nothing, or were "
        "undone, are in the table below."
    )
    label = "Energy pass by pass: " + ", ".join(f"{row.label} {row.value}" for row in made)
    keys = (("saved", "saved"), ("added", "added"))
    return Picture("waterfall", "Each pass's own share", lead, rows(made, "fall"), label, keys)


def falls(report: Report) -> list[Row]:
    """The rows of the waterfall; passes that changed nothing are left out."""
    moved = [step for step in report.steps if step.status == "applied" and _moved(step)]
    if report.energy is None or not moved:
        return []
    first, last = report.energy.before["total_joules"], report.energy.after["total_joules"]
    scale = max([first, last, *(max(_pair(step)) for step in moved)])
    ends = [
        Row(name, (Bar(0.0, share(joules, scale), "total"),), units.joules(joules))
        for name, joules in (("input model", first), ("artefact", last))
    ]
    return [ends[0], *(_fall(step, scale) for step in moved), ends[1]]


def _fall(step: StepReport, scale: float) -> Row:
    before, after = _pair(step)
    kind = "saved" if after < before else "added"
    bar = Bar(share(min(before, after), scale), share(abs(after - before), scale), kind)
    return Row(step.spelling, (bar,), words.share(step))


def _pair(step: StepReport) -> tuple[float, float]:
    return step.joules_before or 0.0, step.joules_after or 0.0


def _moved(step: StepReport) -> bool:
    before, after = _pair(step)
    return step.joules_before is not None and before != after


def pruned(report: Report) -> Picture | None:
    """The share of weights that each mask keeps."""
    if not report.sparsity:
        return None
    made = [
        Row(one.tensor, (Bar(0.0, share(one.kept, one.total), "after"),), f"{one.kept:,} of {one.total:,} kept")
        for one in report.sparsity[:MAX_TENSORS]
    ]
    body = rows(made, "fall back")
    if len(report.sparsity) > MAX_TENSORS:
        body = Drawn(f'{body}<p class="small">and {len(report.sparsity) - MAX_TENSORS} more tensors</p>')
    lead = (
        "T = M × mask: the share of weights that each mask keeps. The masks are in masks.npz. "
        "Zeros save energy only where a kernel skips them."
    )
    label = f"Weights kept by {units.plural(len(report.sparsity), 'mask')}"
    return Picture("sparsity", "Pruned weights", lead, body, label)
