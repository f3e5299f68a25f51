"""The pictures of a page, in order. One more is one function: it returns a `Picture`, or None with nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from joulec.report import precision
from joulec.report.data import Report, Roofs
from joulec.report.draw import Picture
from joulec.report.pictures.by_layer import by_layer
from joulec.report.pictures.by_operator import by_operator, operator_bars
from joulec.report.pictures.passes import pruned, waterfall
from joulec.report.pictures.roofline import roofline

ABOUT_ENERGY: tuple[Callable[[Report], Picture | None], ...] = (
    operator_bars,
    lambda report: None if report.energy is None else by_operator(report.energy.after),
    lambda report: None if report.energy is None else by_layer(report.energy.after, report.energy.layers),
    lambda report: None if report.energy is None else roofline(report.energy.after, report.energy.roofs),
    waterfall,
)
"""What a build's page shows between the decisions and the table of passes."""

ABOUT_PASSES: tuple[Callable[[Report], Picture | None], ...] = (pruned,)
"""What it shows behind that table."""

ABOUT_PRECISION: tuple[Callable[[Report], Picture | None], ...] = (precision.costs, precision.tensors)
"""What it shows of INT8, behind the sets that were tried."""


def drawn(makers: tuple[Callable[[Report], Picture | None], ...], report: Report) -> list[Picture]:
    """The pictures that have something to show."""
    return [picture for make in makers if (picture := make(report)) is not None]


def of_estimate(estimate: Mapping[str, Any], layers: Mapping[str, str], roofs: Roofs | None) -> list[Picture]:
    """The pictures of a model alone; `estimate` is `Estimate.to_json()`."""
    found = (by_operator(estimate), by_layer(estimate, layers), roofline(estimate, roofs))
    return [picture for picture in found if picture is not None]
