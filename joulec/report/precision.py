"""What INT8 costs in accuracy, tensor by tensor and operator by operator, as a picture and as rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from joulec.report import units
from joulec.report.data import Cost, Report, Tensor
from joulec.report.draw import Bar, Drawn, Picture, Row, rows, share

MAX_ROWS = 24
"""Tensors and operators shown, the worst first; the rest is in calibration.json and decisions.json."""

CLEAN = 60.0
"""Decibel that fill a bar: about what 8 bits hold of a signal that uses their whole range, and some more."""


def worst(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors of which 8 bits hold the least, first; those without a ratio come last."""
    return sorted(tensors, key=lambda one: (one.sqnr is None, one.sqnr or 0.0, one.name))


def costliest(costs: Sequence[Cost]) -> list[Cost]:
    """The operators that cost the most accuracy, first."""
    return sorted(costs, key=lambda one: (-one.noise, one.node))


def about(one: Tensor) -> tuple[str, str, str]:
    """Range, signal-to-noise ratio and saturated share, in words."""
    decibel = "—" if one.sqnr is None else f"{one.sqnr:.1f} dB"
    cut = "—" if one.saturated is None else f"{100 * one.saturated:.3g} %"
    return f"{one.low:.4g} to {one.high:.4g}", decibel, cut


def noise(cost: Cost) -> str:
    """How loud an operator alone is in the outputs: its error over their size."""
    return f"{100 * math.sqrt(max(cost.noise, 0.0)):.2g} %"


def tensors(report: Report) -> Picture | None:
    """Signal-to-noise ratio of the tensors that 8 bits hold worst."""
    found = [one for one in worst(report.tensors) if one.sqnr is not None]
    if not found:
        return None
    made = [_tensor(one) for one in found[:MAX_ROWS]]
    lead = (
        "Signal over quantization noise of each calibrated activation, the worst first: short bars lose most. "
        "The range was chosen by the method named; what lies outside of it saturates."
    )
    label = f"Signal to noise of {units.plural(len(found), 'tensor')}, the lowest {about(found[0])[1]}"
    return Picture("tensors", "What 8 bits hold", lead, _cut(made, len(found), "tensors"), label)


def _tensor(one: Tensor) -> Row:
    span, decibel, cut = about(one)
    width = share(min(max(one.sqnr or 0.0, 0.0), CLEAN), CLEAN)
    return Row(one.name, (Bar(0.0, width, "after"),), decibel, f"{span}, {one.method}, saturated {cut}")


def costs(report: Report) -> Picture | None:
    """The operators that cost most accuracy where they alone compute in integers."""
    found = [one for one in costliest(report.costs) if one.noise > 0]
    if not found:
        return None
    loudest = math.sqrt(found[0].noise)
    made = [
        Row(f"{one.op} {one.node}", (Bar(0.0, share(math.sqrt(one.noise), loudest), "added"),), noise(one))
        for one in found[:MAX_ROWS]
    ]
    lead = "Error in the outputs over their size, where this operator alone computes in integers, measured on the data."
    label = f"Accuracy cost of {units.plural(len(found), 'operator')}, the highest {noise(found[0])}"
    return Picture("costs", "Operators that cost most accuracy", lead, _cut(made, len(found), "operators"), label)


def _cut(made: list[Row], total: int, what: str) -> Drawn:
    body = rows(made, "fall back")
    return body if total <= MAX_ROWS else Drawn(f'{body}<p class="small">and {total - MAX_ROWS} more {what}</p>')
